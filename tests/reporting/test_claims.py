"""Verdicts on made-up runs whose answer is known: clear effects, effects of the other sign, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import benchmark, heldout, record
from specauf_cli.config import specs
from specauf_cli.evaluation.statistics import average_difference, difference
from specauf_cli.reporting import tables
from specauf_cli.reporting.claims import Verdict, verdicts
from specauf_cli.reporting.measured import select
from specauf_cli.store.records import RunRecord

TABLE = specs.load_spec("table2")
TWO = replace(TABLE, columns={"gsm8k": "GSM8K", "mbpp": "MBPP"}, paper=replace(TABLE.paper, values={}))
PROMPTS, ROUNDS = 30, 30
HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable"

Counts = Sequence[int]
"""Per prompt: how many of its rounds accept one token more than the base (negative: one less). Over 30: the
difference."""


def alternating(low: int, high: int) -> list[int]:
    return [low, high] * (PROMPTS // 2)


MORE, LESS, NOISE, NONE = alternating(10, 20), alternating(-20, -10), alternating(-12, 12), alternating(0, 0)
DOWN = alternating(-13, 11)
TINY = alternating(0, 2)  # +0.033 on average and separable from 0, far inside the margin of 0.1
NEAR = alternating(-5, 11)  # +0.1 on average: the margin lies inside its interval
WIDE = alternating(-30, 30)  # 0 on average, so scattered that 0.1 either way is as likely


def shifted(column: str, counts: Counts) -> list[list[int]]:
    rng = np.random.default_rng(len(column))
    base = rng.integers(1, 9, size=(PROMPTS, ROUNDS))
    for row, count in zip(base, counts, strict=True):
        row[: abs(count)] += np.sign(count)
    rounds: list[list[int]] = base.tolist()
    return rounds


def run(
    objective: str, gsm8k: Counts, mbpp: Counts, right: Sequence[int] = (5,) * 20, temperature: float = 0.0
) -> RunRecord:
    """``right``: correct slots of 10 on each held-out conversation."""
    made = [benchmark(c, shifted(c, n), temperature) for c, n in (("gsm8k", gsm8k), ("mbpp", mbpp))]
    return record(objective, made, blocks=heldout([10] * len(right), right))


def logged(objective: str, curve: Mapping[str, Sequence[float]]) -> RunRecord:
    """A run with these columns in the log of its training."""
    measured = run(objective, MORE, MORE)
    return replace(measured, training=measured.training.model_copy(update={"curve": curve}))


def judge(*records: RunRecord) -> dict[str, Verdict]:
    found = verdicts(select(TWO, records), "engine")
    assert len({(v.claim, v.temperature) for v in found}) == len(found)
    return {v.claim: v for v in found}


@pytest.mark.parametrize(
    ("gsm8k", "mbpp", "expected"),
    [
        (MORE, MORE, HOLDS),
        (LESS, LESS, FAILS),
        (MORE, LESS, FAILS),  # every benchmark is asked for, and one is clearly the other way
        (MORE, NOISE, OPEN),
        (NOISE, NOISE, OPEN),
        (DOWN, DOWN, OPEN),  # below 0, but not clearly
        (NONE, NONE, OPEN),  # not one token of difference is no evidence of more
        (NOISE, LESS, FAILS),
    ],
)
def test_c1_auf_is_higher_on_every_benchmark(gsm8k: Counts, mbpp: Counts, expected: str) -> None:
    found = judge(run("decay", NONE, NONE), run("auf", gsm8k, mbpp))["C1"]
    assert found.verdict == expected
    mean = (np.mean(gsm8k) / ROUNDS, np.mean(mbpp) / ROUNDS)
    for name, value in (("GSM8K", mean[0]), ("MBPP", mean[1]), ("Avg", sum(mean) / 2)):
        assert float(found.numbers.split(f"{name} ")[1].split(" ")[0]) == pytest.approx(value, abs=0.005)


@pytest.mark.parametrize(
    ("gsm8k", "mbpp", "expected"),
    [
        (NONE, NONE, HOLDS),
        (TINY, TINY, HOLDS),
        (TINY, NONE, HOLDS),
        (WIDE, WIDE, OPEN),
        (NONE, WIDE, OPEN),  # one benchmark that says nothing leaves the claim open
        (NEAR, NEAR, OPEN),
        (MORE, MORE, FAILS),
        (LESS, LESS, FAILS),
        (NONE, MORE, FAILS),
        (WIDE, LESS, FAILS),
    ],
)
def test_c2_equivalence_is_judged_by_the_margin(gsm8k: Counts, mbpp: Counts, expected: str) -> None:
    records = run("auf_decay", NONE, NONE), run("auf", gsm8k, mbpp)
    assert judge(*records)["C2"].verdict == expected
    assert "within ±0.1 " in judge(*records)["C2"].text


def test_c2_significance_and_equivalence_are_two_questions() -> None:
    """The separable difference is equivalent, the one that is not separable is not."""
    for counts, separable, expected in ((TINY, True, HOLDS), (WIDE, False, OPEN)):
        measured = select(TWO, [run("auf_decay", NONE, NONE), run("auf", counts, counts)])
        ours, theirs = (measured.taus(o, 0.0, "engine") for o in ("auf", "auf_decay"))
        assert {difference(ours[c], theirs[c], c).separable for c in ours} == {separable}
        assert average_difference(ours, theirs).separable is separable
        assert verdicts(measured, "engine")[0].verdict == expected


def test_c2_says_when_its_margin_is_wider_than_the_gain() -> None:
    for gain, said in ((TINY, True), (MORE, False)):
        found = judge(run("auf_decay", NONE, NONE), run("auf", NONE, NONE), run("decay", [-n for n in gain], NONE))[
            "C2"
        ]
        assert ("AUF and decay are equivalent on average too (+" in found.numbers) is said


def test_c2_uses_the_margin_of_the_experiment() -> None:
    records = [run("auf_decay", NONE, NONE), run("auf", MORE, MORE)]
    for margin, expected in ((0.1, FAILS), (0.5, OPEN), (0.9, HOLDS)):
        (found,) = verdicts(select(replace(TWO, margin=margin), records), "engine")
        assert (found.claim, found.verdict) == ("C2", expected)


HIGH, LOW, MIXED = [8, 7] * 10, [5, 6] * 10, [8, 3] * 10


@pytest.mark.parametrize(
    ("decay_right", "auf_right", "tau", "expected"),
    [
        (HIGH, LOW, MORE, HOLDS),
        (LOW, HIGH, MORE, FAILS),
        (HIGH, LOW, LESS, FAILS),
        (LOW, HIGH, LESS, FAILS),
        (MIXED, MIXED[::-1], MORE, OPEN),
        (HIGH, LOW, WIDE, OPEN),
    ],
)
def test_c3_higher_accuracy_and_yet_lower_tau(
    decay_right: list[int], auf_right: list[int], tau: Counts, expected: str
) -> None:
    found = judge(run("decay", NONE, NONE, decay_right), run("auf", tau, tau, auf_right))["C3"]
    assert found.verdict == expected
    points = 100 * (np.mean(decay_right) - np.mean(auf_right)) / 10
    assert f"decay - AUF: {points:+.1f} ± " in found.numbers
    assert f"AUF - decay: {np.mean(tau) / ROUNDS:+.2f} ± " in found.numbers


def chain(objective: str, chance: Mapping[int, float], draw: int, *, prompts: int = 40, rounds: int = 100) -> RunRecord:
    """Rounds whose k-th token is accepted with probability ``chance[k]`` (0.8 where not given), given those before
    it."""
    found = []
    for i, column in enumerate(TWO.columns):
        rng = np.random.default_rng([draw, i])
        hit = rng.random((prompts, rounds, 8)) < [chance.get(k, 0.8) for k in range(1, 9)]
        found.append(benchmark(column, hit.cumprod(axis=2).sum(axis=2).tolist()))
    return record(objective, found)


UP = dict.fromkeys(range(1, 7), 0.9)


@pytest.mark.parametrize(
    ("auf", "expected"),
    [
        (UP, HOLDS),
        ({**UP, 4: 0.6}, FAILS),
        ({**UP, 1: 0.6}, FAILS),
        ({**UP, 6: 0.6}, FAILS),
        ({**UP, 6: 0.8}, OPEN),
        ({**UP, 1: 0.8}, OPEN),
        ({**UP, 7: 0.1}, HOLDS),  # the claim ends at k = 6
    ],
)
def test_c6_alpha_at_every_depth(auf: Mapping[int, float], expected: str) -> None:
    found = judge(chain("decay", {}, 0), chain("auf", auf, 1))["C6"]
    assert found.verdict == expected, found.numbers
    for k in range(1, 7):
        shown = float(found.numbers.split(f"k={k} ")[1].split(" ")[0])
        assert shown == pytest.approx(auf[k] - 0.8, abs=0.03)


def test_c6_shows_the_share_of_all_rounds_beside_it() -> None:
    """AUF gets to depth 2 more often and is worse from there, yet ahead in P(A >= 2)."""
    numbers = judge(chain("decay", {}, 0), chain("auf", {**UP, 1: 0.98, 2: 0.75}, 1))["C6"].numbers
    alphas, shares = numbers.split("; of all rounds, P(A >= k): ")
    assert float(alphas.split("k=2 ")[1].split(" ")[0]) == pytest.approx(0.75 - 0.8, abs=0.03)
    assert float(shares.split("k=2 ")[1].split(" ")[0]) == pytest.approx(0.98 * 0.75 - 0.64, abs=0.03)


def test_c6_on_common_rounds_leaves_out_the_harder_ones_that_only_auf_gets_far_in() -> None:
    """Where decay proposes twice in vain AUF accepts one token; elsewhere both accept two."""
    cycles = [3, 4, 5, 6] * 5
    made = [
        record(name, [benchmark(column, [[*cycle] * n for n in cycles]) for column in ("gsm8k", "mbpp")])
        for name, cycle in (("auf", (2, 1)), ("decay", (2, 0, 0)))
    ]
    alphas, *_, common = judge(*made)["C6"].numbers.split("; ")
    assert "k=2 -0.50 ± 0.00" in alphas
    assert "k=1 +0.50 ± 0.00, k=2 +0.00 ± 0.00" in common


@pytest.mark.parametrize("short", ["decay", "auf"])
def test_c6_stays_open_when_rounds_never_get_deep_enough(short: str) -> None:
    """Nobody accepts a fourth token in one of the two runs, so alpha_5 does not exist there."""
    long = "auf" if short == "decay" else "decay"
    chance = UP if short == "auf" else {}
    other = UP if long == "auf" else {}
    found = judge(chain(short, {**chance, 4: 0.0}, 0), chain(long, other, 1))["C6"]
    assert found.verdict != HOLDS
    assert "too few rounds reach k = 5" in found.numbers
    assert "k=4" in found.numbers
    assert "k=5 " not in found.numbers


def test_c6_does_not_compare_what_only_one_benchmark_can_say() -> None:
    shallow = benchmark("mbpp", [[0, 1, 2]] * 10)
    deep = chain("auf", UP, 1).benchmarks[0]
    records = [record(o, [deep, shallow]) for o in ("auf", "decay")]
    assert "too few rounds reach k = 4" in judge(*records)["C6"].numbers


@pytest.mark.parametrize(
    ("objectives", "claims"),
    [
        ((), ()),
        (("auf",), ()),
        (("decay", "auf_decay"), ()),
        (("full_ce", "decay"), ()),
        (("auf", "decay"), ("C1", "C3", "C6")),
        (("auf", "auf_decay"), ("C2",)),
        (("auf", "auf_decay", "decay"), ("C1", "C2", "C3", "C6")),
    ],
)
def test_claims_whose_rows_are_missing_are_left_out(objectives: Sequence[str], claims: Sequence[str]) -> None:
    assert tuple(judge(*(run(o, NONE, NONE) for o in objectives))) == tuple(claims)


@pytest.mark.parametrize("only", [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_is_claimed_where_the_two_runs_share_no_benchmark(only: tuple[float, float]) -> None:
    """AUF was measured at one temperature, decay at the other: neither has anything to compare."""
    records = [run(o, MORE, MORE, temperature=t) for o, t in zip(("auf", "decay"), only, strict=True)]
    assert not [v for v in verdicts(select(TWO, records), "engine") if v.verdict != OPEN]


def test_c6_is_open_while_a_benchmark_is_missing() -> None:
    full = chain("decay", {}, 0), chain("auf", dict.fromkeys(range(1, 7), 0.6), 1)
    assert judge(*full)["C6"].verdict == FAILS
    assert judge(*(replace(r, benchmarks=r.benchmarks[:1]) for r in full))["C6"].verdict == OPEN


def test_c6_does_not_hold_when_a_shallow_depth_refutes_it() -> None:
    found = judge(chain("decay", {4: 0.0}, 0), chain("auf", {**UP, 1: 0.5}, 1))["C6"]
    assert found.verdict == FAILS


def test_every_temperature_is_judged_by_its_own_traces() -> None:
    def both(objective: str, cold: Counts, warm: Counts) -> RunRecord:
        one, two = run(objective, cold, cold), run(objective, warm, warm, temperature=1.0)
        return replace(one, benchmarks=one.benchmarks + two.benchmarks)

    found = verdicts(select(TWO, [both("decay", NONE, NONE), both("auf", MORE, LESS)]), "engine")
    c1 = {v.temperature: v.verdict for v in found if v.claim == "C1"}
    assert c1 == {0.0: HOLDS, 1.0: FAILS}
    assert [(v.claim, v.temperature) for v in found] == [(c, t) for c in ("C1", "C3", "C6") for t in (0.0, 1.0)]


def test_the_definition_of_tau_is_the_one_asked_for() -> None:
    """Many short rounds beside few long ones: the pooled tau falls where the mean over requests rises."""
    base = [[4] * 2, [4] * 40] * 30
    other = [[8] * 2, [3] * 40] * 30
    records = [record(o, [benchmark(c, r) for c in TWO.columns]) for o, r in (("decay", base), ("auf", other))]
    measured = select(TWO, records)
    by = {d: {v.claim: v for v in verdicts(measured, d)}["C1"] for d in ("per_response", "pooled")}
    assert "GSM8K +1.50 ± " in by["per_response"].numbers
    assert f"GSM8K {(8 * 2 + 3 * 40) / 42 - 4:+.2f} ± " in by["pooled"].numbers
    assert by["per_response"].verdict == HOLDS
    assert by["pooled"].verdict == FAILS


def test_the_page_counts_by_every_definition() -> None:
    records = [run("decay", NONE, NONE), run("auf", MORE, MORE)]
    text = tables.markdown(select(TWO, records)).partition("## By every definition of tau")[2]
    rows = [x.split(" | ") for x in text.splitlines() if x.startswith("| 0 | `")]
    assert [r[1] for r in rows] == ["`engine`", "`pooled`", "`per_response`", "`eos_truncated`"]
    measured = select(TWO, records)
    for row in rows:
        taus = [measured.taus(o, 0.0, row[1].strip("`")) for o in ("decay", "auf")]
        assert [c.split(" ")[0] for c in row[2:4]] == [f"{sum(s.tau for s in t.values()) / 2:.2f}" for t in taus]
        assert (
            row[4:]
            == [v.verdict if v.claim == "C1" else v.verdict + " |" for v in verdicts(measured, row[1].strip("`"))][:2]
        )


def test_the_page_shows_the_verdicts() -> None:
    records = [run("decay", NONE, NONE, HIGH), run("auf", MORE, MORE, LOW)]
    text = tables.markdown(select(TWO, records))
    shown = [x for x in text.splitlines() if x.startswith("| C") and ": " in x]
    expected = verdicts(select(TWO, records), "engine")
    assert shown == [f"| {v.claim}: {v.text} | 0 | **{v.verdict}** | {v.numbers} |" for v in expected]


DOMINO = specs.load_spec("table4")
TWO_DOMINO = replace(DOMINO, columns=TWO.columns, paper=replace(DOMINO.paper, values={}))
VARIANTS = ("b_auf", "b_auf_decay", "s_auf", "s_auf_decay", "f_auf", "f_auf_decay")


def judge_domino(temperature: float = 0.0, **counts: Counts) -> dict[str, Verdict]:
    records = [replace(run(o, c, c, temperature=temperature), backbone="domino") for o, c in counts.items()]
    return {v.claim: v for v in verdicts(select(TWO_DOMINO, records), "engine")}


@pytest.mark.parametrize(
    ("odd", "counts", "expected"),
    [("f_auf", MORE, HOLDS), ("f_auf", NOISE, OPEN), ("f_auf", LESS, FAILS), ("b_auf", LESS, FAILS)],
)
def test_c4_holds_when_every_variant_beats_decay(odd: str, counts: Counts, expected: str) -> None:
    found = judge_domino(decay=NONE, **{v: counts if v == odd else MORE for v in VARIANTS})
    assert found["C4"].verdict == expected
    assert all(f"{r.title} - decay" in found["C4"].numbers for r in DOMINO.rows if r.objective != "decay")


def test_c4_is_open_while_variants_are_missing_and_c5_is_left_out() -> None:
    found = judge_domino(decay=NONE, b_auf=MORE)
    assert found["C4"].verdict == OPEN
    assert set(found) == {"C4"}
    assert judge_domino(decay=NONE, s_auf=LESS)["C4"].verdict == FAILS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("others", "expected"), [(NONE, HOLDS), (MORE, OPEN), (alternating(20, 30), FAILS)])
def test_c5_asks_the_variant_the_paper_names(temperature: float, others: Counts, expected: str) -> None:
    named, rival = ("b_auf", "b_auf_decay")[:: 1 if temperature else -1]
    counts = dict.fromkeys(VARIANTS, others) | {named: MORE, rival: LESS}
    found = judge_domino(temperature, decay=LESS, **counts)["C5"]
    assert found.verdict == expected
    assert found.numbers.startswith("B-AUF - B-AUF+D " if temperature else "B-AUF+D - B-AUF ")
    assert "B-AUF - S-AUF " in found.numbers or "B-AUF+D - S-AUF " in found.numbers


def test_c5_does_not_hold_where_the_other_base_variant_is_the_best() -> None:
    counts = dict.fromkeys(VARIANTS, LESS) | {"b_auf": MORE, "b_auf_decay": NONE}
    assert judge_domino(0.0, decay=LESS, **counts)["C5"].verdict == FAILS
    assert judge_domino(1.0, decay=LESS, **counts)["C5"].verdict == HOLDS


STEPS = list(range(1, 21))
RISING, DOWNWARD = [0.1 + 0.01 * s for s in STEPS], [0.9 - 0.01 * s for s in STEPS]
JUMPY = [0.3 + 0.01 * s + 0.2 * (s % 2) for s in STEPS]


@pytest.mark.parametrize(
    ("ratio", "accuracy", "expected"),
    [(RISING, RISING, HOLDS), (RISING, DOWNWARD, FAILS), (DOWNWARD, DOWNWARD, FAILS), (RISING, JUMPY, OPEN)],
)
def test_c7_follows_the_logs_of_auf(ratio: list[float], accuracy: list[float], expected: str) -> None:
    curve = {"step": STEPS, "active_ratio": ratio, "support_accuracy": accuracy}
    steady = {"step": STEPS, "active_ratio": RISING, "support_accuracy": RISING}
    runs = [replace(logged("auf", c), seed=s, run=f"auf-{s}") for s, c in ((0, steady), (1, curve))]
    found = judge(*runs)["C7"]
    assert (found.verdict, found.temperature) == (expected, None)
    assert found.numbers.count("seed") == 2
    page = tables.markdown(select(TWO, runs))
    assert "| C7: " in page
    assert f"| – | **{expected}** |" in page


@pytest.mark.parametrize("curve", [([1], [0.1], [0.2]), (STEPS, RISING, [0.0] * len(STEPS))])
def test_c7_is_open_where_there_is_no_correlation(curve: tuple[list[int], list[float], list[float]]) -> None:
    columns = dict(zip(("step", "active_ratio", "support_accuracy"), curve, strict=True))
    found = judge(logged("auf", columns))["C7"]
    assert found.verdict == OPEN


def test_c7_is_left_out_without_logs() -> None:
    assert "C7" not in judge(run("auf", MORE, MORE), run("decay", NONE, NONE))


def test_c1_says_which_slots_the_accepted_tokens_are_in() -> None:
    def one(objective: str, rounds: Sequence[int]) -> RunRecord:
        return record(objective, [benchmark(c, [list(rounds)] * 10) for c in TWO.columns])

    numbers = judge(one("decay", [0, 1, 1, 1]), one("auf", [1, 1, 2, 4]))["C1"].numbers
    # Of the eight tokens four are a block's first, two its second, one its third and one its fourth.
    assert "of AUF's accepted tokens 50 %, 25 %, 12 %, 12 % are the block's first, second, ..." in numbers
    nothing = judge(one("decay", [0, 1]), one("auf", [0, 0]))["C1"].numbers
    assert "accepted tokens" not in nothing


def test_c3_shows_the_training_log_beside_the_held_out_accuracy() -> None:
    others = {"step": [1, 2], "active_ratio": [0.1, 0.2], "support_accuracy": [0.1, 0.2]}
    decay, auf = (logged(o, {**others, "accuracy": a}) for o, a in (("decay", [0.2, 0.4]), ("auf", [0.1, 0.2])))
    assert judge(decay, auf)["C3"].numbers.endswith("mean over all steps: decay 30.0 %, AUF 15.0 %")
    assert "training log" not in judge(decay, run("auf", MORE, MORE))["C3"].numbers
