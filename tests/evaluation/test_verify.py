"""The acceptance rule and the target's keyed draws."""

from __future__ import annotations

import math
from typing import get_args

import jaxtyping
import pytest
import torch
from torch import Tensor

from specauf_cli.config.schema import Draw
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.verify import accepted_prefix, accepted_slotwise


@pytest.mark.parametrize(
    ("draft", "truth", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [9, 2, 3], 0),
        ([1, 2, 3], [1, 9, 3], 1),  # what agrees again behind the first miss does not count
        ([7], [7], 1),
        ([7], [8], 0),
    ],
)
def test_hand_worked_prefixes(draft: list[int], truth: list[int], expected: int) -> None:
    assert accepted_prefix(torch.tensor(draft), torch.tensor(truth)).item() == expected


@pytest.mark.parametrize("shape", [(200, 15), (20, 10, 7), (6,)])
def test_accepted_prefix_equals_a_loop(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, shape, generator=generator)
    draft = torch.where(torch.rand(shape, generator=generator) < 0.8, truth, (truth + 1) % 5)
    found = accepted_prefix(draft, truth)
    assert found.shape == shape[:-1]
    expected = []
    for ours, theirs in zip(draft.view(-1, shape[-1]).tolist(), truth.view(-1, shape[-1]).tolist(), strict=True):
        count = 0
        while count < len(ours) and ours[count] == theirs[count]:
            count += 1
        expected.append(count)
    assert found.flatten().tolist() == expected
    assert len(shape) == 1 or len(set(expected)) > 4


def test_slot_by_slot_counts_the_same_and_drafts_nothing_behind_a_miss() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (200, 15), generator=generator)
    draft = torch.where(torch.rand(200, 15, generator=generator) < 0.8, truth, (truth + 1) % 5)
    anchors = torch.arange(200)
    asked = torch.zeros(200, dtype=torch.long)

    def propose(slot: int, blocks: Tensor, before: Tensor) -> Tensor:
        assert torch.equal(asked[blocks], torch.full_like(blocks, slot)), "every earlier slot was asked for, once"
        assert torch.equal(before, truth[blocks, slot - 1] if slot else anchors[blocks])
        asked[blocks] += 1
        return draft[blocks, slot]

    found = accepted_slotwise(propose, anchors, truth)
    assert torch.equal(found, accepted_prefix(draft, truth))
    assert torch.equal(asked, (found + 1).clamp(max=15))


LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, -math.inf, 0.0])


both_draws = pytest.mark.parametrize("draw", get_args(Draw))


def draws(temperature: float, draw: Draw, requests: int = 6000, seed: int = 0) -> Tensor:
    """``[requests, 4]``: four positions of many requests, all with the same logits."""
    sampler = Sampler(temperature, seed, [f"r{i}#0" for i in range(requests)], 4, draw)
    logits = LOGITS.expand(requests, 4, -1)
    return sampler.choose(logits, torch.arange(requests), torch.zeros(requests, dtype=torch.long))


@both_draws
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature: float, draw: Draw) -> None:
    found = draws(temperature, draw)
    expected = (LOGITS / temperature).softmax(dim=0) * found.numel()
    counts = torch.bincount(found.flatten(), minlength=6)
    assert counts[4] == 0
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 18.5  # the 99.9 % quantile of chi-square with 4 degrees of freedom


@both_draws
def test_draws_at_neighbouring_positions_and_requests_are_independent(draw: Draw) -> None:
    found = draws(1.0, draw)
    p = LOGITS.softmax(dim=0)
    for first, second in ((found[:, 0], found[:, 1]), (found[:-1, 2], found[1:, 2])):
        pairs = torch.bincount(first * 6 + second, minlength=36).view(6, 6)
        expected = p[:, None] * p[None] * len(first)
        possible = expected > 0
        assert ((pairs - expected)[possible] ** 2 / expected[possible]).sum() < 51.2  # 99.9 %, 24 degrees of freedom


@both_draws
def test_accepting_a_greedy_draft_happens_with_its_probability_and_rejection_samples_the_rest(draw: Draw) -> None:
    truth = draws(1.0, draw).flatten()
    p = LOGITS.softmax(dim=0)
    draft = torch.full_like(truth, int(p.argmax()))
    accepted = accepted_prefix(draft[:, None], truth[:, None]).bool()
    assert accepted.float().mean().item() == pytest.approx(p.max().item(), abs=0.015)
    rest = torch.bincount(truth[~accepted], minlength=6) / (~accepted).sum()
    expected = p.clone()
    expected[draft[0]] = 0
    assert torch.allclose(rest, expected / expected.sum(), atol=0.02)


@both_draws
def test_a_draw_depends_on_seed_request_and_position_only(draw: Draw) -> None:
    names = [f"p{i}#0" for i in range(5)]
    logits = torch.randn(5, 9, 50, generator=torch.Generator().manual_seed(0))
    rows, start = torch.arange(5), torch.tensor([0, 3, 7, 1, 0])
    together = Sampler(1.0, 3, names, 16, draw).choose(logits, rows, start)
    for i in range(5):
        alone = Sampler(1.0, 3, [names[i]], 40, draw)  # another batch, another horizon
        row = torch.zeros(1, dtype=torch.long)
        assert torch.equal(alone.choose(logits[i : i + 1], row, start[i : i + 1])[0], together[i])
        for w in range(9):  # one position at a time
            one = alone.choose(logits[i : i + 1, w : w + 1], row, start[i : i + 1] + w)
            assert one.item() == together[i, w]
    backwards = Sampler(1.0, 3, names[::-1], 16, draw).choose(logits, rows.flip(0), start)
    assert torch.equal(backwards, together)


def flips(draw: Draw) -> int:
    """Draws of 8,000 that differ after logits over 500 tokens have moved by a hundred times the rounding of fp32."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1000, 500, generator=generator)
    moved = logits + 1e-3 * torch.randn(logits.shape, generator=generator)
    sampler = Sampler(1.0, 0, [f"p{i}#0" for i in range(8)], 1000, draw)
    rows, start = torch.arange(8), torch.zeros(8, dtype=torch.long)
    return int((sampler.choose(logits, rows, start) != sampler.choose(moved, rows, start)).sum())


def test_rounding_changes_a_draw_by_gumbel_noise_far_less_often() -> None:
    assert 10 * flips("gumbel") < flips("inverse_cdf")


@both_draws
def test_another_seed_request_or_position_is_another_draw(draw: Draw) -> None:
    logits = torch.zeros(1, 12, 1000)
    row, start = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    reference = Sampler(1.0, 0, ["p#0"], 20, draw).choose(logits, row, start)
    assert len(reference.unique()) > 9
    for other in (
        Sampler(1.0, 1, ["p#0"], 20, draw).choose(logits, row, start),
        Sampler(1.0, 0, ["p#1"], 20, draw).choose(logits, row, start),
        Sampler(1.0, 0, ["p#0"], 20, draw).choose(logits, row, start + 1),
    ):
        assert (other != reference).sum() > 9


def test_at_temperature_zero_the_token_is_the_argmax_and_ties_go_to_the_lowest_id() -> None:
    logits = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 0.0
    logits[0, 1, [5, 9]] = 10.0
    sampler = Sampler(0.0, 0, ["a", "b", "c"], 8)
    found = sampler.choose(logits, torch.arange(3), torch.zeros(3, dtype=torch.long))
    assert found[0, :2].tolist() == [0, 5]
    for row in range(3):
        for w in range(4):
            values = logits[row, w].tolist()
            assert found[row, w] == values.index(max(values))


def test_a_token_without_probability_is_not_drawn_even_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[[-math.inf, 0.0, 1.0, -math.inf]]]).expand(1, 2, -1)
    sampler = Sampler(1.0, 0, ["a"], 2)
    sampler.uniforms = torch.tensor([[0.0, math.nextafter(1.0, 0.0)]], dtype=torch.float64)
    row = torch.zeros(1, dtype=torch.long)
    assert sampler.choose(logits, row, row).tolist() == [[1, 2]]


def test_shapes_and_types_are_checked_at_run_time() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        accepted_prefix(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        accepted_prefix(torch.zeros(3, 4).long(), torch.zeros(3, 5).long())


@both_draws
def test_a_low_temperature_approaches_the_argmax(draw: Draw) -> None:
    logits = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    row = torch.zeros(1, dtype=torch.long)
    assert torch.equal(Sampler(1e-4, 0, ["a"], 8, draw).choose(logits, row, row), logits.argmax(dim=-1))
