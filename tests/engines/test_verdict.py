"""The referee's comparisons, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specauf_cli.engines import verdict
from specauf_cli.engines.answers import Answer
from specauf_cli.engines.verdict import Followed, followed, same_counts, same_group
from specauf_cli.store.referee import Difference, JudgedRequest, Sampling
from specauf_cli.types import Trace

P = 4


def rounds(*accepted: int, is_open: bool = False, last: int | None = None) -> Followed:
    return Followed(accepted, (P,) * len(accepted), is_open, accepted[-1] + 1 if last is None else last)


def answer(accepted: tuple[int, ...], *, gives: str = "histogram") -> Answer:
    histogram = tuple(sum(a == k for a in accepted) for k in range(P + 1))
    return Answer(
        tokens=None,
        text="x",
        completion=9,
        ended=True,
        rounds=len(accepted),
        accepted=None if gives == "rounds" else sum(accepted),
        histogram=histogram if gives in ("histogram", "steps") else None,
        steps=accepted if gives == "steps" else None,
    )


def test_rounds_are_cut_where_the_answer_is_no_longer_known() -> None:
    # 5 tokens: the first from the prompt, then 1 + 1, then 3 accepted of which only 2 are known
    trace = Trace("p", 0, (1, 3), P, 5, False)
    assert followed(trace, [P, P], known=5) == Followed((1, 2), (P, P), True, 2)
    assert followed(trace, [P, P], known=9) == Followed((1, 3), (P, P), False, 2)
    assert followed(Trace("p", 0, (1, 4), P, 5, False), [P, P], known=7).open is False, "all of the block agreed"
    assert followed(Trace("p", 0, (1, 1), P, 5, False), [P, P], known=5).open is False, "rejected before the end"


@pytest.mark.parametrize("gives", ["histogram", "sum", "steps"])
def test_counts_are_compared_as_far_as_they_are_given(gives: str) -> None:
    ours = rounds(2, 0, 3)
    assert same_counts(ours, answer((2, 0, 3), gives=gives), cuts=False) is True
    assert same_counts(ours, answer((2, 1, 3), gives=gives), cuts=False) is False
    assert same_counts(ours, answer((2, 0), gives=gives), cuts=False) is False
    assert same_counts(ours, answer((0, 2, 3), gives=gives), cuts=False) is (gives != "steps"), "the order is told too"


def test_a_server_without_counts_is_not_compared() -> None:
    none = Answer(None, "x", 9, True, None, None, None)
    assert same_counts(rounds(2, 0), none, cuts=False) is None
    assert same_counts(rounds(2, 0), answer((4, 4), gives="rounds"), cuts=False) is True, "two rounds are two rounds"


@pytest.mark.parametrize("gives", ["histogram", "sum", "steps"])
def test_only_the_last_round_may_be_open(gives: str) -> None:
    ours = rounds(1, 2, is_open=True)
    assert same_counts(ours, answer((1, 2), gives=gives), cuts=False)
    assert same_counts(ours, answer((1, 4), gives=gives), cuts=False)
    assert not same_counts(ours, answer((1, 1), gives=gives), cuts=False)
    assert not same_counts(rounds(1, 2), answer((1, 4), gives=gives), cuts=False)


@pytest.mark.parametrize("gives", ["histogram", "sum", "steps"])
def test_an_engine_may_cut_its_last_round(gives: str) -> None:
    ours = rounds(1, 3, last=2)  # of 4 emitted tokens the answer kept 2
    assert same_counts(ours, answer((1, 1), gives=gives), cuts=True)
    assert same_counts(ours, answer((1, 3), gives=gives), cuts=True)
    assert not same_counts(ours, answer((1, 2), gives=gives), cuts=True)
    assert not same_counts(ours, answer((1, 1), gives=gives), cuts=False)


def test_rounds_without_a_draft_are_not_counted() -> None:
    ours = Followed((0, 2, 0), (0, P, 0), False, 1)
    assert ours.counted == (2,)
    assert same_counts(ours, answer((2,)), cuts=False)
    assert same_counts(Followed((0,), (0,), False, 1), answer(()), cuts=False)


def test_sums_of_several_answers() -> None:
    both = [rounds(1, 2), rounds(0, 3, is_open=True)]
    assert same_group(both, 4, 6)
    assert same_group(both, 4, 7), "the last round of the second is open"
    assert not same_group(both, 4, 5)
    assert not same_group(both, 5, 6)
    assert not same_group([rounds(1, 2)], 2, 4)


@given(st.lists(st.integers(0, P), min_size=1, max_size=8), st.sampled_from(["histogram", "sum", "steps"]))
def test_the_replays_own_counts_are_equal_whatever_is_given(accepted: list[int], gives: str) -> None:
    assert same_counts(rounds(*accepted), answer(tuple(accepted), gives=gives), cuts=False)


@pytest.mark.parametrize(
    ("gap", "scale", "found"),
    [(0.0, 10.0, "fp32"), (1e-3, 10.0, "fp32"), (0.2, 10.0, "bf16"), (2.0, 10.0, None), (None, None, None)],
)
def test_ties(gap: float | None, scale: float | None, found: str | None) -> None:
    assert verdict.tie(gap, scale) == found
    assert verdict.within(gap, scale, "fp32") == (found == "fp32")
    assert verdict.within(gap, scale, "bf16") == (found is not None)


def judged(**changes: Any) -> JudgedRequest:
    values: dict[str, Any] = {
        "prompt_id": "p",
        "turn": 0,
        "tokens": 9,
        "same_answer": True,
        "differs_at": None,
        "gap": None,
        "scale": None,
        "ours": (1,),
        "open": False,
        "replayed": (1,),
        "replayed_tokens": 9,
        "rounds": 1,
        "accepted": 1,
        "histogram": None,
        "steps": None,
        "same_counts": True,
    }
    return JudgedRequest(**{**values, **changes})


EQUAL = judged()
OTHER_COUNTS = judged(same_counts=False)
OTHER_ANSWER = judged(same_answer=False, differs_at=3, gap=5.0, scale=10.0)
TIE_IN_BF16 = judged(same_answer=False, differs_at=3, gap=0.1, scale=10.0)
TIE_IN_FP32 = judged(same_answer=False, differs_at=3, gap=0.0, scale=10.0)
NEAR, FAR = Difference("pooled", 0.1, -0.1, 0.3, 9), Difference("pooled", 0.2, 0.1, 0.3, 9)


@pytest.mark.parametrize(
    ("requests", "precision", "difference", "expected"),
    [
        ([EQUAL, EQUAL], "fp32", FAR, "equal"),
        ([EQUAL, OTHER_COUNTS], "fp32", NEAR, "differs"),
        ([EQUAL, OTHER_ANSWER], "bf16", NEAR, "differs"),
        ([EQUAL, TIE_IN_FP32], "fp32", FAR, "rounding"),
        ([EQUAL, TIE_IN_BF16], "fp32", NEAR, "differs"),
        ([EQUAL, TIE_IN_BF16], "bf16", FAR, "rounding"),
        ([EQUAL, OTHER_COUNTS, TIE_IN_BF16], "bf16", NEAR, "rounding"),
        ([EQUAL, OTHER_COUNTS, TIE_IN_BF16], "bf16", FAR, "differs"),
    ],
)
def test_the_verdict_on_greedy_answers(
    requests: list[JudgedRequest], precision: str, difference: Difference, expected: str
) -> None:
    assert verdict.verdict(requests, (), precision=precision, sampling=None, difference=difference) == expected


SAMPLED = judged(same_answer=None, same_counts=None)


@pytest.mark.parametrize(
    ("requests", "z", "difference", "expected"),
    [
        ([judged(same_answer=None)], 1.0, FAR, "equal"),
        ([judged(same_answer=None)], -4.5, NEAR, "differs"),
        ([judged(same_answer=None, same_counts=False)], 1.0, NEAR, "differs"),
        ([SAMPLED], 1.0, FAR, "differs"),
        ([SAMPLED], 1.0, NEAR, "equal"),
    ],
)
def test_the_verdict_on_sampled_answers(
    requests: list[JudgedRequest], z: float, difference: Difference, expected: str
) -> None:
    found = verdict.verdict(requests, (), precision="fp32", sampling=Sampling(100, z), difference=difference)
    assert found == expected


def test_tau_by_both_definitions() -> None:
    first = judged(tokens=8, rounds=2, accepted=5, replayed=(4, 1), replayed_tokens=8)
    second = judged(prompt_id="q", tokens=4, rounds=3, accepted=3, replayed=(0, 1, 2), replayed_tokens=4)
    requests = [first, second]
    engine, pooled = verdict.taus(requests, "sglang", pooled_only=False)
    assert engine.definition == "engine"
    assert engine.server == pytest.approx((8 / 2 + 4 / 3) / 2) == engine.ours
    assert pooled.server == pytest.approx(1 + 8 / 5) == pooled.ours
    (only,) = verdict.taus(requests, "vllm", pooled_only=True)
    assert only.definition == "pooled"
