"""The losses of the ``speculators`` package: same values and gradients at equal inputs, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

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
