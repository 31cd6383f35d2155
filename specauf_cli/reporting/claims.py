"""The paper's claims, each with a verdict from measured data: holds, does not hold, or not separable."""

from collections.abc import Sequence
from dataclasses import dataclass

from specauf_cli.evaluation.statistics import Interval, average_difference, difference, equivalent
from specauf_cli.reporting.measured import Measured, common
from specauf_cli.schema import InputError

HOLDS, FAILS, OPEN = "holds", "does not hold", "not separable"
DEPTHS = range(1, 7)


@dataclass(frozen=True)
class Verdict:
    """One claim at one temperature. ``numbers`` are the measured ones that the verdict rests on."""

    claim: str
    text: str
    temperature: float
    verdict: str
    numbers: str


def verdicts(measured: Measured, definition: str) -> list[Verdict]:
    """Verdicts on C1, C2, C3 and C6 (DFlash), for every temperature; claims whose rows are missing are left out.

    C1 AUF has the higher tau than decay on every benchmark and on average. C2 AUF and AUF+decay are equivalent in tau:
    every interval of their difference lies within +- the experiment's margin. C3 decay has the higher common-mask
    accuracy and yet the lower average tau. C6 AUF lifts the conditional acceptance alpha_k at k = 1..6 (average over
    benchmarks). Source: Spec-AUF (arXiv 2607.01893), sections 4 and 5.
    """
    result = []
    have = {r.objective for r in measured.records}
    for temperature in measured.temperatures:
        if {"auf", "decay"} <= have:
            result.append(_higher(measured, temperature, definition))
        if {"auf", "auf_decay"} <= have:
            result.append(_equivalent(measured, temperature, definition))
        if {"auf", "decay"} <= have:
            result.append(_inversion(measured, temperature, definition))
            result.append(_depths(measured, temperature))
    return sorted(result, key=lambda v: (v.claim, v.temperature))


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


def _pairs(measured: Measured, a: str, b: str, temperature: float, definition: str) -> dict[str, Interval]:
    """Differences a - b per column title, then the average over the columns both have."""
    ours, theirs = (measured.taus(o, temperature, definition) for o in (a, b))
    columns = common(ours, theirs)
    found = {measured.experiment.columns[c]: difference(ours[c], theirs[c], c) for c in columns}
    if len(columns) > 1:
        found["Avg"] = average_difference({c: ours[c] for c in columns}, {c: theirs[c] for c in columns})
    return found


def _listed(found: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {signed(i)}" for name, i in found.items()) or "nothing in common"


def _complete(measured: Measured, found: dict[str, Interval], verdict: str) -> str:
    """A claim about every benchmark cannot hold on some of them, though some can refute it."""
    return OPEN if verdict == HOLDS and len(found) < len(measured.experiment.columns) + 1 else verdict


def _higher(measured: Measured, temperature: float, definition: str) -> Verdict:
    found = _pairs(measured, "auf", "decay", temperature, definition)
    text = "AUF > decay in tau on every benchmark and on average"
    verdict = _complete(measured, found, all_above(list(found.values())))
    return Verdict("C1", text, temperature, verdict, f"AUF - decay: {_listed(found)}")


def _equivalent(measured: Measured, temperature: float, definition: str) -> Verdict:
    margin = measured.experiment.margin
    found = _pairs(measured, "auf", "auf_decay", temperature, definition)
    text = f"AUF and AUF+decay are equivalent in tau (within ±{margin:g} on every benchmark and on average)"
    verdict = _complete(measured, found, all_within(list(found.values()), margin))
    return Verdict("C2", text, temperature, verdict, f"AUF - AUF+decay: {_listed(found)}")


def _inversion(measured: Measured, temperature: float, definition: str) -> Verdict:
    ours, theirs = measured.accuracy("decay"), measured.accuracy("auf")
    assert ours is not None
    assert theirs is not None
    blocks = difference(ours, theirs, "heldout")
    found = _pairs(measured, "auf", "decay", temperature, definition)
    tau = found.get("Avg")
    points = f"{100 * blocks.value:+.1f} ± {100 * blocks.half_width:.1f} points"
    average = signed(tau) if tau is not None else "nothing in common"
    numbers = f"accuracy, decay - AUF: {points}; average tau, AUF - decay: {average}"
    text = "decay has the higher common-mask accuracy and yet the lower tau"
    verdict = _complete(measured, found, all_above([blocks] if tau is None else [blocks, tau]))
    return Verdict("C3", text, temperature, verdict, numbers)


def _depths(measured: Measured, temperature: float) -> Verdict:
    found: dict[str, Interval] = {}
    for k in DEPTHS:
        try:
            ours, theirs = (measured.alphas(o, temperature, k) for o in ("auf", "decay"))
            columns = common(ours, theirs)
            found[f"k={k}"] = average_difference({c: ours[c] for c in columns}, {c: theirs[c] for c in columns})
        except InputError:  # no round of some run got to depth k - 1
            break
    text = "AUF lifts the conditional acceptance alpha_k at k = 1..6"
    missing = [k for k in DEPTHS if f"k={k}" not in found]
    verdict = all_above(list(found.values()))
    verdict = OPEN if missing and verdict == HOLDS else verdict
    note = f"; too few rounds reach k = {missing[0]}" if missing else ""
    return Verdict("C6", text, temperature, verdict, f"alpha_k, AUF - decay: {_listed(found)}{note}")
