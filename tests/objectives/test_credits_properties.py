"""Supports and credits of drawn blocks: what holds for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.drawn import Block, blocks, stats_of
from specauf_cli.objectives import credits
from specauf_cli.types import BlockStats

CREDITS = [
    credits.full_ce,
    partial(credits.decay, gamma=7.0),
    credits.auf,
    partial(credits.auf_decay, gamma=7.0),
]
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
