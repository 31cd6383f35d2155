"""Supports and credits of drawn blocks: what holds for every one of them.

Among it: agreement with the definitions as loops, and gradients of the losses that the credits stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.credits import CREDITS
from helpers.drawn import Block, blocks, stats_of
from specauf_cli.objectives import credits
from specauf_cli.types import BlockStats

TRUNCATING = [credits.auf, partial(credits.auf_decay, gamma=7.0)]


def support_of(block: Block) -> list[bool]:
    """The definition, slot by slot: valid, and no earlier slot is wrong."""
    kept, alive = [], True
    for correct, valid in block:
        kept.append(valid and alive)
        alive = alive and correct
    return kept


@given(drawn=blocks())
def test_the_support_is_its_definition_for_every_block(drawn: list[Block]) -> None:
    assert credits.support(stats_of(drawn)).tolist() == [support_of(block) for block in drawn]


@given(drawn=blocks())
def test_the_support_is_a_prefix_inside_the_mask_and_never_empty_where_the_mask_is_not(drawn: list[Block]) -> None:
    stats = stats_of(drawn)
    support = credits.support(stats)
    assert torch.equal(support, support.long().cumprod(dim=1).bool())
    assert not (support & ~stats.mask).any()
    assert torch.equal(support.any(dim=1), stats.mask.any(dim=1))


@given(drawn=blocks(), data=st.data())
def test_one_more_correct_slot_never_shortens_the_support(drawn: list[Block], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(drawn) - 1))
    slot = data.draw(st.integers(0, len(drawn[row]) - 1))
    valid = drawn[row][slot][1]
    better = [*drawn[:row], [*drawn[row][:slot], (valid, valid), *drawn[row][slot + 1 :]], *drawn[row + 1 :]]
    before, after = credits.support(stats_of(drawn)), credits.support(stats_of(better))
    assert not (before & ~after).any()


@given(drawn=blocks(), data=st.data())
def test_what_is_predicted_after_the_first_wrong_token_changes_no_support(
    drawn: list[Block], data: st.DataObject
) -> None:
    other = []
    for block in drawn:
        first_wrong = next((i for i, (correct, valid) in enumerate(block) if valid and not correct), len(block))
        drawn_anew = data.draw(st.lists(st.booleans(), min_size=len(block), max_size=len(block)))
        other.append(
            [
                (correct if i <= first_wrong else anew and valid, valid)
                for i, ((correct, valid), anew) in enumerate(zip(block, drawn_anew, strict=True))
            ]
        )
    for credit in TRUNCATING:
        assert torch.equal(credit(stats_of(drawn)), credit(stats_of(other)))


@pytest.mark.parametrize("credit", CREDITS)
@given(drawn=blocks())
def test_a_credit_is_finite_and_not_negative(credit: Callable[[BlockStats], Tensor], drawn: list[Block]) -> None:
    stats = stats_of(drawn)
    values = credit(stats)
    assert values.shape == stats.mask.shape
    assert torch.isfinite(values).all()
    assert (values >= 0).all()


@pytest.mark.parametrize("credit", TRUNCATING)
@given(drawn=blocks())
def test_a_truncating_credit_is_zero_outside_the_support(
    credit: Callable[[BlockStats], Tensor], drawn: list[Block]
) -> None:
    stats = stats_of(drawn)
    assert torch.equal(credit(stats) > 0, credits.support(stats))


@given(drawn=blocks(), gamma=st.floats(0.5, 100.0))
def test_a_decayed_credit_never_grows_along_a_block(drawn: list[Block], gamma: float) -> None:
    for credit in (credits.decay, credits.auf_decay):
        assert (credit(stats_of(drawn), gamma=gamma).diff(dim=1) <= 0).all()


def probabilities(mask: Tensor, data: st.DataObject) -> Tensor:
    """Drawn ones, 0 and 1 included, of every slot of the blocks."""
    count = mask.numel()
    values = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-6, 1.0))
    drawn = data.draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=torch.float64).view(mask.shape)


def product_sums(s: list[float], mask: list[bool], first: bool) -> list[float]:
    """sum_{k>=i} m_k prod_{l<=k} s_l, or with the product from i + 1 on, for one block; the definition as loops."""
    slots = range(len(s))
    return [
        sum(mask[k] * math.prod(s[j] for j in range(0 if first else i + 1, k + 1)) for k in slots if k >= i)
        for i in slots
    ]


@given(drawn=blocks(), alpha=st.sampled_from([0, 0.0, 0.1, 0.5, 1.0]), data=st.data())
def test_dpace_and_its_factors_are_their_definitions(drawn: list[Block], alpha: float, data: st.DataObject) -> None:
    mask = stats_of(drawn).mask
    q = probabilities(mask, data)
    stats = BlockStats(stats_of(drawn).correct, q.log(), mask)
    smooth = [
        [(1 - alpha) * x + alpha if m else 1.0 for x, m in zip(*row, strict=True)]
        for row in zip(q.tolist(), mask.tolist(), strict=True)
    ]
    prefix = [[math.prod(s[: i + 1]) for i in range(len(s))] for s in smooth]
    for credit, expected in [
        (credits.dpace, [product_sums(s, m, True) for s, m in zip(smooth, mask.tolist(), strict=True)]),
        (credits.dpace_prefix, prefix),
        (credits.dpace_continuation, [product_sums(s, m, False) for s, m in zip(smooth, mask.tolist(), strict=True)]),
    ]:
        torch.testing.assert_close(
            credit(stats, alpha=alpha), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )


@given(drawn=blocks(), data=st.data())
def test_credits_over_the_target_are_their_definitions(drawn: list[Block], data: st.DataObject) -> None:
    stats = stats_of(drawn)
    p = probabilities(stats.mask, data)
    stats = BlockStats(stats.correct, stats.gold_logprob.double(), stats.mask)
    before = [[math.prod(row[:i]) for i in range(len(row))] for row in p.tolist()]
    weights = credits.target_confidence(stats, p.log()) * stats.mask
    expected = torch.tensor(before, dtype=torch.float64) * stats.mask
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
    sums = [
        product_sums([x if m else 1.0 for x, m in zip(*row, strict=True)], row[1], True)
        for row in zip(p.tolist(), stats.mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        credits.expected_length(stats, p), torch.tensor(sums, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@given(drawn=blocks(), data=st.data())
def test_top_k_auf_grows_with_k_from_auf_to_full_ce(drawn: list[Block], data: st.DataObject) -> None:
    stats = stats_of(drawn)
    count = stats.mask.numel()
    wrong = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))).view(stats.mask.shape)
    rank = torch.where(stats.correct, 0, wrong)
    weights = [credits.top_k_auf(stats, rank, k=k) for k in range(1, 8)]
    assert torch.equal(weights[0], credits.auf(stats))
    assert torch.equal(weights[-1], credits.full_ce(stats) * stats.mask)
    assert all((narrow <= wide).all() for narrow, wide in pairwise(weights))


@given(drawn=blocks())
def test_the_parts_of_a_block_add_up(drawn: list[Block]) -> None:
    stats = stats_of(drawn)
    assert torch.equal(credits.breakerless_auf(stats) + credits.focal_breaker(stats), credits.auf(stats))
    assert torch.equal(credits.auf(stats) + credits.tail(stats), stats.mask.float())
    assert (credits.focal_breaker(stats).sum(dim=1) == (stats.mask & ~stats.correct).any(dim=1)).all()


@given(drawn=blocks())
def test_credits_of_the_batch_keep_the_amount_of_credit(drawn: list[Block]) -> None:
    """Static always; shuffled where all blocks are as long."""
    stats = stats_of(drawn)
    by_slot = credits.auf(stats).sum(dim=0)
    torch.testing.assert_close((credits.static_auf(stats) * stats.mask).sum(dim=0), by_slot)
    full = BlockStats(stats.correct, stats.gold_logprob, torch.ones_like(stats.mask))
    assert torch.equal(credits.shuffled_auf(full).sum(dim=0), credits.auf(full).sum(dim=0))


@given(seed=st.integers(0, 10_000), drawn=blocks())
def test_cross_entropy_times_chain_has_the_gradient_of_the_chain_loss(seed: int, drawn: list[Block]) -> None:
    """-sum_k m_k prod_{j<=k} q_j, written out and not detached."""
    mask = stats_of(drawn).mask
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*mask.shape, 5, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 5, mask.shape, generator=generator)
    logprob = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    stats = BlockStats((logits.argmax(-1) == labels) & mask, logprob.detach(), mask)
    (by_credit,) = torch.autograd.grad((-logprob * credits.chain(stats) * mask).sum(), logits, retain_graph=True)
    (written_out,) = torch.autograd.grad(-(logprob.cumsum(dim=1).exp() * mask).sum(), logits)
    torch.testing.assert_close(by_credit, written_out)


@given(seed=st.integers(0, 10_000), drawn=blocks())
def test_log_overlap_times_expected_length_has_the_gradient_of_the_expected_length(
    seed: int, drawn: list[Block]
) -> None:
    """-sum_k m_k prod_{j<=k} overlap_j, written out and not detached."""
    mask = stats_of(drawn).mask
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*mask.shape, 5, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(*mask.shape, 5, generator=generator, dtype=torch.float64).softmax(-1)
    overlap = torch.minimum(logits.softmax(-1), target).sum(-1)
    stats = BlockStats(torch.zeros_like(mask), torch.zeros(mask.shape, dtype=torch.float64), mask)
    weights = credits.expected_length(stats, overlap.detach())
    (by_credit,) = torch.autograd.grad((-overlap.log() * weights * mask).sum(), logits, retain_graph=True)
    (written_out,) = torch.autograd.grad(-(overlap.cumprod(dim=1) * mask).sum(), logits)
    torch.testing.assert_close(by_credit, written_out)
