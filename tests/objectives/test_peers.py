"""The losses of the ``speculators`` package: same values and gradients at equal inputs, where it is installed.

First the losses of single positions, then whole losses: what its trainer would minimise on the blocks of a batch,
against the command that gives it (``docs/conventions.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.whole_loss import BLOCKS, SEQUENCES, SLOTS, Batch, assert_same, batch, distance, ours, with_gradient
from specauf_cli.objectives import losses

# Ours, and the name of theirs (``--loss-fn`` of their command).
PAIRS: dict[str, Callable[..., Tensor]] = {
    "kl_div": losses.kl,
    "rkl": losses.reverse_kl,
    "jsd": losses.js,
    "tv": losses.tv,
    "nla": losses.nla,
    "lk_hybrid": partial(losses.lk, scale=1.0, slope=3.0),
}


def logits_pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``[1, T, V]`` as their functions take them, from flat to peaked rows."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, 24)[:, None]
    logits, target_logits = (scale * torch.randn(1, 24, 97, generator=generator) for _ in range(2))
    # Peaked rows as of a trained drafter: both favour the same token, otherwise their nla is at its floor of alpha.
    for x in (logits, target_logits):
        x[..., 5] += 3 * scale[:, 0]
    return logits.to(dtype).requires_grad_(), target_logits.to(dtype)


def value_and_gradient(value: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_the_speculators_package_has_the_same_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses.utils import resolve_loss_config

    ((theirs, _),) = resolve_loss_config(name, "eager").values()
    logits, target_logits = logits_pair(dtype)
    expected, expected_gradient = value_and_gradient(theirs(logits, target_logits), logits)
    labels = target_logits.argmax(dim=-1)
    value, gradient = value_and_gradient(PAIRS[name](logits, labels, target_logits), logits)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=5e-6)


def test_ce_with_the_targets_argmax_as_label_is_the_ce_of_the_speculators_package() -> None:
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses.eager import ce_loss

    logits, target_logits = logits_pair(torch.float32)
    expected, expected_gradient = value_and_gradient(ce_loss(logits, target_logits), logits)
    value, gradient = value_and_gradient(losses.ce(logits, target_logits.argmax(dim=-1)), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_nla_differs_from_that_of_the_speculators_package_where_alpha_is_below_its_floor() -> None:
    """Theirs stops at -log 1e-5 and loses its gradient; ours goes on."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses.eager import neg_log_acceptance_loss

    logits, target_logits = torch.tensor([[[40.0, 0.0]]], requires_grad=True), torch.tensor([[[-40.0, 0.0]]])
    theirs, their_gradient = value_and_gradient(neg_log_acceptance_loss(logits, target_logits), logits)
    ours, gradient = value_and_gradient(losses.nla(logits, torch.ones(1, 1, dtype=torch.long), target_logits), logits)
    assert theirs < 11.6 < 39 < ours
    assert not their_gradient.any()
    assert gradient.abs().max() > 0.4


AS_THEIRS = "trainer.labels=target trainer.normalize=valid"
"""Their labels are the target's argmax, and they divide by the number of valid slots."""
DECAYED = {
    "ce": "objective=decay objective.base.gamma=4",
    "kl_div": "objective=kl objective.base.gamma=4",
    "rkl": "objective=reverse_kl objective.base.gamma=4",
    "jsd": "objective=js objective.base.gamma=4",
    "tv": "objective=tv objective.base.gamma=4",
    "nla": "objective=nla objective.base.gamma=4",
    "lk_hybrid": "objective=lk objective.base.gamma=4",
    '{"ce": 0.1, "tv": 1.8}': "objective=dspark",
    '{"ce": 0.1, "tv": 0.9}': "objective=dspark objective.base.1.weight=0.9",
}
"""Their ``--loss-fn`` with their default gamma, and the objective here."""


def in_one_row(values: Tensor, anchor: float) -> Tensor:
    """``[N, K, ...]`` as they lay blocks out: one row, with the anchor's position, filled with a value, before each
    block."""
    with_anchor = torch.cat([torch.full_like(values[:, :1], anchor), values], dim=1)
    return with_anchor.flatten(0, 1)[None]


def theirs(loss_fn: str, data: Batch, weights: str = "fixed-exp-decay") -> tuple[Tensor, Tensor]:
    """Their DFlash loss. They add 1e-5 to the number of slots they divide by."""
    from speculators.losses.utils import resolve_loss_config
    from speculators.models.dflash.metrics import compute_metrics

    loss, _ = compute_metrics(
        in_one_row(data.logits, 0),
        in_one_row(data.target_logits, 0),
        in_one_row(data.mask.long(), 0),
        block_size=SLOTS + 1,
        loss_config=resolve_loss_config(loss_fn, "eager"),
        per_position_loss_weight=weights,
    )
    return with_gradient(loss, data)


@pytest.mark.parametrize("loss_fn", DECAYED)
def test_whole_losses_of_the_speculators_package(loss_fn: str) -> None:
    pytest.importorskip("speculators", reason="pip install .[peers]")
    data = batch()
    assert_same(ours(f"{DECAYED[loss_fn]} {AS_THEIRS}", data), theirs(loss_fn, data))


def test_d_pace_of_the_speculators_package() -> None:
    """Their default for DFlash. Divided by the weights instead, it has another size."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    data = batch()
    expected = theirs("ce", data, "dpace")
    assert_same(ours(f"objective=dpace {AS_THEIRS}", data), expected)
    by_credit = ours("objective=dpace trainer.labels=target", data)[1]
    assert distance(by_credit, expected[1]) > 0.1
    assert distance(by_credit / by_credit.norm(), expected[1] / expected[1].norm()) < 1e-5
    assert distance(ours("objective=dpace trainer.normalize=valid", data)[1], expected[1]) > 0.1, "other labels"


def test_d_spark_of_the_speculators_package_predicts_from_the_anchor_on() -> None:
    """Without its confidence head. Its L1 in terms of tv: 0.9 ‖p - q‖_1 is 1.8 tv."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses.eager import tv_loss
    from speculators.losses.utils import resolve_loss_config
    from speculators.models.dspark.metrics import compute_metrics

    data = batch()
    loss, _ = compute_metrics(
        data.logits.flatten(0, 1)[None],
        data.target_logits.flatten(0, 1)[None],
        None,
        data.mask.long().flatten()[None],
        block_size=SLOTS,
        loss_config=resolve_loss_config('{"ce": 0.1, "tv": 1.8}', "eager"),
        tv_loss_fn=tv_loss,
    )
    assert_same(ours(f"objective=dspark {AS_THEIRS}", data), with_gradient(loss, data))


def test_rows_of_the_speculators_package_count_the_same_whatever_their_length() -> None:
    """They average over rows; ours is one sum over all slots, so it is theirs where rows have equally many valid slots.
    Their trainer packs a batch into one row."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses import dflash_loss_decay
    from speculators.losses.eager import kl_div_loss
    from speculators.losses.utils import loss_function

    for full in (True, False):
        data = batch(full=full)
        rows, slots = (SEQUENCES, BLOCKS * SLOTS), torch.arange(SLOTS).repeat(BLOCKS)[None]
        loss = loss_function(
            data.logits.view(*rows, -1),
            data.target_logits.view(*rows, -1),
            data.mask.view(rows),
            slots,
            loss_fn=kl_div_loss,
            decay_fn=partial(dflash_loss_decay, gamma=4, sample_from_anchor=True),
        )
        expected = with_gradient(loss, data)
        loss_here = ours("objective=kl objective.base.gamma=4 trainer.normalize=valid", data)
        if full:
            assert_same(loss_here, expected)
        else:
            assert distance(loss_here[1], expected[1]) > 0.1


def test_steps_of_eagle_3_in_the_speculators_package() -> None:
    """Each step's mean over its valid positions times 0.8^step (their default is 1), summed: ours where every slot is
    valid."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.losses import exp_loss_decay
    from speculators.losses.eager import kl_div_loss
    from speculators.losses.utils import loss_function

    for full in (True, False):
        data = batch(full=full)
        steps = [
            loss_function(
                data.logits[:, k][None],
                data.target_logits[:, k][None],
                data.mask[:, k][None],
                torch.full((1, len(data.mask)), k),
                loss_fn=kl_div_loss,
                decay_fn=partial(exp_loss_decay, gamma=0.8),
            )
            for k in range(SLOTS)
        ]
        expected = with_gradient(torch.stack(steps).sum(), data)
        if full:
            assert_same(ours("objective=eagle3", data), expected)
        else:
            assert distance(ours("objective=eagle3", data)[1], expected[1]) > 0.05


def test_steps_of_mtp_in_the_speculators_package() -> None:
    """FastMTP's weights over their sum, times each step's mean."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.models.mtp.core import compute_step_weights

    data = batch(full=True)
    losses = torch.nn.functional.cross_entropy(data.logits.transpose(1, 2), data.tokens, reduction="none")
    expected = with_gradient((torch.tensor(compute_step_weights(0.6, SLOTS)) * losses.mean(dim=0)).sum(), data)
    assert_same(ours("objective=geometric", data), expected)
