"""Plain text for the terminal: one measured run, and a paired comparison of runs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.statistics import (
    Interval,
    Sample,
    average,
    average_difference,
    difference,
    interval,
    sample,
)
from specauf_cli.reporting import escape
from specauf_cli.reporting.labels import labels
from specauf_cli.store.layout import State
from specauf_cli.store.records import BenchmarkResult, RunRecord, settings_of, skips


def of_record(record: RunRecord, definition: str, *, all_starts: bool = False) -> list[str]:
    """tau per benchmark and temperature with intervals over prompts, block-mask accuracy and the audit."""
    text = [f"\n{record.run}  ({record.title}, seed {record.seed}, {record.config['profile']['name']})"]
    text.append(f"  tau ({definition}) ± half of the 95 % interval over prompts")
    for temperature in sorted({b.temperature for b in record.benchmarks}):
        chosen = [b for b in record.benchmarks if b.temperature == temperature]
        samples = {b.benchmark: sample({record.seed: b.traces}, definition) for b in chosen}
        for b in chosen:
            rest = f"({prompts_of(b)})"
            if all_starts and b.starts:
                rest += (
                    f"  all starts: mean accepted {_mean(b.starts['histogram']):.3f}, alpha "
                    f"{_alphas(b.starts['histogram'])}"
                )
            text.append(
                f"  {b.title:<28} T={temperature:g}  {plus_minus(interval(samples[b.benchmark], b.benchmark))}  {rest}"
            )
        text.append(f"  {'average':<28} T={temperature:g}  {plus_minus(average(samples))}")
    text.append(f"  block-mask accuracy {100 * record.heldout.accuracy:.1f} %  (held-out conversations, common mask)")
    audits = [b.audit for b in record.benchmarks]
    asked = sum(a.requests for a in audits)
    same = sum(a.identical for a in audits)
    rounds = sum(a.same_rounds for a in audits)
    text.append(
        "  audit: no request was decoded live"
        if not asked
        else f"  audit: {same} of {asked} live outputs equal the target's own token for token, {rounds} have the "
        "recorded rounds"
    )
    return escape.lines(text)


def prompts_of(result: BenchmarkResult) -> str:
    """How many prompts were measured, and what was skipped and why: ``79 prompts, 1 skipped: prompt longer ...``."""
    return ", ".join(filter(None, [f"{result.measured} prompts", skips(result.skipped)]))


def of_rounds(histogram: Sequence[int]) -> str:
    """The share of rounds that accepted 0, 1, 2, ... tokens."""
    return f"{100 * histogram[0] / max(1, sum(histogram)):.0f} % of rounds accept nothing"


def of_state(
    name: str,
    state: str,
    step: int,
    about: Mapping[str, Any],
    log: Sequence[Mapping[str, float]],
    reason: str,
    origin: str = "",
) -> list[str]:
    """A run on disk: what was chosen, how far it got, and the loss as a line of bars."""
    config = about["config"]
    chosen = {
        "backbone": config["backbone"]["name"],
        "objective": config["objective"]["name"],
        "target": config["target"]["name"],
        "data": about["data"]["name"],
        "profile": config["profile"]["name"],
        "seed": config["seed"],
    }
    trainer, steps = config["trainer"], config["trainer"]["steps"]
    done = origin or f"{step} steps"
    so_far = f", {done}" if state == "finished" else f" at step {step}" + (f" of {steps}" if steps else "")
    text = [name, f"  {state}{so_far}"]
    text += [f"  because: {reason}"] if reason else []
    text.append("  " + ", ".join(f"{k} {v}" for k, v in chosen.items()))
    kept = ("batch_size", "anchors", "max_length", "lr", "precision", "normalize", "labels")
    text.append("  trainer: " + ", ".join(f"{k} {trainer[k]}" for k in kept))
    text.append(f"  command: {about['command']}")
    if log:
        last = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in log[-1].items() if k != "step")
        text += [f"  loss {sparkline([line['loss'] for line in log])}", f"  last line of the log: {last}"]
    return escape.lines(text)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """``values`` as bars of eight heights, averaged down to at most ``width`` of them, with the first and last
    number."""
    bars, size = "▁▂▃▄▅▆▇█", max(1, -(-len(values) // width))
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    low, high = min(means), max(means)
    drawn = "".join(bars[round((v - low) / (high - low) * 7) if high > low else 0] for v in means)
    return f"{values[0]:.3f} {drawn} {values[-1]:.3f}"


def apart(states: Sequence[State]) -> dict[str, str]:
    """By name, what tells a run from those whose names differ from its own in the hash alone: ``(gamma 4)``."""
    alike: dict[str, list[State]] = {}
    for state in states:
        if state.about:  # a damaged run says nothing
            alike.setdefault(state.name.rpartition("-")[0], []).append(state)
    named = (
        (s, label)
        for some in alike.values()
        for s, label in zip(some, labels([s.about["config"] for s in some]), strict=True)
    )
    return {s.name: f"({label})" for s, label in named if label}


def averages(record: RunRecord, definition: str) -> str:
    """One line: the average tau at each temperature, of how many benchmarks, and block-mask accuracy."""
    found, titles = [], list(dict.fromkeys(b.title for b in record.benchmarks))
    for temperature in sorted({b.temperature for b in record.benchmarks}):
        taus = [tau.mean(b.traces, definition) for b in record.benchmarks if b.temperature == temperature]
        found.append(f"T={temperature:g} tau {sum(taus) / len(taus):.3f}")
    found.append(f"of {len(titles)} benchmarks" if len(titles) > 1 else f"of {titles[0]} alone")
    return f"{'  '.join(found)}  block-mask accuracy {100 * record.heldout.accuracy:.1f} %"


def comparison(measured: Sequence[Sequence[RunRecord]], definition: str) -> list[str]:
    """Every later run minus the first, paired by prompt, per benchmark and temperature.

    Of each run the records with different evaluation settings; runs are compared where both were measured alike.
    Errors: InputError when they never were, share no benchmark, or were measured on other prompts.
    """
    baseline = measured[0][-1]
    newest = [records[-1] for records in measured]
    names = [
        ", ".join(filter(None, [r.title, label, f"seed {r.seed}"]))
        for r, label in zip(newest, labels([r.config for r in newest]), strict=True)
    ]
    text = [f"baseline: {baseline.run} ({names[0]}), tau ({definition})"]
    for records, name in zip(measured[1:], names[1:], strict=True):
        other, first = _alike(records, measured[0])
        text.append(f"\n{other.run} ({name}) minus baseline")
        differs = [k for k in ("target", "data") if other.inputs.get(k) != first.inputs.get(k)]
        text += (
            [f"  note: trained for or on another {' and '.join(differs)}, so this compares more than objectives"]
            if differs
            else []
        )
        pairs = _pairs(other, first)
        for temperature in sorted({a.temperature for a, _ in pairs}):
            # One drafter against one drafter: their seeds may differ, the prompts are what is paired.
            mine: dict[str, Sample] = {}
            base: dict[str, Sample] = {}
            for a, b in pairs:
                if a.temperature == temperature:
                    mine[a.benchmark] = sample({0: a.traces}, definition)
                    base[a.benchmark] = sample({0: b.traces}, definition)
                    text.append(
                        _line(a.title, temperature, difference(mine[a.benchmark], base[a.benchmark], a.benchmark))
                    )
            text.append(_line("average", temperature, average_difference(mine, base)))
    return escape.lines(text)


def _alike(mine: Sequence[RunRecord], base: Sequence[RunRecord]) -> tuple[RunRecord, RunRecord]:
    """The newest two that were measured with the same settings."""
    for a in reversed(mine):
        for b in reversed(base):
            if settings_of(a) == settings_of(b):
                return a, b
    ours, theirs = settings_of(mine[-1]), settings_of(base[-1])
    differ = ", ".join(f"{k} {ours[k]} and {theirs[k]}" for k in ours if ours[k] != theirs[k])
    raise InputError(f"{mine[-1].run} and {base[-1].run} were measured differently ({differ}); evaluate both alike")


def _pairs(mine: RunRecord, base: RunRecord) -> list[tuple[BenchmarkResult, BenchmarkResult]]:
    """Results of both on the same prompts: per benchmark and temperature the prompt set with the most prompts."""
    found: dict[tuple[str, float], tuple[BenchmarkResult, BenchmarkResult]] = {}
    both = [
        (a, b)
        for a in mine.benchmarks
        for b in base.benchmarks
        if (a.benchmark, a.temperature) == (b.benchmark, b.temperature)
    ]
    if not both:
        raise InputError(f"{mine.run} and {base.run} share no benchmark at the same temperature; evaluate both alike")
    for a, b in both:
        key = (a.benchmark, a.temperature)
        if a.prompts_sha256 == b.prompts_sha256 and (key not in found or found[key][0].prompts < a.prompts):
            found[key] = a, b
    for a, _ in both:
        if (a.benchmark, a.temperature) not in found:
            raise InputError(f"{a.title}: {mine.run} and {base.run} were measured on different prompts")
    return list(found.values())


def _line(title: str, temperature: float, estimate: Interval) -> str:
    verdict = "" if estimate.separable else "  not separable"
    return (
        f"  {title:<28} T={temperature:g}  {estimate.value:+.3f} ± {estimate.half_width:.3f}  (detectable "
        f"{estimate.detectable:.3f}){verdict}"
    )


def plus_minus(estimate: Interval) -> str:
    """``tau 2.061 ± 0.034``: a mean with half of its 95 % interval."""
    return f"tau {estimate.value:6.3f} ± {estimate.half_width:.3f}"


def _mean(histogram: Sequence[int]) -> float:
    return sum(a * n for a, n in enumerate(histogram)) / max(1, sum(histogram))


def _alphas(histogram: Sequence[int]) -> str:
    """alpha_1 .. alpha_6 of a histogram of accepted counts."""
    alive = [sum(histogram[k:]) for k in range(len(histogram))]
    return " ".join(f"{b / a:.2f}" if a else "–" for a, b in list(pairwise(alive))[:6])
