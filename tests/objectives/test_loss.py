"""The weighted block cross-entropy: against loops, mask == subset, finite gradients, accumulation, telemetry."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from specauf_cli.config.schema import ObjectiveConfig, TermConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives import credits
from specauf_cli.objectives.loss import (
    NORMALIZE,
    BranchLoss,
    block_facts,
    block_stats,
    branch_losses,
    cross_entropy,
    telemetry,
    weighted,
)
from specauf_cli.objectives.terms import bind
from specauf_cli.types import BlockStats

Credit = Callable[[BlockStats], Tensor]
CREDITS = {
    "full_ce": credits.full_ce,
    "decay": partial(credits.decay, gamma=3.0),
    "auf": credits.auf,
    "auf_decay": partial(credits.auf_decay, gamma=3.0),
}
N, K, V = 24, 6, 9

every_credit = pytest.mark.parametrize("credit", CREDITS.values(), ids=CREDITS)
every_normalize = pytest.mark.parametrize("normalize", NORMALIZE)


def losses(
    logits: dict[str, Tensor], labels: Tensor, mask: Tensor, objective: ObjectiveConfig, *, normalize: str
) -> dict[str, BranchLoss]:
    """Of all logits at once; every block is a sequence."""
    bound = bind(objective, normalize)
    facts = {
        name: block_facts(scores, labels, mask, None, bound.losses(name), bound.data) for name, scores in logits.items()
    }
    return branch_losses(facts, bound, sequences=len(mask))


def batch(seed: int = 0, blocks: int = N, slots: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are often right, labels, and masks of every length (none and all included)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (blocks, slots), generator=generator)
    logits = torch.randn(blocks, slots, V, generator=generator)
    sure = torch.rand(blocks, slots, generator=generator) < 0.6
    logits.scatter_add_(2, labels[..., None], 4.0 * sure[..., None])
    ends = torch.randint(0, slots + 1, (blocks, 1), generator=generator)
    ends[0], ends[1] = 0, slots
    return logits.requires_grad_(), labels, torch.arange(slots) < ends


def loss_and_gradient(
    logits: Tensor, labels: Tensor, mask: Tensor, credit: Credit, normalize: str
) -> tuple[float, float, Tensor]:
    made, ce = block_stats(logits, labels, mask)
    total, weight = weighted(ce, credit(made), mask, normalize=normalize, sequences=len(mask))
    (gradient,) = torch.autograd.grad(total, logits)
    return total.item(), weight.item(), gradient


def naive(ce: Tensor, credit: Tensor, mask: Tensor, normalize: str) -> tuple[float, float]:
    total = weight = 0.0
    for n in range(len(mask)):
        losses = credits_of_block = 0.0
        for k in range(mask.shape[1]):
            if mask[n, k]:
                losses += credit[n, k].item() * ce[n, k].item()
                credits_of_block += credit[n, k].item()
        if normalize == "block_credit":
            total += losses / credits_of_block if credits_of_block else 0.0
            weight += 1.0 if credits_of_block else 0.0
        else:
            total += losses
            valid = mask[n].sum().item()
            weight += {"credit": credits_of_block, "valid": valid}.get(normalize, float(valid > 0))
    return total, weight


def test_position_losses_are_cross_entropies_of_the_labels() -> None:
    logits, labels, mask = batch()
    made, ce = block_stats(logits, labels, mask)
    for n in range(N):
        for k in range(K):
            if mask[n, k]:
                row = logits[n, k].tolist()
                expected = math.log(sum(math.exp(x) for x in row)) - row[labels[n, k]]
                assert ce[n, k].item() == pytest.approx(expected, abs=1e-5)
                assert made.gold_logprob[n, k].item() == pytest.approx(-expected, abs=1e-5)
                assert made.correct[n, k].item() == (max(range(V), key=row.__getitem__) == labels[n, k])
            else:
                assert not made.correct[n, k]


@every_normalize
def test_loss_equals_the_double_loop(normalize: str) -> None:
    logits, labels, mask = batch()
    _, ce = block_stats(logits, labels, mask)
    credit = torch.rand(N, K, generator=torch.Generator().manual_seed(5))
    credit[3] = 0.0  # a block with valid slots and no credit
    credit[credit < 0.2] = 0.0
    assert mask[3].any()
    total, weight = weighted(ce, credit, mask, normalize=normalize, sequences=N)
    assert (total.item(), weight.item()) == pytest.approx(naive(ce, credit, mask, normalize), rel=1e-5)


def named(credit: Credit) -> TermConfig:
    """A credit with its knobs bound, as yaml names it."""
    function = getattr(credit, "func", credit)
    home = "" if function.__module__ == credits.__name__ else f"{function.__module__}."
    return TermConfig(home + function.__name__, knobs=getattr(credit, "keywords", {}))


def one_branch(credit: Credit) -> ObjectiveConfig:
    return ObjectiveConfig("test", "test", ("dflash",), named(credit))


def first_three(stats: BlockStats) -> Tensor:
    return stats.gold_logprob[:, :3]


@every_normalize
@pytest.mark.parametrize("reads", ["base", "final"])
def test_the_final_branch_ends_where_the_branch_it_reads_fails(reads: str, normalize: str) -> None:
    base, labels, mask = batch(seed=1)
    final, _, _ = batch(seed=2)
    objective = ObjectiveConfig("x_auf", "X-AUF", ("domino",), named(credits.auf), named(credits.auf), reads)
    found = losses({"base": base, "final": final}, labels, mask, objective, normalize=normalize)
    stats = {"base": block_stats(base, labels, mask), "final": block_stats(final, labels, mask)}
    assert not torch.equal(credits.auf(stats["base"][0]), credits.auf(stats["final"][0])), "the branches fail apart"
    for name, by in (("base", "base"), ("final", reads)):
        expected = naive(stats[name][1], credits.auf(stats[by][0]), mask, normalize)
        (pair,) = found[name].pairs
        assert (pair.total.item(), pair.weight.item()) == pytest.approx(expected, rel=1e-5)
        assert {k: int(v) for k, v in found[name].sums.items()} == {
            k: int(v) for k, v in telemetry(stats[name][0]).items()
        }


@every_credit
@every_normalize
def test_branch_loss_is_the_credits_loss(credit: Credit, normalize: str) -> None:
    logits, labels, mask = batch()
    made, ce = block_stats(logits, labels, mask)
    (pair,) = losses({"base": logits}, labels, mask, one_branch(credit), normalize=normalize)["base"].pairs
    expected = naive(ce, credit(made), mask, normalize)
    assert (pair.total.item(), pair.weight.item()) == pytest.approx(expected, rel=1e-5)


def test_normalisations_differ_on_uneven_blocks() -> None:
    logits, labels, mask = batch()
    values = set()
    for normalize in NORMALIZE:
        total, weight, _ = loss_and_gradient(logits, labels, mask, CREDITS["auf"], normalize)
        values.add(round(total / weight, 3))
    assert len(values) == len(NORMALIZE) - 1  # blocks and sequences are the same where each block is a sequence


def test_a_uniform_drafter_loses_log_v_whatever_the_credit() -> None:
    labels, mask = torch.randint(0, V, (4, K)), torch.ones(4, K, dtype=torch.bool)
    for credit in CREDITS.values():
        for normalize in ("credit", "block_credit"):
            total, weight, _ = loss_and_gradient(torch.zeros(4, K, V).requires_grad_(), labels, mask, credit, normalize)
            assert total / weight == pytest.approx(math.log(V), rel=1e-6)


@every_credit
@every_normalize
def test_masking_a_slot_equals_removing_it(credit: Credit, normalize: str) -> None:
    logits, labels, mask = batch()
    short = mask & (torch.arange(K) < 4)
    cut = logits[:, :4].detach().requires_grad_()
    total, weight, gradient = loss_and_gradient(logits, labels, short, credit, normalize)
    other, its_weight, its_gradient = loss_and_gradient(cut, labels[:, :4], mask[:, :4], credit, normalize)
    assert (total, weight) == pytest.approx((other, its_weight), rel=1e-6)
    assert torch.allclose(gradient[:, :4], its_gradient, atol=1e-7)
    assert not gradient[:, 4:].any()


@every_credit
@every_normalize
def test_masking_a_block_equals_removing_it(credit: Credit, normalize: str) -> None:
    logits, labels, mask = batch()
    gone = torch.arange(N) % 3 == 0
    kept = logits[~gone].detach().requires_grad_()
    total, weight, gradient = loss_and_gradient(logits, labels, mask & ~gone[:, None], credit, normalize)
    other, its_weight, its_gradient = loss_and_gradient(kept, labels[~gone], mask[~gone], credit, normalize)
    assert (total, weight) == pytest.approx((other, its_weight), rel=1e-6)
    assert torch.allclose(gradient[~gone], its_gradient, atol=1e-7)
    assert not gradient[gone].any()


@every_credit
def test_what_stands_in_masked_slots_is_ignored(credit: Credit) -> None:
    logits, labels, mask = batch()
    garbage = torch.where(mask[..., None], logits, 50 * torch.randn(N, K, V)).detach().requires_grad_()
    total, weight, gradient = loss_and_gradient(logits, labels, mask, credit, "credit")
    found = loss_and_gradient(garbage, labels.masked_fill(~mask, -100), mask, credit, "credit")
    assert found[:2] == (total, weight)
    assert torch.equal(found[2], gradient)


@every_credit
@every_normalize
def test_an_all_masked_batch_has_no_loss_and_a_finite_zero_gradient(credit: Credit, normalize: str) -> None:
    logits = (1e4 * torch.randn(3, K, V)).requires_grad_()
    nothing = torch.zeros(3, K, dtype=torch.bool)
    total, weight, gradient = loss_and_gradient(logits, torch.zeros(3, K).long(), nothing, credit, normalize)
    assert (total, weight) == (0.0, 0.0)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@every_credit
@every_normalize
def test_gradients_stay_finite_for_a_drafter_that_is_sure_and_wrong(credit: Credit, normalize: str) -> None:
    _, labels, mask = batch()
    logits = torch.zeros(N, K, V).scatter_(2, ((labels + 1) % V)[..., None], 1e4).requires_grad_()
    total, _, gradient = loss_and_gradient(logits, labels, mask, credit, normalize)
    assert math.isfinite(total)
    assert torch.isfinite(gradient).all()


def test_auf_teaches_up_to_the_breaker_and_nothing_behind_it() -> None:
    labels = torch.tensor([[1, 2, 3, 4]])
    logits = torch.zeros(1, 4, V).scatter_(2, torch.tensor([[[1], [2], [7], [4]]]), 3.0).requires_grad_()
    _, _, gradient = loss_and_gradient(logits, labels, torch.ones(1, 4, dtype=torch.bool), credits.auf, "credit")
    assert gradient.abs().sum(dim=2)[0].gt(0).tolist() == [True, True, True, False]
    assert gradient[0, 2, 3] < 0 < gradient[0, 2, 7]  # the breaker learns its label


@every_credit
def test_the_credit_is_a_constant_to_the_gradient(credit: Credit) -> None:
    logits, labels, mask = batch()
    made, ce = block_stats(logits, labels, mask)
    constant = torch.tensor(credit(made).tolist())
    (expected,) = torch.autograd.grad((torch.where(mask, ce, 0.0) * constant).sum(), logits)
    assert torch.allclose(loss_and_gradient(logits, labels, mask, credit, "credit")[2], expected, atol=1e-7)
    leaky = torch.ones(N, K, requires_grad=True)
    _, ce = block_stats(logits, labels, mask)
    total, weight = weighted(ce, leaky * 1.0, mask, normalize="credit")
    assert not weight.requires_grad
    assert torch.autograd.grad(total, leaky, allow_unused=True)[0] is None


@every_normalize
def test_a_credit_may_be_anything_outside_the_mask(normalize: str) -> None:
    logits, labels, mask = batch()
    _, ce = block_stats(logits, labels, mask)
    credit = torch.ones(N, K)
    wild = torch.where(mask, credit, torch.tensor(float("inf")))
    assert not mask.all()
    assert weighted(ce, wild, mask, normalize=normalize) == weighted(ce, credit, mask, normalize=normalize)


@every_credit
@every_normalize
def test_eight_micro_batches_divided_once_equal_one_batch(credit: Credit, normalize: str) -> None:
    logits, labels, mask = batch()
    total, weight, gradient = loss_and_gradient(logits, labels, mask, credit, normalize)
    pieces = logits.detach().requires_grad_()
    sums = torch.zeros(2)
    for part in torch.arange(N).chunk(8):
        made, ce = block_stats(pieces[part], labels[part], mask[part])
        pair = weighted(ce, credit(made), mask[part], normalize=normalize, sequences=len(part))
        pair[0].backward()
        sums += torch.stack(pair).detach()
    assert pieces.grad is not None
    assert (sums[0] / sums[1]).item() == pytest.approx(total / weight, abs=1e-6)
    assert torch.allclose(pieces.grad / sums[1], gradient / weight, atol=1e-6, rtol=0)


def test_an_unknown_normalisation_names_the_nearest() -> None:
    logits, labels, mask = batch()
    with pytest.raises(InputError, match=r"'blok' is none of credit, .*, sequence\. Did you mean 'blocks'\?"):
        losses({"base": logits}, labels, mask, one_branch(credits.auf), normalize="blok")


def test_a_credit_of_another_shape_is_named() -> None:
    logits, labels, mask = batch()
    odd = one_branch(first_three)
    with pytest.raises(InputError, match=r"objective 'test': its credit for branch base has shape \[\d+, 3\]"):
        losses({"base": logits}, labels, mask, odd, normalize="credit")


def test_low_precision_logits_are_evaluated_in_fp32() -> None:
    logits, labels, mask = batch()
    low = logits.detach().bfloat16()
    made, ce = block_stats(low, labels, mask)
    same, reference = block_stats(low.float(), labels, mask)
    assert ce.dtype == made.gold_logprob.dtype == torch.float32
    assert torch.equal(ce, reference)
    assert torch.equal(made.correct, same.correct)


@pytest.mark.parametrize("scale", [0.1, 5.0, 300.0])
def test_cross_entropy_is_that_of_torch_in_value_and_gradient(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(54, 50, generator=generator)
    labels, weights = torch.randint(0, 50, (54,), generator=generator), torch.rand(54, generator=generator)
    values, gradients = list[Tensor](), list[Tensor]()
    for of in (lambda x: cross_entropy(x, labels)[0], lambda x: F.cross_entropy(x, labels, reduction="none")):
        leaf = logits.clone().requires_grad_()
        ce = of(leaf)
        torch.autograd.backward((ce * weights).sum())
        assert leaf.grad is not None
        values.append(ce.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*values, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.equal(cross_entropy(logits, labels)[1], logits.argmax(dim=-1) == labels)


@pytest.mark.parametrize("vocabulary", [8, 1000, 40_000])
def test_ties_of_the_argmax_go_to_the_lowest_id(vocabulary: int) -> None:
    logits = torch.zeros(1, 3, vocabulary)
    best = [vocabulary // 3, vocabulary // 2, vocabulary - 1]
    logits[0, 1, best] = 1.0
    logits[0, 2, best[1:]] = 1.0
    valid = torch.ones(1, 3, dtype=torch.bool)
    for labels, expected in (
        ([0, best[0], best[1]], [True, True, True]),
        ([1, best[1], best[2]], [False, False, False]),
    ):
        made, _ = block_stats(logits, torch.tensor([labels]), valid)
        assert made.correct[0].tolist() == expected


def test_telemetry_equals_a_loop() -> None:
    logits, labels, mask = batch(seed=3, blocks=60)
    made, _ = block_stats(logits, labels, mask)
    expected = dict.fromkeys(("valid", "seen", "correct", "support", "support_correct", "blocks", "accepted"), 0)
    for correct, valid in zip(made.correct.tolist(), mask.tolist(), strict=True):
        length = sum(valid)
        expected["valid"] += length
        expected["seen"] += length
        expected["correct"] += sum(correct[:length])
        expected["blocks"] += length > 0
        accepted = next((i for i in range(length) if not correct[i]), length)
        support = min(accepted + 1, length)
        expected["accepted"] += accepted
        expected["support"] += support
        expected["support_correct"] += sum(correct[:support])
    assert {k: int(v) for k, v in telemetry(made).items()} == expected
    assert all(expected.values())


@every_credit
def test_telemetry_does_not_depend_on_the_credit(credit: Credit) -> None:
    logits, labels, mask = batch()
    made, _ = block_stats(logits, labels, mask)
    sums = losses({"base": logits}, labels, mask, one_branch(credit), normalize="credit")["base"].sums
    assert {k: int(v) for k, v in sums.items()} == {k: int(v) for k, v in telemetry(made).items()}


def test_shapes_are_checked_at_run_time() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        weighted(torch.zeros(4, 3), torch.zeros(4, 2), torch.ones(4, 3, dtype=torch.bool), normalize="credit")
