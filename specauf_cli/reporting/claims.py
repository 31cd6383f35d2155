"""The paper's claims, each with a verdict from measured data: holds, does not hold, or not separable."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.statistics import Interval, average_difference, difference, equivalent
from specauf_cli.reporting.escape import cell, code
from specauf_cli.reporting.measured import Measured, common

HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable"
DEPTHS = range(1, 7)
BASE_VARIANTS = ("b_auf", "b_auf_decay")
OTHER_VARIANTS = ("s_auf", "s_auf_decay", "f_auf", "f_auf_decay")


@dataclass(frozen=True)
class Verdict:
    """One claim at one temperature (None: it is about training). ``numbers`` are the measured ones the verdict rests
    on."""

    claim: str
    text: str
    temperature: float | None
    verdict: str
    numbers: str


@lru_cache(maxsize=64)  # a table's page, the report and the front page ask for the same ones
def verdicts(measured: Measured, definition: str) -> Sequence[Verdict]:
    """Verdicts on the claims that the table's backbone is about; claims whose rows are missing are left out.

    DFlash: C1 AUF has the higher tau than decay on every benchmark and on average. C2 AUF and AUF+decay are equivalent
    in tau: every interval of their difference is within +- the experiment's margin. C3 decay has the higher
    common-mask accuracy and yet the lower average tau. C6 AUF lifts the conditional acceptance alpha_k at k = 1..6
    (average over benchmarks). C7 in training with AUF, active ratio and support accuracy rise together. Domino: C4
    every AUF variant beats decay in average tau. C5 the base-branch variant that the paper names is the best of the
    six. Source: Spec-AUF (arXiv 2607.01893), sections 4 and 5.
    """
    result = [*of_tau(measured, definition)]
    if {"auf", "decay"} <= {r.objective for r in measured.records}:
        result += [_depths(measured, temperature) for temperature in measured.temperatures]
    if any(r.training.curve for r in measured.of("auf")):
        result.append(_rising(measured))
    return tuple(sorted(result, key=lambda v: (v.claim, v.temperature or 0.0)))


@lru_cache(maxsize=64)
def of_tau(measured: Measured, definition: str) -> Sequence[Verdict]:
    """Verdicts on the claims that compare tau, C1 to C5: those that can depend on how it is counted."""
    result = []
    have = {r.objective for r in measured.records}
    for temperature in measured.temperatures:
        if {"auf", "decay"} <= have:
            result.append(_higher(measured, temperature, definition))
        if {"auf", "auf_decay"} <= have:
            result.append(_equivalent(measured, temperature, definition))
        if {"auf", "decay"} <= have:
            result.append(_inversion(measured, temperature, definition))
        if "decay" in have and {*BASE_VARIANTS, *OTHER_VARIANTS} & have:
            result.append(_every_variant(measured, temperature, definition))
        if {*BASE_VARIANTS, *OTHER_VARIANTS} <= have:
            result.append(_base_best(measured, temperature, definition))
    return tuple(result)


def matrix(by_profile: Mapping[str, Sequence[Verdict]], links: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Every claim against every profile as a Markdown table: the verdicts at the profile's temperatures, in their
    order.

    ``by_profile``: verdicts by profile; ``links[profile][claim]``: the page with their numbers.
    """
    claims = sorted({(v.claim, v.text) for verdicts_ in by_profile.values() for v in verdicts_}, key=_number)
    rows = [f"| claim | {' | '.join(map(code, by_profile))} |", "| --- |" + " --- |" * len(by_profile)]
    for name, text in claims:
        cells = []
        for profile, verdicts_ in by_profile.items():
            mine = [v for v in verdicts_ if v.claim == name]
            words = [v.verdict if v.temperature is None else f"T={v.temperature:g}: {v.verdict}" for v in mine]
            same = len({v.verdict for v in mine}) == 1
            said = mine[0].verdict if same else ", ".join(words)
            cells.append(f"[{said}]({links[profile][name]})" if mine else "–")
        rows.append(f"| **{cell(name)}** {cell(text)} | {' | '.join(cells)} |")
    return rows


def _number(claim: tuple[str, str]) -> int:
    """C10 comes after C9."""
    return int(claim[0].removeprefix("C"))


def all_above(intervals: Sequence[Interval]) -> str:
    """Verdict on "every one of these differences is positive"; without any difference nothing can be said."""
    if any(i.high < 0 for i in intervals):
        return FAILS
    return HOLDS if intervals and all(i.low > 0 for i in intervals) else OPEN


def all_within(intervals: Sequence[Interval], margin: float) -> str:
    """Verdict on "every one of these differences is within +- margin"; without any nothing can be said."""
    if any(i.low > margin or i.high < -margin for i in intervals):
        return FAILS
    return HOLDS if intervals and all(equivalent(i, margin) for i in intervals) else OPEN


def signed(interval: Interval) -> str:
    """``+0.24 ± 0.03``."""
    return f"{round(interval.value, 2) + 0.0:+.2f} ± {interval.half_width:.2f}"


def pairs(measured: Measured, a: str, b: str, temperature: float, definition: str) -> dict[str, Interval]:
    """Differences in tau, a - b, per column title, then as ``Avg`` the average, where both have every column."""
    ours, theirs = (measured.taus(o, temperature, definition) for o in (a, b))
    columns = common(ours, theirs)
    intervals = {measured.experiment.columns[c]: difference(ours[c], theirs[c], c) for c in columns}
    if len(columns) == len(measured.experiment.columns):
        intervals["Avg"] = average_difference({c: ours[c] for c in columns}, {c: theirs[c] for c in columns})
    return intervals


def _listed(intervals: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {signed(i)}" for name, i in intervals.items()) or "nothing in common"


def _complete(measured: Measured, intervals: dict[str, Interval], verdict: str) -> str:
    """A claim about every benchmark cannot hold on some of them, though some can refute it."""
    return OPEN if verdict == HOLDS and len(intervals) < len(measured.experiment.columns) + 1 else verdict


def _higher(measured: Measured, temperature: float, definition: str) -> Verdict:
    intervals = pairs(measured, "auf", "decay", temperature, definition)
    text = "AUF > decay in tau on every benchmark and on average"
    verdict = _complete(measured, intervals, all_above(list(intervals.values())))
    return Verdict(
        "C1", text, temperature, verdict, f"AUF - decay: {_listed(intervals)}{_depth_note(measured, temperature)}"
    )


def _depth_note(measured: Measured, temperature: float) -> str:
    """Which slots a difference in tau rests on: how AUF's accepted tokens are spread over the first slots."""
    by_column = (measured.traces("auf", column, temperature) for column in measured.experiment.columns)
    alive = [tau.survival(traces)[1:] for runs in by_column for traces in runs.values()]
    deepest = min((len(shares) for shares in alive), default=0)
    accepted = np.mean([shares[:deepest] for shares in alive], axis=0) if deepest else np.zeros(1)
    if not accepted.sum() > 0:
        return ""
    shares = [f"{100 * share:.0f} %" for share in accepted / accepted.sum()][:4]
    return f"; of AUF's accepted tokens {', '.join(shares)} are the block's first, second, ..."


def _equivalent(measured: Measured, temperature: float, definition: str) -> Verdict:
    margin = measured.experiment.margin
    intervals = pairs(measured, "auf", "auf_decay", temperature, definition)
    text = f"AUF and AUF+decay are equivalent in tau (within ±{margin:g} on every benchmark and on average)"
    verdict = _complete(measured, intervals, all_within(list(intervals.values()), margin))
    numbers = f"AUF - AUF+decay: {_listed(intervals)}"
    gain = pairs(measured, "auf", "decay", temperature, definition).get("Avg") if measured.of("decay") else None
    if gain is not None and equivalent(gain, margin):
        numbers += (
            f"; by this margin AUF and decay are equivalent on average too ({signed(gain)}), so it says little here"
        )
    return Verdict("C2", text, temperature, verdict, numbers)


def _inversion(measured: Measured, temperature: float, definition: str) -> Verdict:
    ours, theirs = measured.accuracy("decay"), measured.accuracy("auf")
    assert ours is not None
    assert theirs is not None
    blocks = difference(ours, theirs, "heldout")
    found = pairs(measured, "auf", "decay", temperature, definition)
    average = found.get("Avg")
    points = f"{100 * blocks.value:+.1f} ± {100 * blocks.half_width:.1f} points"
    lead = signed(average) if average is not None else "nothing in common"
    numbers = f"accuracy, decay - AUF: {points}; average tau, AUF - decay: {lead}{_log_note(measured)}"
    text = "decay has the higher common-mask accuracy and yet the lower tau"
    verdict = _complete(measured, found, all_above([blocks] if average is None else [blocks, average]))
    return Verdict("C3", text, temperature, verdict, numbers)


def _log_note(measured: Measured) -> str:
    """Accuracy while training, which is what the paper's curves show: the mean over the log, of every seed."""
    curves = {o: [r.training.curve.get("accuracy", ()) for r in measured.of(o)] for o in ("decay", "auf")}
    if not all(curve for runs in curves.values() for curve in runs):
        return ""
    decay, auf = (100 * float(np.mean([np.mean(curve) for curve in runs])) for runs in curves.values())
    return f"; in the training log, mean over all steps: decay {decay:.1f} %, AUF {auf:.1f} %"


def _depths(measured: Measured, temperature: float) -> Verdict:
    """The verdict is on alpha_k, as the paper defines it. It compares different rounds: a drafter that reaches depth
    k - 1 more often gets there in harder ones too. Beside it stand P(A >= k), which is of all rounds, and alpha_k of
    the rounds that both begin at the same token and in which both accept k - 1 tokens."""
    found, survived, alike = dict[str, Interval](), dict[str, Interval](), dict[str, Interval]()
    whole = True
    for k in DEPTHS:
        try:
            ours, theirs = (measured.alphas(o, temperature, k) for o in ("auf", "decay"))
            columns = common(ours, theirs)
            whole = whole and len(columns) == len(measured.experiment.columns)
            found[f"k={k}"] = average_difference({c: ours[c] for c in columns}, {c: theirs[c] for c in columns})
        except InputError:  # no round of some run got to depth k - 1
            break
        ours, theirs = (measured.alphas(o, temperature, k, given=0) for o in ("auf", "decay"))
        survived[f"k={k}"] = average_difference({c: ours[c] for c in columns}, {c: theirs[c] for c in columns})
        with suppress(InputError):  # too few rounds in common
            alike[f"k={k}"] = average_difference(*measured.common_alphas("auf", "decay", temperature, k))
    text = "AUF lifts the conditional acceptance alpha_k at k = 1..6"
    missing = [k for k in DEPTHS if f"k={k}" not in found]
    verdict = all_above(list(found.values())) if whole else OPEN
    verdict = OPEN if missing and verdict == HOLDS else verdict
    note = f"; too few rounds reach k = {missing[0]}" if missing else ""
    numbers = (
        f"alpha_k, AUF - decay: {_listed(found)}{note}; of all rounds, P(A >= k): {_listed(survived)}; alpha_k of the "
        f"rounds that both begin at the same token and in which both accept k - 1: {_listed(alike)}"
    )
    return Verdict("C6", text, temperature, verdict, numbers)


def _averages(
    measured: Measured, wanted: Sequence[tuple[str, str]], temperature: float, definition: str
) -> dict[str, Interval]:
    """Differences in average tau by the two rows' titles, for pairs that both have every column."""
    titles = {r.objective: r.title for r in measured.experiment.rows}
    intervals = {}
    for a, b in wanted:
        both = pairs(measured, a, b, temperature, definition)
        if "Avg" in both:
            intervals[f"{titles[a]} - {titles[b]}"] = both["Avg"]
    return intervals


def _every_variant(measured: Measured, temperature: float, definition: str) -> Verdict:
    variants = [v for v in (*BASE_VARIANTS, *OTHER_VARIANTS) if measured.of(v)]
    intervals = _averages(measured, [(v, "decay") for v in variants], temperature, definition)
    verdict = all_above(list(intervals.values()))
    whole = len(intervals) == len(BASE_VARIANTS) + len(OTHER_VARIANTS)
    verdict = OPEN if verdict == HOLDS and not whole else verdict
    return Verdict("C4", "every AUF variant beats decay in average tau", temperature, verdict, _listed(intervals))


def _base_best(measured: Measured, temperature: float, definition: str) -> Verdict:
    """The paper names B-AUF+D at T = 0 and B-AUF above; it must beat the other base-branch variant and the four
    others."""
    named, other = BASE_VARIANTS[::-1] if temperature == 0 else BASE_VARIANTS
    rest = (other, *OTHER_VARIANTS)
    intervals = _averages(measured, [(named, v) for v in rest], temperature, definition)
    verdict = all_above(list(intervals.values()))
    verdict = OPEN if verdict == HOLDS and len(intervals) < len(rest) else verdict
    text = (
        "the base-branch variant the paper names (B-AUF+D at T = 0, else B-AUF) has the highest average tau of the six"
    )
    return Verdict("C5", text, temperature, verdict, _listed(intervals))


def _rising(measured: Measured) -> Verdict:
    """Rank correlations over the log of each seed; 0.5 is the line above which two columns count as rising together."""
    lowest, numbers = 1.0, []
    for record in measured.of("auf"):
        curve = record.training.curve
        if not curve:
            continue
        columns = ("step", "active_ratio", "support_accuracy")
        ranks = pd.DataFrame({k: curve[k] for k in columns}).corr("spearman").to_numpy()
        each = [float(ranks[1, 2]), float(ranks[0, 1]), float(ranks[0, 2])]
        lowest = float(np.min([lowest, *each]))  # NaN when one of them is
        numbers.append(
            f"seed {record.seed}: with each other {each[0]:+.2f}, with the step {each[1]:+.2f} and {each[2]:+.2f}"
        )
    verdict = HOLDS if lowest >= 0.5 else FAILS if lowest <= 0 else OPEN  # of a constant column there is no correlation
    text = "during AUF training active ratio and support accuracy rise together (every rank correlation at least 0.5)"
    return Verdict("C7", text, None, verdict, f"rank correlation over the log: {'; '.join(numbers)}")
