"""Anchors, labels and masks: where blocks may start, what their slots are asked and where their supervision ends."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch import Tensor

from specauf_cli.models.blocks import labels_and_mask, sample_anchors, valid_anchors

SLOTS = 4


def pattern(text: str) -> Tensor:
    """``"..##."``: one sequence, ``#`` is supervised."""
    return torch.tensor([[c == "#" for c in text]])


def random_supervision(rows: int, length: int, seed: int) -> Tensor:
    """Runs of supervised and other tokens, with padding of different lengths on the right."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.rand(rows, length, generator=generator) < 0.25
    supervised = turns.long().cumsum(dim=1) % 2 == 1
    ends = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return supervised & (torch.arange(length) < ends)


def sample(valid: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return sample_anchors(valid, count, torch.Generator().manual_seed(seed))


def block(text: str, anchor: int, slots: int = SLOTS, real: bool = True) -> tuple[list[int], list[bool]]:
    """Labels (token t is 100 + t) and mask of one block."""
    supervised = pattern(text)
    tokens = 100 + torch.arange(len(text))[None]
    labels, mask = labels_and_mask(tokens, supervised, torch.tensor([[anchor]]), torch.tensor([[real]]), slots)
    return labels[0, 0].tolist(), mask[0, 0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("..###.", [2, 3]),  # the last answer token has no supervised successor
        ("#.#.#", []),
        ("#####", [0, 1, 2, 3]),  # the last token of a sequence is never one
        ("##..##", [0, 4]),
        ("......", []),
    ],
)
def test_an_anchor_and_its_successor_are_supervised(text: str, expected: list[int]) -> None:
    assert valid_anchors(pattern(text))[0].nonzero().flatten().tolist() == expected


def test_a_block_in_the_middle_of_an_answer_is_asked_the_next_tokens() -> None:
    assert block("..########", 3) == ([104, 105, 106, 107], [True] * 4)


def test_the_mask_ends_at_the_turn_boundary_and_does_not_resume_in_the_next_answer() -> None:
    labels, mask = block(".####.####", 2)
    assert mask == [True, True, False, False]
    assert labels[:2] == [103, 104]
    assert block(".##.######", 1, slots=6)[1] == [True, False, False, False, False, False]


def test_the_mask_ends_at_the_first_unsupervised_token_even_right_after_the_anchor() -> None:
    assert block("..#.####", 2)[1] == [False] * 4


def test_the_mask_ends_with_the_sequence_and_never_wraps() -> None:
    labels, mask = block("######", 3)
    assert mask == [True, True, False, False]
    assert labels[:2] == [104, 105]
    assert block("######", 5)[1] == [False] * 4
    assert block("###", 0, slots=15)[1] == [True, True] + [False] * 13


def test_a_block_that_is_not_real_asks_nothing() -> None:
    assert block("########", 0, real=False)[1] == [False] * 4


@pytest.mark.parametrize("slots", [1, 4, 15])
def test_labels_and_masks_equal_a_loop(slots: int) -> None:
    supervised = random_supervision(12, 40, seed=slots)
    tokens = torch.randint(0, 1000, (12, 40), generator=torch.Generator().manual_seed(1))
    anchors, real = sample(valid_anchors(supervised), 6)
    labels, mask = labels_and_mask(tokens, supervised, anchors, real, slots)
    assert labels.shape == mask.shape == (12, 6, slots)
    lengths = set()
    for row in range(12):
        for a in range(6):
            alive, length = bool(real[row, a]), 0
            for k in range(slots):
                at = int(anchors[row, a]) + 1 + k
                alive = alive and at < 40 and bool(supervised[row, at])
                assert mask[row, a, k] == alive
                if alive:
                    assert labels[row, a, k] == tokens[row, at]
                    length += 1
            lengths.add(length)
            assert length >= 1 or not real[row, a]  # every real block teaches something
    assert len(lengths) > min(slots, 3)


def test_anchors_are_distinct_valid_and_ascending() -> None:
    valid = valid_anchors(random_supervision(30, 64, seed=0))
    anchors, real = sample(valid, 9)
    assert anchors.shape == real.shape == (30, 9)
    for row in range(30):
        chosen = anchors[row][real[row]].tolist()
        assert chosen == sorted(set(chosen))
        assert all(valid[row, at] for at in chosen)
        assert len(chosen) == min(9, int(valid[row].sum()))
    assert 0 < real.sum() < real.numel()


def test_fewer_valid_positions_than_anchors_are_all_taken_and_the_surplus_is_marked() -> None:
    valid = pattern("..#..##...")
    anchors, real = sample(valid, 5)
    assert sorted(anchors[0][real[0]].tolist()) == [2, 5, 6]
    assert real.sum() == 3
    assert anchors[~real].tolist() == [0, 0]


def test_a_sequence_shorter_than_the_number_of_anchors() -> None:
    anchors, real = sample(pattern("###"), 8)
    assert anchors.shape == (1, 8)
    assert sorted(anchors[0][real[0]].tolist()) == [0, 1, 2]
    assert real.sum() == 3
    assert anchors[~real].eq(0).all()


def test_a_sequence_without_valid_positions_has_no_real_anchor() -> None:
    anchors, real = sample(pattern("......"), 3)
    assert not real.any()
    assert anchors.eq(0).all()


def test_the_same_generator_seed_gives_the_same_anchors_and_another_seed_others() -> None:
    valid = valid_anchors(random_supervision(8, 100, seed=0))
    first = sample(valid, 5, seed=7)
    torch.manual_seed(123)  # the global generator is nobody's business here
    torch.rand(11)
    same = sample(valid, 5, seed=7)
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(first[0], sample(valid, 5, seed=8)[0])


def test_sampling_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample(torch.ones(4, 20, dtype=torch.bool), 5)
    assert torch.equal(torch.rand(3), expected)


def test_a_sequence_has_its_anchors_whatever_the_others_of_the_batch_are() -> None:
    valid = valid_anchors(random_supervision(8, 100, seed=0))
    changed = valid.clone()
    changed[3:] = valid_anchors(random_supervision(8, 100, seed=1))[3:]
    before, after = sample(valid, 5)[0], sample(changed, 5)[0]
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_anchors_are_uniform_over_the_valid_positions() -> None:
    rows, count = 4000, 5
    valid = pattern("..####....###########...#####...").expand(rows, -1)
    positions = valid[0].nonzero().flatten()
    assert len(positions) == 20
    anchors, real = sample(valid, count)
    assert real.all()
    found = torch.bincount(anchors.flatten(), minlength=valid.shape[1])
    assert found[~valid[0]].sum() == 0
    expected = rows * count / 20
    variance = expected * (1 - count / 20)
    statistic = ((found[positions] - expected) ** 2 / variance).sum() * 19 / 20
    assert statistic < 43.8  # the 99.9 % quantile of chi-square with 19 degrees of freedom


def test_shapes_are_checked_at_run_time() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        valid_anchors(torch.ones(5, dtype=torch.bool))
