"""The acceptance rule on drawn rounds."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specauf_cli.evaluation.verify import accepted_prefix, accepted_slotwise

Round = list[tuple[int, int]]
"""``(drafted, the target's own)`` token of every slot."""


@st.composite
def rounds(draw: st.DrawFn) -> list[Round]:
    """Rounds of one batch over few tokens, so that drafts are often right."""
    tokens = st.integers(0, 2)
    slots = draw(st.integers(1, 8))
    agreed = tokens.map(lambda token: (token, token))
    slot = agreed | agreed | st.tuples(tokens, tokens)
    return draw(st.lists(st.lists(slot, min_size=slots, max_size=slots), min_size=1, max_size=6))


def tensors(drawn: list[Round]) -> tuple[Tensor, Tensor]:
    both = torch.tensor(drawn)
    return both[..., 0], both[..., 1]


@given(drawn=rounds())
def test_the_accepted_prefix_is_that_of_a_loop(drawn: list[Round]) -> None:
    expected = []
    for slots in drawn:
        accepted = 0
        for drafted, true in slots:
            if drafted != true:
                break
            accepted += 1
        expected.append(accepted)
    assert accepted_prefix(*tensors(drawn)).tolist() == expected


@given(drawn=rounds())
def test_slot_by_slot_the_same_is_accepted_and_nothing_is_drafted_after_a_rejection(drawn: list[Round]) -> None:
    draft, truth = tensors(drawn)
    asked = [0] * len(drawn)

    def propose(slot: int, blocks: Tensor, before: Tensor) -> Tensor:
        for block, token in zip(blocks.tolist(), before.tolist(), strict=True):
            assert asked[block] == slot, "every earlier slot was asked for, once"
            asked[block] += 1
            assert token == (drawn[block][slot - 1][1] if slot else -block)
        return draft[blocks, slot]

    accepted = accepted_slotwise(propose, -torch.arange(len(drawn)), truth)
    assert torch.equal(accepted, accepted_prefix(draft, truth))
    assert asked == [min(count + 1, len(drawn[0])) for count in accepted.tolist()]


@given(drawn=rounds(), data=st.data())
def test_what_is_drafted_after_a_rejection_does_not_matter(drawn: list[Round], data: st.DataObject) -> None:
    draft, truth = tensors(drawn)
    accepted = accepted_prefix(draft, truth)
    behind = torch.arange(draft.shape[1]) > accepted[:, None]
    other = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=draft.numel(), max_size=draft.numel())))
    assert torch.equal(accepted_prefix(torch.where(behind, other.view(draft.shape), draft), truth), accepted)
