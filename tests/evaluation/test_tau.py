"""Every tau from one trace: the worked examples, the identities between metrics, and what is left out."""

from __future__ import annotations

import math
import random
from itertools import accumulate
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.types import Trace


def trace(accepted: tuple[int, ...], tokens: int = 9, prompt: str = "p", *, proposed: int = 7, turn: int = 0) -> Trace:
    return Trace(prompt, turn, accepted, proposed, tokens, True)


def many(count: int = 40, seed: int = 0) -> list[Trace]:
    """Two-turn conversations with rounds of every length; the last round may overshoot the end."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        accepted = tuple(min(int(draw.expovariate(0.5)), 7) for _ in range(draw.randint(1, 9)))
        tokens = 1 + sum(accepted) + len(accepted) - draw.randint(0, accepted[-1])
        made.append(trace(accepted, tokens, f"p{i // 2}", turn=i % 2))
    return made


@pytest.mark.parametrize(
    ("definition", "traces", "expected"),
    [
        ("engine", [trace((4, 1), 8, "a"), trace((0, 1, 2), 4, "b")], (8 / 2 + 4 / 3) / 2),
        ("pooled", [trace((4, 1), prompt="a"), trace((0, 1, 2), prompt="b")], 1 + 8 / 5),
        ("per_response", [trace((4, 1), prompt="a"), trace((0, 1, 2), prompt="b")], (3.5 + 2) / 2),
        ("eos_truncated", [trace((4, 1), 8, "a"), trace((0, 1, 2), 4, "b")], (7 + 3) / 5),
    ],
)
def test_the_worked_example_of_each_definition(definition: str, traces: list[Trace], expected: float) -> None:
    assert tau.mean(traces, definition) == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.2f}" in str(tau.TAU[definition].__doc__)  # the number the reader is shown


def test_every_definition_has_a_worked_example_here() -> None:
    assert set(tau.TAU) == {"engine", "pooled", "per_response", "eos_truncated"}


def test_definitions_agree_where_their_differences_cannot_show() -> None:
    one = [trace((3, 1, 2), tokens=1 + 6 + 3)]  # one request, no overshoot
    assert tau.mean(one, "pooled") == tau.mean(one, "per_response") == tau.mean(one, "eos_truncated") == 3
    assert tau.mean(one, "engine") == 10 / 3  # the prefill token is counted as well


def test_overshoot_counts_for_pooled_and_per_response_only() -> None:
    cut = [trace((3, 7), tokens=6)]  # 12 tokens in the stream, the end after 6
    assert tau.mean(cut, "pooled") == tau.mean(cut, "per_response") == 6
    assert tau.mean(cut, "eos_truncated") == 2.5
    assert tau.mean(cut, "engine") == 3


@pytest.mark.parametrize("definition", tau.TAU)
def test_tau_is_the_ratio_of_the_summed_terms_and_turns_share_a_prompt(definition: str) -> None:
    traces = many()
    pairs = tau.terms(traces, definition)
    assert sorted(pairs) == sorted({t.prompt_id for t in traces})
    assert len(pairs) == len(traces) / 2
    assert tau.mean(traces, definition) == pytest.approx(
        sum(a for a, _ in pairs.values()) / sum(b for _, b in pairs.values()), abs=1e-12
    )
    alone = [tau.terms([t], definition)[t.prompt_id] for t in traces[:2]]
    assert pairs["p0"] == pytest.approx((alone[0][0] + alone[1][0], alone[0][1] + alone[1][1]))


def test_engine_weighs_requests_not_conversations() -> None:
    two_turns = [trace((1,), 2, "a"), trace((1,), 2, "a", turn=1), trace((4,), 5, "b")]
    assert tau.mean(two_turns, "engine") == pytest.approx((2 + 2 + 5) / 3)


@pytest.mark.parametrize("definition", tau.TAU)
def test_requests_of_one_token_are_left_out(definition: str) -> None:
    traces, empty = many(), trace((), 1, "empty")
    assert tau.terms([*traces, empty], definition) == tau.terms(traces, definition)
    assert "empty" not in tau.terms([empty], definition)
    assert math.isnan(tau.mean([empty], definition))
    assert math.isnan(tau.mean([], definition))


@pytest.mark.parametrize("function", [tau.mean, tau.terms])
def test_an_unknown_definition_names_the_nearest_and_all_valid_ones(function: object) -> None:
    with pytest.raises(InputError, match=r"engin'.*engine, pooled, per_response, eos_truncated.*Did you mean 'engine'"):
        function(many(), "engin")  # type: ignore[operator]
    with pytest.raises(InputError, match="unknown definition of tau 'xyz'"):
        function([], "xyz")  # type: ignore[operator]


def test_survival_alpha_histogram_and_tau_are_one_story() -> None:
    traces = many()
    alive, conditional, counts = tau.survival(traces), tau.alpha(traces), tau.histogram(traces)
    rounds = sum(len(t.accepted) for t in traces)
    assert len(alive) == len(conditional) + 1 == len(counts) == 8
    assert alive[0] == 1
    assert 1 + sum(alive[1:]) == pytest.approx(tau.mean(traces, "pooled"), abs=1e-12)
    assert 1 + sum(accumulate(conditional, mul)) == pytest.approx(tau.mean(traces, "pooled"), abs=1e-12)
    assert sum(counts) == rounds
    for k in range(8):
        assert alive[k] == pytest.approx(sum(counts[k:]) / rounds, abs=1e-12)
    assert tau.full_blocks(traces) == pytest.approx(counts[7] / rounds, abs=1e-12)


def test_hand_worked_survival_alpha_and_histogram() -> None:
    traces = [trace((0, 2), proposed=3), trace((2, 1), prompt="q", proposed=3)]
    assert tau.histogram(traces) == [1, 1, 2, 0]
    assert tau.survival(traces) == [1, 0.75, 0.5, 0]
    found = tau.alpha(traces)
    assert found == [0.75, pytest.approx(2 / 3), 0]
    assert math.isnan(tau.alpha([trace((0,), proposed=2)])[1])  # no round reached slot 2


def test_full_blocks_asks_each_trace_for_its_own_proposals() -> None:
    assert tau.full_blocks([trace((7, 3, 7, 0))]) == 0.5
    assert tau.full_blocks([trace((3, 7), proposed=7), trace((3, 3), proposed=3)]) == 0.75
    assert math.isnan(tau.full_blocks([trace((), 1)]))


def test_tokens_per_pass_counts_the_prefill_pass() -> None:
    assert tau.tokens_per_pass([trace((3, 2), 7, "a"), trace((2, 0), 4, "b")]) == 11 / 6
    assert tau.tokens_per_pass([trace((), 1)]) == 1
    assert math.isnan(tau.tokens_per_pass([]))


def test_nothing_measured_is_empty() -> None:
    assert tau.survival([]) == tau.alpha([]) == []
    assert tau.histogram([]) == [0]


def test_the_order_of_traces_does_not_matter() -> None:
    traces = many()
    mixed = random.Random(1).sample(traces, len(traces))
    for definition in tau.TAU:
        assert tau.mean(mixed, definition) == pytest.approx(tau.mean(traces, definition), abs=1e-12)
    for function in (tau.survival, tau.alpha, tau.histogram, tau.full_blocks, tau.tokens_per_pass):
        assert function(mixed) == function(traces)


# --- the end of an answer, as other tools count it ---


def rounds_of(accepts: list[int], limit: int, end: int | None, *, one_more: bool) -> tuple[list[int], int, bool]:
    """A decoding loop: the prefill gives a token, then rounds of A + 1, until the stop token (number ``end``) or the
    limit.

    ``one_more``: the loop of z-lab, DeepSpec and SpecForge, which compares the tokens of the rounds alone with the
    limit. Returns A of every round, all tokens emitted, and whether the stop token was among the first ``limit``.
    """
    emitted, done = 1, list[int]()
    while (emitted - one_more < limit) and not (end is not None and emitted >= end):
        done.append(accepts[len(done)])
        emitted += done[-1] + 1
    return done, emitted, end is not None and end <= min(emitted, limit)


@given(
    accepts=st.lists(st.integers(0, 7), min_size=40, max_size=40),
    limit=st.integers(2, 40),
    end=st.one_of(st.none(), st.integers(2, 60)),
)
def test_the_tools_own_sums_are_ours_where_an_answer_ends_by_itself(
    accepts: list[int], limit: int, end: int | None
) -> None:
    ours, emitted, ended = rounds_of(accepts, limit, end, one_more=False)
    theirs, theirs_emitted, _ = rounds_of(accepts, limit, end, one_more=True)
    length = min(emitted, limit, end or limit)
    made = [Trace("p", 0, tuple(ours), 7, length, ended)]
    deepspec = (min(theirs_emitted, end or theirs_emitted) - 1) / len(theirs)  # cut at the stop token, not at the limit
    z_lab = sum(a + 1 for a in theirs) / len(theirs)
    if ended:
        assert tau.mean(made, "eos_truncated") == pytest.approx(deepspec)
        assert tau.mean(made, "per_response") == pytest.approx(z_lab)
        return
    exactly = emitted == limit  # then they go on for another round
    assert theirs == ours + accepts[len(ours) : len(ours) + exactly]
    if not exactly:
        assert tau.mean(made, "per_response") == pytest.approx(z_lab)
        overshoot = min(emitted, end or emitted) - limit
        assert tau.mean(made, "eos_truncated") == pytest.approx(deepspec - overshoot / len(ours))


def test_common_starts_worked_by_hand() -> None:
    ours, theirs = trace((2, 0, 3)), trace((0, 1, 4, 0))  # rounds begin at 0, 3, 4 and at 0, 1, 3, 8
    assert tau.common_starts(ours, theirs) == [(2, 0), (0, 4)]
    assert tau.common_starts(theirs, ours) == [(0, 2), (4, 0)]


@given(st.lists(st.integers(0, 7), max_size=12), st.lists(st.integers(0, 7), max_size=12))
def test_common_starts_are_all_rounds_of_a_drafter_and_itself_and_begin_alike(a: list[int], b: list[int]) -> None:
    ours, theirs = trace(tuple(a)), trace(tuple(b))
    assert tau.common_starts(ours, ours) == [(n, n) for n in a]
    at = [{sum(n + 1 for n in rounds[:i]): i for i in range(len(rounds))} for rounds in (a, b)]
    expected = [(a[at[0][s]], b[at[1][s]]) for s in sorted(at[0].keys() & at[1].keys())]
    assert tau.common_starts(ours, theirs) == expected
