"""The page of ``specauf speed``: who is faster, what a round costs, how many tokens to propose, and elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from specauf_cli.evaluation.cost import (
    LOOPING,
    CurvePoint,
    MethodSpeed,
    as_replayed,
    best,
    curve,
    method_speed,
    pooled_tau,
    quotient,
)
from specauf_cli.evaluation.statistics import Interval
from specauf_cli.reporting import escape
from specauf_cli.reporting.tables import DASH, table_row
from specauf_cli.store.speed import PLAIN, Repetition, SpeedRecord


@dataclass(frozen=True)
class Projection:
    """R of a round on another machine, by method. ``floor``: it is a lower bound, so speed-ups are upper bounds."""

    place: str
    note: str
    ratios: dict[str, float]
    floor: bool


def markdown(record: SpeedRecord, projections: Sequence[Projection] = ()) -> str:
    """The page. ``projections`` are not part of the record: they are asked for when the page is written."""
    measured = {m.key: method_speed(record, m.key) for m in record.methods}
    text = [
        "# What a round costs, and what it brings",
        "",
        *_about(record),
        "",
        "## Tokens a second at batch size 1",
        "",
        *_speeds(record, measured),
        "",
        "## R, tau and the speed-up",
        "",
        *_ratios(record, measured),
        "",
        *_repetition(record.repetition),
        "",
    ]
    for size in sorted({r.batch_size for r in record.rounds}):
        text += [f"## How many tokens to propose, batch size {size}", "", *_curves(record, measured, size), ""]
    if projections:
        text += ["## Elsewhere", "", *_projections(record, projections), ""]
    return "\n".join(text)


def summary(record: SpeedRecord) -> list[str]:
    """A line for every method, for the terminal."""
    lines = []
    for m in record.methods:
        found = method_speed(record, m.key)
        lines.append(
            f"  {m.title:<28} {found.speed.value:8.1f} tokens/s  tau {found.tau.value:5.2f}  R {found.ratio.value:5.2f}"
            f"  speed-up {found.measured.value:5.2f} (tau / R {found.predicted.value:.2f})"
        )
    return lines


def _about(record: SpeedRecord) -> list[str]:
    where = record.environment
    device = where.get("gpu") or where.get("cpu")
    requests = len({(r.benchmark, r.prompt, r.turn) for r in record.requests})
    repeats = len({r.repeat for r in record.requests})
    settings = record.config.get("evaluation", {})
    text = [
        f"Profile {escape.code(record.profile)}, target {escape.cell(record.target.title)} in "
        f"{escape.cell(settings.get('precision', DASH))}, T = {record.temperature:g}, at most "
        f"{escape.cell(settings.get('max_new_tokens', DASH))} new tokens. {requests} requests, each {repeats} times by "
        f"every method in random order, on {escape.cell(device)}, threads: {escape.cell(where.get('threads'))}; "
        "prefill apart. PyTorch without graphs or fused kernels: R is that of this loop on this machine, not of an "
        "engine.",
        "",
        _lossless(record),
        "",
        "± is half of the 95 % percentile interval of a bootstrap: over prompts, paired between methods; over "
        "repetitions where rounds were timed alone. How to read the page: docs/speed.md.",
    ]
    return text


def _lossless(record: SpeedRecord) -> str:
    wrong = {record.method(key).title: n for key, n in record.different.items() if n}
    other = [escape.cell(m.title) for m in record.methods if not as_replayed(record, m.key)]
    if not wrong and not other:
        return "Every live output is the target's own, token for token, and the rounds are those of the replay."
    if not wrong:
        return (
            f"**Live rounds that are not those of the replay:** {', '.join(other)}. Every output is the target's own."
        )
    return "**Live outputs that are not the target's own:** " + ", ".join(
        f"{escape.cell(title)} {n}" for title, n in wrong.items()
    )


def _speeds(record: SpeedRecord, measured: dict[str, MethodSpeed]) -> list[str]:
    rows = [
        table_row(["method", "tokens/s", "ms per token, p50", "p95", "speed-up, measured"]),
        table_row(["---", "--:", "--:", "--:", "--:"]),
    ]
    for method in record.methods:
        found = measured[method.key]
        rows.append(
            table_row(
                [
                    escape.cell(method.title),
                    _cell(found.speed, 1),
                    _cell(found.median, 2, 1e3),
                    _cell(found.slowest, 2, 1e3),
                    DASH if method.key == PLAIN else _cell(found.measured, 2),
                ]
            )
        )
    return rows


def _ratios(record: SpeedRecord, measured: dict[str, MethodSpeed]) -> list[str]:
    head = ["method", "P", "tau, pooled", "repeated 4-grams", "draft", "verify", "rest", "R", "tau / R", "measured"]
    head.append("measured / (tau / R)")
    everywhere = sum(r.repeated for r in record.repetition), sum(r.total for r in record.repetition)
    rows = [table_row(head), table_row(["---", *["--:"] * (len(head) - 1)])]
    for method in record.methods:
        if method.key == PLAIN:
            continue
        found = measured[method.key]
        rows.append(
            table_row(
                [
                    escape.cell(method.title),
                    str(method.proposals),
                    _cell(found.tau, 2),
                    repetition_note(*everywhere),
                    *(f"{found.parts[part]:.2f}" for part in ("draft", "verify", "rest")),
                    _cell(found.ratio, 2),
                    _cell(found.predicted, 2),
                    _cell(found.measured, 2),
                    f"{100 * found.gap:+.1f} %",
                ]
            )
        )
    return [
        *rows,
        "",
        "Draft, verify (a pass over the proposals and the token before them) and rest (accepting, rolling back, "
        "reading features) in plain steps; R is their sum. What is left between tau / R and the measured speed-up are "
        "tokens accepted past the end of an answer and the loop outside its rounds.",
    ]


def _curves(record: SpeedRecord, measured: dict[str, MethodSpeed], size: int) -> list[str]:
    text: list[str] = []
    for method in record.methods:
        points = curve(record, method.key, size) if method.kind == "drafter" else []
        if not points:
            continue
        chosen = best(points)
        text += [
            f"**{escape.cell(method.title)}**",
            "",
            table_row(["P", "tau(P)", "draft", "verify", "rest", "R(P)", "tau(P) / R(P)"]),
            table_row(["--:"] * 7),
            *(_point(point, point is chosen) for point in points),
            "",
            _best(chosen, points, measured[method.key] if size == 1 else None),
            "",
        ]
    return [
        *text,
        f"Rounds timed alone after {record.context} tokens and more (medians), tau(P) by an exact replay of the "
        "timed requests with at most P proposals. Prompt lookup has no such curve: its rounds differ in size.",
    ]


def _point(point: CurvePoint, bold: bool) -> str:
    speedup = _cell(point.speedup, 2)
    return table_row(
        [
            str(point.proposals),
            _cell(point.tau, 2),
            *(f"{point.parts[part]:.2f}" for part in ("draft", "verify", "rest")),
            _cell(point.ratio, 2),
            f"**{speedup}**" if bold else speedup,
        ]
    )


def _best(chosen: CurvePoint, points: Sequence[CurvePoint], whole: MethodSpeed | None) -> str:
    rivals = [p.proposals for p in points if p is not chosen and p.speedup.high >= chosen.speedup.low]
    text = f"Best P: {chosen.proposals}"
    text += f"; intervals overlap with those of {', '.join(map(str, rivals))}." if rivals else "."
    if whole is None:
        return text
    own = max(points, key=lambda p: p.proposals)
    apart = whole.measured.value / own.speedup.value - 1
    return (
        f"{text} At P = {own.proposals} rounds timed alone predict {own.speedup.value:.2f}, whole requests gave "
        f"{whole.measured.value:.2f} ({100 * apart:+.1f} %)."
    )


def repetition_note(repeated: int, total: int) -> str:
    """The share of repeated 4-grams in words, marked where it is high."""
    if not total:
        return DASH
    share = repeated / total
    return f"**{100 * share:.0f} % (repeats itself)**" if share >= LOOPING else f"{100 * share:.0f} %"


def _repetition(benchmarks: Sequence[Repetition]) -> list[str]:
    each = ", ".join(f"{escape.cell(r.title)} {repetition_note(r.repeated, r.total)}" for r in benchmarks)
    text = f"Repeated 4-grams in the target's answers: {each}."
    if any(r.total and r.repeated / r.total >= LOOPING for r in benchmarks):
        text += " Answers that repeat themselves are easy for every drafter: expect less of a target that does not."
    return [text]


def _projections(record: SpeedRecord, projections: Sequence[Projection]) -> list[str]:
    text: list[str] = []
    for projection in projections:
        bound = " at most" if projection.floor else ""
        rows = [
            table_row(["method", "tau, pooled", "R, at least" if projection.floor else "R", f"speed-up{bound}"]),
            table_row(["---", "--:", "--:", "--:"]),
        ]
        for key, ratio in projection.ratios.items():
            tau = quotient([pooled_tau(record, key)], [])
            speedup = Interval(
                tau.value / ratio, tau.low / ratio, tau.high / ratio, tau.error / ratio, tau.prompts, tau.seeds
            )
            rows.append(
                table_row(
                    [escape.cell(record.method(key).title), _cell(tau, 2), f"{ratio:.2f}", _cell(speedup, 2)],
                )
            )
        text += [f"**{escape.cell(projection.place)}**: {escape.cell(projection.note)}", "", *rows, ""]
    return [
        *text,
        "tau is the one measured here, with this target: another target's drafter has another tau. The speed-up of "
        "any tau is tau / R.",
    ]


def _cell(interval: Interval, digits: int, factor: float = 1.0) -> str:
    """A value with half of its interval, where it has one."""
    value = f"{factor * interval.value:.{digits}f}"
    finite = interval.half_width != float("inf")
    return f"{value} ± {factor * interval.half_width:.{digits}f}" if finite else value
