"""Anchors, labels and masks of drawn sequences, against a loop over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specauf_cli.models.blocks import collate, labels_and_mask, previous_tokens, sample_anchors, valid_anchors
from specauf_cli.types import Example

PAD = 7


@dataclass(frozen=True)
class Drawn:
    """Sequences, and blocks in them at any position: anchors of a training and others."""

    tokens: Tensor
    supervised: Tensor
    anchors: Tensor
    real: Tensor
    slots: int


@st.composite
def sequences(draw: st.DrawFn) -> Drawn:
    rows, length, count = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4))

    def table(values: st.SearchStrategy[int] | st.SearchStrategy[bool], width: int) -> Tensor:
        return torch.tensor([draw(st.lists(values, min_size=width, max_size=width)) for _ in range(rows)])

    return Drawn(
        tokens=table(st.integers(0, 99), length),
        supervised=table(st.booleans(), length),
        anchors=table(st.integers(0, length - 1), count),
        real=table(st.booleans(), count),
        slots=draw(st.integers(1, 6)),
    )


@given(drawn=sequences())
def test_labels_and_masks_are_those_of_a_loop_over_tokens(drawn: Drawn) -> None:
    labels, mask = labels_and_mask(drawn.tokens, drawn.supervised, drawn.anchors, drawn.real, drawn.slots)
    previous = previous_tokens(drawn.tokens, drawn.anchors, drawn.slots)
    assert labels.shape == mask.shape == previous.shape == (*drawn.anchors.shape, drawn.slots)
    for row, (tokens, supervised) in enumerate(zip(drawn.tokens.tolist(), drawn.supervised.tolist(), strict=True)):
        for block, (anchor, real) in enumerate(zip(drawn.anchors[row].tolist(), drawn.real[row].tolist(), strict=True)):
            run = []
            if real:
                for token, written in list(zip(tokens, supervised, strict=True))[anchor + 1 :][: drawn.slots]:
                    if not written:
                        break
                    run.append(token)
            length = len(run)
            assert mask[row, block].tolist() == [True] * length + [False] * (drawn.slots - length)
            assert labels[row, block, :length].tolist() == run
            assert previous[row, block, :length].tolist() == [tokens[anchor], *run][:length]


@given(drawn=sequences(), count=st.integers(1, 14), seed=st.integers(0, 3))
def test_sampled_anchors_are_distinct_valid_and_as_many_as_there_are(drawn: Drawn, count: int, seed: int) -> None:
    valid = valid_anchors(drawn.supervised)
    anchors, real = sample_anchors(valid, count, torch.Generator().manual_seed(seed))
    _, mask = labels_and_mask(drawn.tokens, drawn.supervised, anchors, real, drawn.slots)
    for row, allowed in enumerate(valid.tolist()):
        chosen = anchors[row][real[row]].tolist()
        assert chosen == sorted(set(chosen))
        assert all(allowed[position] for position in chosen)
        assert len(chosen) == min(count, sum(allowed))
        assert anchors[row][~real[row]].eq(0).all()
    assert torch.equal(mask[:, :, 0], real), "every real block has a label, and no other one has"


TOKEN = st.tuples(st.integers(0, 99), st.booleans())
TEXTS = st.lists(st.lists(TOKEN, min_size=1, max_size=70), min_size=1, max_size=3)


@given(texts=TEXTS)
def test_a_batch_holds_its_examples_and_padding_that_is_not_supervised(texts: list[list[tuple[int, bool]]]) -> None:
    examples = [Example("e", tuple(t for t, _ in text), tuple(s for _, s in text)) for text in texts]
    index = list(range(len(examples)))[::-1]
    batch = collate(examples, index, PAD)
    assert batch.index == tuple(index)
    width = batch.tokens.shape[1]
    assert width % 32 == 0
    assert width - 32 < max(len(text) for text in texts) <= width
    for row, i in enumerate(index):
        padding = width - len(texts[i])
        assert batch.tokens[row].tolist() == [*examples[i].tokens, *[PAD] * padding]
        assert batch.supervised[row].tolist() == [*examples[i].supervised, *[False] * padding]
