"""The timed loop is the live loop; curves are replays; contexts have one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, Nothing, PromptLookup, Proposer, decode
from specauf_cli.evaluation.lookup import LookupRule, plain_traces, replay_lookup
from specauf_cli.evaluation.replay import replay
from specauf_cli.evaluation.speed import (
    context_rows,
    curve_of_drafter,
    curve_of_traces,
    time_requests,
    time_rounds,
    walked,
)
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Prompt, Trace, Trajectory

MakeDrafter = Callable[..., DFlash]
MakeTarget = Callable[..., Target]
NEW, TAIL, SEED = 30, 8, 3
PROMPTS = tuple(Prompt(f"p{i}", (text,)) for i, text in enumerate(["Hi", "What is 2 + 3?", "Tell me about a fox."]))
RULE = LookupRule(3, 1, 7)
both_temperatures = pytest.mark.parametrize("temperature", [0.0, 1.0])


def own_answers(target: Target, temperature: float, new: int = NEW) -> tuple[Trajectory, ...]:
    return trajectories.generate(
        target, PROMPTS, temperature=temperature, seed=SEED, max_new_tokens=new, tail=TAIL, batch_size=4
    ).trajectories


def timed(target: Target, proposer: Proposer, t: Trajectory, temperature: float) -> tuple[Trace, tuple[int, ...]]:
    trace, tokens, clock = decode(target, proposer, t, temperature=temperature, seed=SEED, max_new_tokens=NEW)
    assert min(clock.prefill, clock.verify, clock.decode) > 0
    assert clock.draft + clock.verify + clock.rest <= clock.decode
    return trace, tokens


@pytest.mark.parametrize("temperature", [0.0, 0.3])  # at T = 1 nothing that this target says occurred before
def test_live_prompt_lookup_has_the_rounds_of_its_replay(target: Target, temperature: float) -> None:
    found = own_answers(target, temperature)
    replayed = replay_lookup(RULE, found)
    assert sum(a for t in replayed for a in t.accepted) > 0, "something is looked up, or this proves little"
    for t, trace in zip(found, replayed, strict=True):
        assert timed(target, PromptLookup(RULE), t, temperature) == (trace, t.tokens[: t.length])


@both_temperatures
def test_live_prompt_lookup_where_turns_end(target: Target, make_target: MakeTarget, temperature: float) -> None:
    stopping = make_target(stop_ids={t.tokens[9 + 5 * i] for i, t in enumerate(own_answers(target, temperature))})
    found = own_answers(stopping, temperature)
    assert all(t.ended for t in found)
    for t, trace in zip(found, replay_lookup(RULE, found), strict=True):
        assert timed(stopping, PromptLookup(RULE), t, temperature) == (trace, t.tokens[: t.length])


@both_temperatures
def test_plain_decoding_is_a_round_for_every_token(target: Target, temperature: float) -> None:
    found = own_answers(target, temperature)
    for t, plain in zip(found, plain_traces(replay_lookup(RULE, found)), strict=True):
        assert timed(target, Nothing(), t, temperature) == (plain, t.tokens[: t.length])


def test_the_curve_is_a_replay_with_fewer_proposals(target: Target, make_drafter: MakeDrafter) -> None:
    found = own_answers(target, 0.0)
    curve = curve_of_drafter(target, make_drafter(), found, batch_size=2)
    assert list(curve) == list(range(1, 8))
    for proposals in (1, 3, 7):
        traces = replay(target, make_drafter(proposals=proposals), found, batch_size=2)
        assert curve[proposals] == curve_of_traces(traces)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 5))
def test_a_walk_cuts_every_round(row: list[int], proposals: int) -> None:
    ((tokens, rounds),) = walked([row], ["p"], proposals).values()
    assert rounds <= tokens <= rounds * (proposals + 1)
    assert tokens >= len(row)
    assert walked([row], ["p"], 5) == walked([[min(a, 5) for a in row]], ["p"], 9)


def test_every_request_is_timed_by_every_method_in_turn(target: Target, make_drafter: MakeDrafter) -> None:
    found = own_answers(target, 0.0, new=8)
    proposers: dict[str, Proposer] = {
        "plain": Nothing(),
        "lookup": PromptLookup(RULE),
        "run": Drafted(target, make_drafter()),
    }
    requests = [("toy", t) for t in found]

    def run(seed: int) -> Sequence[tuple[str, int, str]]:
        results, different = time_requests(
            target, proposers, requests, temperature=0.0, seed=seed, max_new_tokens=8, repeats=2
        )
        assert different == {"plain": 0, "lookup": 0, "run": 0}
        return [(r.method, r.repeat, r.prompt) for r in results]

    order = run(SEED)
    assert sorted(order) == sorted((m, r, t.prompt_id) for m in proposers for r in range(2) for t in found)
    assert order == run(SEED)
    assert (
        len({tuple(m for m, r, p in order if (r, p) == (repeat, t.prompt_id)) for repeat in range(2) for t in found})
        > 1
    )


def test_an_output_that_differs_is_counted(target: Target) -> None:
    t = own_answers(target, 0.0)[0]
    wrong = replace(t, tokens=(t.tokens[0] + 1, *t.tokens[1:]))
    _, different = time_requests(
        target, {"plain": Nothing()}, [("toy", wrong)], temperature=0.0, seed=0, max_new_tokens=NEW, repeats=1
    )
    assert different == {"plain": 1}


def test_single_rounds_leave_the_drafter_as_it_was(target: Target, make_drafter: MakeDrafter) -> None:
    drafter, rows = make_drafter(), context_rows(own_answers(target, 0.0), 4, 2)
    assert rows.shape[0] == 4
    results = time_rounds(
        target, {"run": drafter}, rows, batch_sizes=[1, 4], proposals={"run": [2, 7]}, repetitions=2, seed=0
    )
    assert [(r.method, r.batch_size, r.proposals) for r in results] == [
        (m, b, p) for b in (1, 4) for m, p in (("plain", 0), ("run", 2), ("run", 7))
    ]
    assert all(len(r.draft) == len(r.verify) == len(r.rest) == 2 for r in results)
    assert drafter.backbone.proposals == 7


def test_contexts_are_real_tokens_and_have_one_length() -> None:
    made = [Trajectory(f"p{i}", 0, (1,) * n, (2,) * 12, 10, ended=True) for i, n in enumerate((2, 5, 30))]
    rows = context_rows(made, 4, 2)
    assert rows.shape == (4, 5 + 5 + 3 + 2)
    assert torch.equal(rows[0], torch.tensor([1, 1, *[2] * 12, 1]))
    assert torch.equal(rows[0], rows[3])
