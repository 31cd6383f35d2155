"""Every credit on blocks worked by hand, in its limits, and the AUF support against a naive loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from specauf_cli.errors import InputError
from specauf_cli.objectives import credits
from specauf_cli.objectives.loss import block_stats
from specauf_cli.types import BlockStats

CREDITS = [
    credits.full_ce,
    partial(credits.decay, gamma=7.0),
    credits.auf,
    partial(credits.auf_decay, gamma=7.0),
]
FALL = [1.0, 0.60653066, 0.36787944, 0.22313016, 0.13533528]  # exp(-(i - 1) / 2), i = 1..5

# correct, valid -> support, all of five slots
BLOCKS = {
    "breaker in the middle": ([1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]),
    "breaker first": ([0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
    "breaker last": ([1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "two misses, the first one counts": ([1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]),
    "no mismatch": ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "all wrong": ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
    "short block, no mismatch": ([1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
    "short block, breaker": ([1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]),
    "all masked": ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
}


def stats(correct: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> BlockStats:
    hit, valid = torch.tensor(correct).bool(), torch.tensor(mask).bool()
    return BlockStats(correct=hit & valid, gold_logprob=torch.full(valid.shape, -0.7), mask=valid)


def random_stats(blocks: int, slots: int, seed: int, accuracy: float = 0.7) -> BlockStats:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, slots + 1, (blocks, 1), generator=generator)
    mask = torch.arange(slots) < ends
    correct = (torch.rand(blocks, slots, generator=generator) < accuracy) & mask
    return BlockStats(correct, torch.randn(blocks, slots, generator=generator) - 1, mask)


def check(credit: Callable[[BlockStats], Tensor], block: str, expected: Sequence[float]) -> None:
    """The credit that the loss sees, i.e. inside the mask."""
    correct, mask, _ = BLOCKS[block]
    made = stats([correct], [mask])
    assert torch.allclose(credit(made) * made.mask, torch.tensor([expected]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_hand_worked_full_ce(block: str) -> None:
    check(credits.full_ce, block, [float(m) for m in BLOCKS[block][1]])


@pytest.mark.parametrize("block", BLOCKS)
def test_hand_worked_decay(block: str) -> None:
    check(partial(credits.decay, gamma=2.0), block, [m * f for m, f in zip(BLOCKS[block][1], FALL, strict=True)])


@pytest.mark.parametrize("block", BLOCKS)
def test_hand_worked_auf(block: str) -> None:
    check(credits.auf, block, [float(s) for s in BLOCKS[block][2]])


@pytest.mark.parametrize("block", BLOCKS)
def test_hand_worked_auf_decay(block: str) -> None:
    check(partial(credits.auf_decay, gamma=2.0), block, [s * f for s, f in zip(BLOCKS[block][2], FALL, strict=True)])


def test_blocks_of_a_batch_do_not_mix() -> None:
    together = stats([b[0] for b in BLOCKS.values()], [b[1] for b in BLOCKS.values()])
    assert credits.auf(together).tolist() == [[float(s) for s in b[2]] for b in BLOCKS.values()]


def test_the_papers_gamma_over_fifteen_slots() -> None:
    made = stats([[1] * 15], [[1] * 15])
    expected = [math.exp(-i / 7) for i in range(15)]
    assert credits.decay(made, gamma=7.0)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert credits.decay(made, gamma=7.0)[0, -1].item() == pytest.approx(math.exp(-2))


@pytest.mark.parametrize("gamma", [1e9, math.inf])
def test_without_decay_the_decayed_credits_are_the_plain_ones(gamma: float) -> None:
    made = random_stats(50, 7, seed=1)
    assert torch.allclose(credits.decay(made, gamma=gamma), credits.full_ce(made), atol=1e-7, rtol=0)
    assert torch.allclose(credits.auf_decay(made, gamma=gamma), credits.auf(made), atol=1e-7, rtol=0)


def test_with_immediate_decay_only_the_first_slot_counts() -> None:
    made = random_stats(50, 7, seed=2)
    first = torch.zeros(50, 7)
    first[:, 0] = 1
    assert torch.allclose(credits.decay(made, gamma=1e-3), first, atol=1e-30, rtol=0)
    assert torch.allclose(credits.auf_decay(made, gamma=1e-3), first * made.mask, atol=1e-30, rtol=0)


def test_without_a_mismatch_auf_is_full_ce() -> None:
    made = random_stats(50, 7, seed=3, accuracy=1.1)
    assert made.correct.equal(made.mask)
    assert torch.equal(credits.auf(made), credits.full_ce(made) * made.mask)


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.9])
def test_support_equals_its_definition_as_a_loop(accuracy: float) -> None:
    made = random_stats(300, 7, seed=int(accuracy * 10), accuracy=accuracy)
    expected = []
    for correct, mask in zip(made.correct.tolist(), made.mask.tolist(), strict=True):
        valid = [i for i, m in enumerate(mask) if m]
        breaker = next((j for j in valid if not correct[j]), None)
        kept = [i for i in valid if breaker is None or i <= breaker]
        expected.append([i in kept for i in range(7)])
    assert credits.support(made).tolist() == expected
    assert credits.auf(made).bool().tolist() == expected


@pytest.mark.parametrize("credit", CREDITS)
def test_a_credit_is_finite_not_negative_and_shaped_like_the_block(credit: Callable[[BlockStats], Tensor]) -> None:
    made = random_stats(40, 5, seed=4)
    found = credit(made)
    assert found.shape == made.mask.shape
    assert found.dtype == made.gold_logprob.dtype
    assert torch.isfinite(found).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("credit", CREDITS)
def test_a_credit_never_carries_a_gradient(credit: Callable[[BlockStats], Tensor]) -> None:
    logits = torch.randn(6, 5, 11, requires_grad=True)
    made, ce = block_stats(logits, torch.randint(0, 11, (6, 5)), torch.ones(6, 5, dtype=torch.bool))
    assert ce.requires_grad
    assert not any(field.requires_grad for field in (made.correct, made.gold_logprob, made.mask))
    assert not credit(made).requires_grad


@pytest.mark.parametrize("credit", [credits.decay, credits.auf_decay])
@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_a_gamma_that_is_no_length_is_refused(credit: Callable[..., Tensor], gamma: float) -> None:
    with pytest.raises(InputError, match=f"gamma must be > 0 slots, got {gamma}"):
        credit(random_stats(2, 3, seed=0), gamma=gamma)


@pytest.mark.parametrize("credit", [credits.decay, credits.auf_decay])
def test_a_missing_or_unknown_knob_is_an_error(credit: Callable[..., Tensor]) -> None:
    made = random_stats(2, 3, seed=0)
    with pytest.raises(TypeError, match="gamma"):
        credit(made)
    with pytest.raises(TypeError, match="gama"):
        credit(made, gamma=7.0, gama=7.0)


def test_credits_take_statistics_and_keyword_knobs_without_defaults() -> None:
    made = [f for name, f in vars(credits).items() if inspect.isfunction(f) and f.__module__ == credits.__name__]
    assert len(made) >= 4
    for credit in made:
        first, *knobs = inspect.signature(credit).parameters.values()
        assert first.name == "stats"
        assert all(k.kind is k.KEYWORD_ONLY and k.default is k.empty for k in knobs), credit
