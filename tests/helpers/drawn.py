"""Hypothesis strategies that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from hypothesis import strategies as st

from specauf_cli.errors import InputError
from specauf_cli.types import BlockStats

T = TypeVar("T")

Block = list[tuple[bool, bool]]
"""``(correct, valid)`` of every slot; the valid ones are a prefix, and nothing else is correct."""


@st.composite
def blocks(draw: st.DrawFn, *, most_blocks: int = 6, most_slots: int = 8) -> list[Block]:
    """Blocks of one batch: all with the same number of slots, with masks of every length."""
    slots = draw(st.integers(1, most_slots))
    drawn = []
    for _ in range(draw(st.integers(1, most_blocks))):
        length = draw(st.integers(0, slots))
        correct = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        drawn.append([(c, True) for c in correct] + [(False, False)] * (slots - length))
    return drawn


def stats_of(drawn: list[Block]) -> BlockStats:
    """The statistics of drawn blocks; every log-probability is the same."""
    correct, mask = (torch.tensor([[slot[i] for slot in block] for block in drawn]) for i in (0, 1))
    return BlockStats(correct, torch.full(mask.shape, -0.7), mask)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
"""Anything that a JSON file can hold, not-a-number and infinities included: Python reads and writes them."""


def outcome(action: Callable[[], T]) -> tuple[T | None, str]:
    """What ``action`` returns, or None and the text of its InputError; any other exception is the test's failure."""
    try:
        return action(), ""
    except InputError as error:
        return None, str(error)
