"""Every credit on blocks worked by hand, in its limits, and the AUF support against a naive loop.

Also how a credit is bound by name: its knobs, the data it asks for, and what is refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.credits import CREDITS
from specauf_cli.config import names
from specauf_cli.config.schema import TermConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives import credits
from specauf_cli.objectives.loss import block_stats
from specauf_cli.types import BlockStats

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


def test_credits_take_data_and_keyword_knobs_without_defaults() -> None:
    shipped = [f for n, f in vars(credits).items() if inspect.isfunction(f) and f.__module__ == credits.__name__]
    shipped = [f for f in shipped if not f.__name__.startswith("_")]
    assert credits.auf in shipped
    for credit in shipped:
        first, *others = inspect.signature(credit).parameters.values()
        assert first.name == "stats"
        assert all(p.kind is p.KEYWORD_ONLY or p.name in names.PROVIDED for p in others), credit
        assert all(p.default is p.empty for p in others), credit
        assert inspect.getdoc(credit), credit


# one block of four slots, its last one masked: q = 1/2, 1/4, 1/2; the second is the first miss
Q = [0.5, 0.25, 0.5]
WORKED = [
    ("chain", {}, [0.5 + 0.125 + 0.0625, 0.125 + 0.0625, 0.0625]),
    ("dpace", {"alpha": 0}, [0.6875, 0.1875, 0.0625]),
    # s = .75, .625, .75; prefixes .75, .46875, .3515625
    ("dpace", {"alpha": 0.5}, [0.75 + 0.46875 + 0.3515625, 0.46875 + 0.3515625, 0.3515625]),
    ("dpace_prefix", {"alpha": 0.5}, [0.75, 0.46875, 0.3515625]),
    ("dpace_continuation", {"alpha": 0.5}, [1 + 0.625 + 0.46875, 1 + 0.75, 1]),
    ("focal_breaker", {}, [0, 1, 0]),
    ("geometric", {"beta": 0.5}, [1, 0.5, 0.25]),
    ("breakerless_auf", {}, [1, 0, 0]),
    ("tail", {}, [0, 0, 1]),
    ("floor_auf", {"eps": 0.1}, [1, 1, 0.1]),
    # the ranks of the labels are 0, 2, 1
    ("top_k_auf", {"k": 1}, [1, 1, 0]),
    ("top_k_auf", {"k": 2}, [1, 1, 0]),
    ("top_k_auf", {"k": 3}, [1, 1, 1]),
    # the target's probabilities of the labels are 1/2, 1/4, 1
    ("target_confidence", {}, [1, 0.5, 0.125]),
    # overlaps 1/2, 1, 1/4
    ("dpace_overlap", {"alpha": 0.5}, [0.75 + 0.75 + 0.46875, 0.75 + 0.46875, 0.46875]),
    ("expected_length", {}, [0.5 + 0.5 + 0.125, 0.5 + 0.125, 0.125]),
    ("warm_auf", {"gamma": 2.0, "until": 0.3}, [1, 1, 0]),
    ("warm_auf", {"gamma": 2.0, "until": 0.5}, FALL[:3]),
]


@pytest.mark.parametrize("outside", [0.0, math.nan, math.inf], ids=str)
@pytest.mark.parametrize(("name", "knobs", "expected"), WORKED, ids=[f"{n}-{k}" for n, k, _ in WORKED])
def test_a_block_worked_by_hand(name: str, knobs: dict[str, float], expected: list[float], outside: float) -> None:
    """Whatever is outside the mask, the credit inside is the same."""
    read = BlockStats(
        correct=torch.tensor([[True, False, True, False]]),
        gold_logprob=torch.cat([torch.tensor(Q).log(), torch.tensor([outside])])[None],
        mask=torch.tensor([[True, True, True, False]]),
    )
    data = {
        "gold_rank": torch.tensor([[0, 2, 1, 99]]),
        "target_gold_logprob": torch.cat([torch.tensor([0.5, 0.25, 1.0]).log(), torch.tensor([outside])])[None],
        "overlap": torch.tensor([[0.5, 1.0, 0.25, outside]]),
        "progress": 0.3,
    }
    credit = names.credit(TermConfig(name, knobs=knobs))
    weights = credit(read, **{n: data[n] for n in names.needs(credit)})
    assert weights[0, :3].tolist() == pytest.approx(expected, abs=1e-6)


def test_shuffled_auf_takes_the_support_of_the_block_half_a_batch_away() -> None:
    read = stats(
        [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    )  # supports 111, 100, 110, 110
    assert credits.shuffled_auf(read).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_shuffled_auf_stays_inside_the_mask_of_the_block() -> None:
    read = stats([[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    assert credits.shuffled_auf(read).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_shuffled_auf_of_one_block_is_its_own() -> None:
    read = stats([[1, 0, 1]], [[1, 1, 1]])
    assert torch.equal(credits.shuffled_auf(read), credits.auf(read))


def test_static_auf_is_the_mean_over_the_blocks_whose_slot_is_valid() -> None:
    read = stats(
        [[1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]],
    )  # supports 1110, 1000, 1100, 1000
    assert credits.static_auf(read).tolist() == [pytest.approx([1, 2 / 3, 1 / 2, 0])] * 4


def test_dpace_at_alpha_1_counts_the_valid_slots_that_remain() -> None:
    read = random_stats(50, 7, seed=5)
    left = read.mask.flip(1).cumsum(1).flip(1).float()
    assert torch.equal(credits.dpace(read, alpha=1) * read.mask, left)
    assert torch.equal(credits.dpace_continuation(read, alpha=1) * read.mask, left)
    assert torch.equal(credits.dpace_prefix(read, alpha=1), torch.ones(50, 7))


def test_top_1_auf_is_auf_even_where_a_wrong_token_is_as_likely_as_the_label() -> None:
    logits = torch.randint(0, 3, (400, 6, 4)).float()  # mostly with ties
    labels = torch.randint(0, 4, (400, 6))
    read, _ = block_stats(logits, labels, torch.ones(400, 6, dtype=torch.bool))
    rank = (logits > logits.gather(-1, labels[..., None])).sum(-1)
    assert ((rank == 0) & ~read.correct).any()
    assert torch.equal(credits.top_k_auf(read, rank, k=1), credits.auf(read))
    assert torch.equal(credits.top_k_auf(read, rank, k=4), credits.full_ce(read))


def test_the_limits_of_the_controls() -> None:
    read = random_stats(50, 7, seed=6)
    assert torch.equal(credits.floor_auf(read, eps=0), credits.auf(read))
    assert torch.equal(credits.floor_auf(read, eps=1), credits.full_ce(read))
    assert torch.equal(credits.breakerless_auf(read) + credits.focal_breaker(read), credits.auf(read))
    assert torch.equal(credits.auf(read) + credits.tail(read), credits.full_ce(read) * read.mask)
    assert torch.equal(credits.geometric(read, beta=1), credits.full_ce(read))
    assert torch.equal(credits.target_confidence(read, torch.zeros(50, 7)), credits.full_ce(read))


@pytest.mark.parametrize(("progress", "until"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.5), (0.999, 0.0)])
def test_warm_auf_ends_as_auf(progress: float, until: float) -> None:
    read = random_stats(20, 5, seed=7)
    assert torch.equal(credits.warm_auf(read, progress, gamma=7, until=until), credits.auf(read))


@pytest.mark.parametrize(("progress", "until"), [(0.0, 0.1), (0.49, 0.5), (0.999, 1.0)])
def test_warm_auf_starts_as_decay(progress: float, until: float) -> None:
    read = random_stats(20, 5, seed=8)
    assert torch.equal(credits.warm_auf(read, progress, gamma=7, until=until), credits.decay(read, gamma=7))


@pytest.mark.parametrize("name", credits.TRUNCATING)
def test_a_truncating_credit_is_zero_after_the_first_miss_whatever_comes_there(name: str) -> None:
    credit = names.credit(TermConfig(name, knobs={"gamma": 7.0} if "decay" in name else {}))
    read = random_stats(50, 7, seed=9)
    support = credits.support(read)
    known = BlockStats(read.correct & support, read.gold_logprob * support, read.mask)
    assert torch.equal(credit(read), credit(known))
    assert not (credit(read) * ~support).any()


@pytest.mark.parametrize(
    ("credit", "says"),
    [
        (partial(credits.dpace, alpha=-0.1), "alpha must be from 0 to 1, got -0.1"),
        (partial(credits.dpace_prefix, alpha=1.1), "alpha must be from 0 to 1, got 1.1"),
        (partial(credits.dpace_continuation, alpha=math.nan), "alpha must be from 0 to 1, got nan"),
        (partial(credits.geometric, beta=0), "beta must be above 0 and at most 1, got 0"),
        (partial(credits.geometric, beta=math.nan), "beta must be above 0 and at most 1, got nan"),
        (partial(credits.floor_auf, eps=-0.1), "eps must be from 0 to 1, got -0.1"),
        (partial(credits.top_k_auf, gold_rank=torch.zeros(2, 3, dtype=torch.long), k=0), "k must be .* >= 1, got 0"),
        (partial(credits.warm_auf, progress=0.5, gamma=7, until=1.5), "until must be a share .*, got 1.5"),
        (partial(credits.warm_auf, progress=0.5, gamma=0, until=0.1), "gamma must be > 0 slots, got 0"),
    ],
)
def test_a_knob_out_of_range_is_refused(credit: Callable[[BlockStats], Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        credit(random_stats(2, 3, seed=0))


NEEDS = {
    "top_k_auf": ({"k": 3}, {"gold_rank"}),
    "target_confidence": ({}, {"target_gold_logprob"}),
    "expected_length": ({}, {"overlap"}),
    "warm_auf": ({"gamma": 7.0, "until": 0.2}, {"progress"}),
    "dpace": ({"alpha": 0.5}, set()),
    "auf": ({}, set()),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_credit_says_by_its_signature_what_it_needs(name: str) -> None:
    knobs, needed = NEEDS[name]
    config = TermConfig(name, knobs=knobs)
    assert names.needs(names.credit(config)) == names.needs(getattr(credits, name)) == needed
    names.try_term(config, "objective.base")


def minus(stats: BlockStats) -> Tensor:
    return stats.gold_logprob


def nan_at_a_miss(stats: BlockStats) -> Tensor:
    return stats.correct / stats.correct


def nan_outside_the_mask(stats: BlockStats) -> Tensor:
    return stats.mask / stats.mask


def per_block(stats: BlockStats) -> Tensor:
    return stats.mask.float().mean(dim=1)


def asks_wrongly(stats: BlockStats, gold_ranks: Tensor) -> Tensor:
    return gold_ranks


def asks_for_all(
    stats: BlockStats, progress: float, overlap: Tensor, gold_rank: Tensor, target_gold_logprob: Tensor
) -> Tensor:
    return overlap + gold_rank - target_gold_logprob + progress


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (minus, r"^objective\.base: \S+\.minus is no credit: its weights must be finite and >= 0, got -1$"),
        (nan_at_a_miss, "nan_at_a_miss is no credit: its weights must be finite and >= 0, got nan$"),
        (
            per_block,
            r"per_block is no credit: it must give one weight for each block and slot, \[N, K\] = .*; it gave \[",
        ),
        (
            asks_wrongly,
            r"^objective\.base\.credit='\S+\.asks_wrongly' asks for 'gold_ranks', which is no data of a block; "
            r"valid after the first argument: gold_rank, target_gold_logprob, overlap, progress .* "
            r"Did you mean 'gold_rank'\?$",
        ),
    ],
)
def test_a_function_that_is_no_credit_is_refused_in_one_line(function: Callable[..., Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        names.try_term(TermConfig(f"{__name__}.{function.__name__}"), "objective.base")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [asks_for_all, nan_outside_the_mask])
def test_a_credit_of_ones_own_is_tried_with_the_data_it_asks_for(function: Callable[..., Tensor]) -> None:
    names.try_term(TermConfig(f"{__name__}.{function.__name__}"), "objective.base")


def test_a_knob_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"base\.k=2\.5 is not valid; expected a whole number"):
        names.try_term(TermConfig("top_k_auf", knobs={"k": 2.5}), "base")
    with pytest.raises(InputError, match=r"^base: k must be a whole number of tokens >= 1, got 0$"):
        names.try_term(TermConfig("top_k_auf", knobs={"k": 0}), "base")
