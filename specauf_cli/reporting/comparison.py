"""Objectives and variants of them side by side: per condition a table sorted by tau, and the claims C8 and C9."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from specauf_cli.config.specs import ComparisonSpec, Condition, VariantRow
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.statistics import Interval, Sample, average, average_difference, interval
from specauf_cli.reporting.claims import HOLDS, OPEN, Verdict, all_above, signed
from specauf_cli.reporting.escape import cell, code, path
from specauf_cli.reporting.figures import BudgetPanel, Figure, GammaPanel, tau_by_budget, tau_by_gamma
from specauf_cli.reporting.measured import Measured, seeds_of, select, sources
from specauf_cli.reporting.tables import (
    DASH,
    audit_note,
    condition_name,
    difference_cell,
    profile_note,
    prompts_note,
    table_row,
    tau_cell,
)
from specauf_cli.store.records import RunRecord

DEPTHS = range(1, 5)
"""k of P(A >= k), and the slots whose accuracy is shown."""
CONTROLS = ("auf", "shuffled_auf", "static_auf")
"""Rows that C9 compares, the first with the others; the figure shows all of them beside decay."""


@dataclass(frozen=True)
class Line:
    """What was measured of one row under one condition, at the lowest temperature; None is a dash.

    ``taus`` by column, for the complete ones; ``average`` of all columns; ``to_baseline`` and ``to_best`` are paired
    differences of averages over the seeds that both rows have. ``survival``: P(A >= k) at ``DEPTHS``, as far as blocks
    go, and ``slots``, the accuracy of the first slots on held-out blocks, are means over benchmarks and seeds.
    ``seconds`` per training step.
    """

    row: VariantRow
    seeds: tuple[int, ...]
    taus: Mapping[str, Interval]
    average: Interval | None
    to_baseline: Interval | None
    to_best: Interval | None
    survival: tuple[float, ...]
    accuracy: Interval
    slots: tuple[float, ...]
    seconds: float | None


@dataclass(frozen=True)
class Part:
    """One condition: its lines, the highest average tau first, the verdicts, and records that no row is for."""

    condition: Condition
    measured: Measured
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]
    others: tuple[RunRecord, ...]

    @property
    def ranked(self) -> set[str]:
        """Names of the rows that were measured on every benchmark."""
        return {line.row.recorded_as for line in self.lines if line.average is not None}


@dataclass(frozen=True)
class Comparison:
    """A page and what was measured of it: a part for every condition that has records."""

    page: ComparisonSpec
    parts: tuple[Part, ...]

    @property
    def records(self) -> list[RunRecord]:
        """All records that the page shows."""
        return [record for part in self.parts for record in part.measured.records]

    @property
    def quoted(self) -> tuple[Verdict, ...]:
        """The verdicts for the front page: those under the first of the page's ``claims`` whose rows are all measured,
        else under the first that has any."""
        parts = {part.condition.name: part for part in self.parts if part.verdicts}
        judged = [parts[name] for name in self.page.claims if name in parts]
        needed = {*CONTROLS, *self.page.gammas}
        whole = [part for part in judged if needed <= part.ranked]
        return next((part.verdicts for part in [*whole, *judged]), ())


def compare(page: ComparisonSpec, records: Mapping[str, Sequence[RunRecord]]) -> Comparison:
    """``records`` by the name of their condition. Errors: InputError for records that cannot share a table."""
    parts = []
    for condition in page.conditions:
        measured = select(page.experiment(condition), records.get(condition.name, ()))
        if measured.records:
            parts.append(_part(page, condition, measured, records[condition.name]))
    return Comparison(page, tuple(parts))


def _part(page: ComparisonSpec, condition: Condition, measured: Measured, records: Sequence[RunRecord]) -> Part:
    rows = [row for row in page.rows_under(condition) if measured.of(row.recorded_as)]
    samples = {r.recorded_as: measured.taus(r.recorded_as, measured.temperatures[0], page.definition) for r in rows}
    whole = {name: taus for name, taus in samples.items() if len(taus) == len(page.columns)}
    averages = {name: average(taus) for name, taus in whole.items()}
    ranked = sorted(rows, key=lambda row: -averages[row.recorded_as].value if row.recorded_as in averages else np.inf)
    best = max(averages, key=lambda name: averages[name].value, default=None)
    lines = []
    for row in ranked:
        name, runs = row.recorded_as, measured.of(row.recorded_as)
        accuracy = measured.accuracy(name)
        assert accuracy is not None
        lines.append(
            Line(
                row,
                tuple(run.seed for run in runs),
                {column: interval(sample, column) for column, sample in samples[name].items()},
                averages.get(name),
                _difference(whole, name, page.baseline),
                None if best is None else _difference(whole, name, best),
                _survival(measured, name),
                interval(accuracy, "heldout"),
                _slots(runs),
                _seconds(runs),
            )
        )
    names = {row.recorded_as for row in rows}
    others = tuple(record for record in records if record.objective not in names)
    judged = tuple(_verdicts(page, condition, measured.temperatures[0], whole, averages)) if page.claims else ()
    return Part(condition, measured, tuple(lines), judged, others)


def _difference(whole: Mapping[str, Mapping[str, Sample]], a: str, b: str) -> Interval | None:
    """Paired difference in average tau, ``a`` - ``b``; None where one is missing, or no seed is common."""
    if a == b or a not in whole or b not in whole:
        return None
    ours, theirs = (next(iter(whole[name].values())).seeds for name in (a, b))
    return average_difference(whole[a], whole[b]) if set(ours) & set(theirs) else None


def _survival(measured: Measured, name: str) -> tuple[float, ...]:
    """P(A >= k) at ``DEPTHS``, the mean over benchmarks and seeds."""
    by_column = (measured.traces(name, column, measured.temperatures[0]) for column in measured.experiment.columns)
    alive = [tau.survival(traces) for runs in by_column for traces in runs.values()]
    deepest = min((len(shares) for shares in alive), default=0)
    return tuple(float(np.mean([shares[k] for shares in alive])) for k in DEPTHS if k < deepest)


def _slots(runs: Sequence[RunRecord]) -> tuple[float, ...]:
    """Accuracy of the first slots on held-out blocks, all seeds together."""
    valid, correct = (np.sum([getattr(r.heldout, key) for r in runs], axis=0) for key in ("valid", "correct"))
    return tuple(c / v if v else float("nan") for c, v in zip(correct, valid, strict=True))[: len(DEPTHS)]


def _seconds(runs: Sequence[RunRecord]) -> float | None:
    """Seconds per training step, mean over seeds; None where a drafter was trained elsewhere."""
    steps = [(r.training.seconds, r.training.last.get("step")) for r in runs if r.training.imported is None]
    return float(np.mean([s / n for s, n in steps if n])) if steps and all(n for _, n in steps) else None


def _verdicts(
    page: ComparisonSpec,
    condition: Condition,
    temperature: float,
    whole: Mapping[str, Mapping[str, Sample]],
    averages: Mapping[str, Interval],
) -> list[Verdict]:
    """C8: AUF has the higher average tau than decay with the best gamma. C9: than shuffled AUF and static AUF.

    A claim holds only where all rows that it is about are measured.
    """
    titles = {row.recorded_as: row.title for row in page.rows}
    under = [row.recorded_as for row in page.rows_under(condition)]
    own, *controls = CONTROLS
    verdicts = []

    def judge(claim: str, text: str, rivals: Sequence[str], rows: Sequence[str], lead: str) -> None:
        """``rivals``: those that AUF must beat; ``rows``: all that the claim is about."""
        differences = {titles[name]: _difference(whole, own, name) for name in rivals if name in whole}
        missing = [titles[name] for name in rows if name not in whole]
        verdict = all_above([difference for difference in differences.values() if difference is not None])
        if verdict == HOLDS and (missing or None in differences.values()):
            verdict = OPEN
        numbers = [
            f"{titles[own]} - {title}: {'no seed in common' if difference is None else signed(difference)}"
            for title, difference in differences.items()
        ]
        numbers += [f"not measured: {'; '.join(missing)}"] if missing else []
        verdicts.append(Verdict(claim, text, temperature, verdict, lead + "; ".join(numbers)))

    gammas = [name for name in page.gammas if name in averages]
    if own in averages and gammas:
        best = max(gammas, key=lambda name: averages[name].value)
        lead = f"best: {titles[best]} ({averages[best].value:.2f}); "
        rows = [name for name in page.gammas if name in under]
        judge("C8", "AUF > decay with the best gamma, in average tau", [best], rows, lead)
    if own in averages and any(name in averages for name in controls):
        text = "adaptivity per block matters: AUF > shuffled AUF and AUF > static AUF, in average tau"
        judge("C9", text, controls, controls, "")
    return verdicts


def markdown(compared: Comparison, *, links: str | None = None, figure: Figure | None = None) -> str:
    """The page: claims, a table and its reading for every condition, notes, and the records.

    ``links``: relative path to the folders of records; ``figure``: a drawing whose image is in ``figures/``.
    """
    page, parts = compared.page, compared.parts
    text = [f"# {cell(page.title)}", ""]
    if not parts:
        return "\n".join([*text, "No run of this page is finished yet.", ""])
    text += _claims(compared)
    if figure is not None:
        image = path("figures", f"{figure.name}.png")
        text += [f"![{cell(figure.title)}]({image})", "", figure.caption, ""]
    text += _budget_table(compared)
    for part in parts:
        text += _section(page, part)
    empty = [c for c in page.conditions if c.name not in {part.condition.name for part in parts}]
    if empty:
        text += [f"Not measured yet: {', '.join(map(condition_name, empty))}.", ""]
    text += _notes(compared)
    if links is not None:
        text += ["Records:", ""]
        text += [
            f"- {condition_name(p.condition)}: {sources(p.measured.records, f'{links}/{path(p.condition.name)}')}"
            for p in parts
        ]
        text.append("")
    return "\n".join(text)


def _claims(compared: Comparison) -> list[str]:
    """Every claim under every condition."""
    judged = [(verdict, part.condition) for part in compared.parts for verdict in part.verdicts]
    if not judged:
        return []
    text = [table_row(["claim", "condition", "verdict", "measured"]), table_row(["---"] * 4)]
    for verdict, condition in sorted(judged, key=lambda pair: pair[0].claim):
        claim = cell(f"{verdict.claim}: {verdict.text}")
        text.append(table_row([claim, condition_name(condition), f"**{verdict.verdict}**", cell(verdict.numbers)]))
    note = (
        "The best gamma is chosen by its average tau on the prompts that it is then judged on. That favours decay, so "
        "C8 is conservative for AUF."
    )
    return [*text, "", note, ""]


def _section(page: ComparisonSpec, part: Part) -> list[str]:
    """One condition: what is best, tau by benchmark, and how blocks are accepted."""
    lines = part.lines
    text = [f"## {condition_name(part.condition)}", "", *_reading(lines), *_tau_table(page, lines), ""]
    text += [*_depth_table(page, lines), ""]
    rows = part.measured.experiment.rows
    missing = [row.title for row in rows if not part.measured.of(row.objective)]
    partial = [line.row.title for line in lines if line.average is None]
    if missing:
        text += [f"Not measured yet: {listed(missing)}.", ""]
    if partial:
        text += [f"Not measured on every benchmark, and therefore not ranked: {listed(partial)}.", ""]
    if part.others:
        text += [f"Records without a row on this page: {', '.join(code(r.id) for r in part.others)}.", ""]
    return text


def _reading(lines: Sequence[Line]) -> list[str]:
    """A sentence or two: the best, and what is not separable from it."""
    if not lines or lines[0].average is None:
        return []
    best, *rest = [line for line in lines if line.average is not None]
    tied = tied_with_best(lines)
    apart = [line.row.title for line in rest if line.to_best is None]
    text = f"**{cell(best.row.title)}** has the highest average tau, {tau_cell(best.average, bold=False)}."
    if tied:
        text += f" Not separable from it: {listed(tied)}."
    elif rest and not apart:
        text += " All other rows are separable from it."
    if apart:
        text += f" No seed in common with it: {listed(apart)}."
    return [text, ""]


def tied_with_best(lines: Sequence[Line]) -> list[str]:
    """Titles of the rows that are not separable from the first."""
    return [line.row.title for line in lines[1:] if line.to_best is not None and not line.to_best.separable]


def listed(titles: Sequence[str]) -> str:
    """Titles in a sentence; they may have commas of their own."""
    return "; ".join(map(cell, titles))


def _tau_table(page: ComparisonSpec, lines: Sequence[Line]) -> list[str]:
    """tau on every benchmark and on average, and the differences of the average; the best of a column in bold."""
    several = len({line.seeds for line in lines}) > 1
    baseline = next(row.title for row in page.rows if row.recorded_as == page.baseline)
    head = ["group", "objective", *page.columns.values(), "Avg", f"Avg - {baseline}", "Avg - best"]
    head += ["seeds"] if several else []
    text = [table_row(list(map(cell, head))), table_row(["---"] * 2 + ["--:"] * (len(head) - 2))]
    columns = [[line.taus.get(c) for line in lines] for c in page.columns] + [[line.average for line in lines]]
    best = [max((round(i.value, 2) for i in column if i is not None), default=0.0) for column in columns]
    for line, values in zip(lines, zip(*columns, strict=True), strict=True):
        shown = [
            tau_cell(value, bold=value is not None and round(value.value, 2) == top)
            for value, top in zip(values, best, strict=True)
        ]
        differences = [difference_cell(line.to_baseline), difference_cell(line.to_best)]
        seeds = [", ".join(map(str, line.seeds))] if several else []
        text.append(table_row([cell(line.row.group), cell(line.row.title), *shown, *differences, *seeds]))
    return text


def _depth_table(page: ComparisonSpec, lines: Sequence[Line]) -> list[str]:
    """How far blocks are accepted, how many slots are right on held-out blocks, and what a step takes."""
    first = next((row for row in page.rows if row in {line.row for line in lines}), None)
    head = [
        "objective",
        *(f"P(A ≥ {k})" for k in DEPTHS),
        "block-mask acc.",
        *(f"slot {k}" for k in DEPTHS),
        "s / step",
    ]
    text = [table_row(head), table_row(["---"] + ["--:"] * (len(head) - 1))]
    for line in lines:
        survival = [f"{share:.2f}" for share in line.survival] + [DASH] * (len(DEPTHS) - len(line.survival))
        slots = [f"{100 * share:.1f}" for share in line.slots] + [DASH] * (len(DEPTHS) - len(line.slots))
        accuracy = f"{100 * line.accuracy.value:.1f} ± {100 * line.accuracy.half_width:.1f} %"
        seconds = DASH if line.seconds is None else f"{line.seconds:.3f}{' *' if line.row == first else ''}"
        text.append(table_row([cell(line.row.title), *survival, accuracy, *slots, seconds]))
    return text


def _notes(compared: Comparison) -> list[str]:
    """What was counted, on what, and what the columns mean."""
    page, records = compared.page, compared.records
    temperature = compared.parts[0].measured.temperatures[0]
    several = len({r.seed for r in records}) > 1
    text = [
        profile_note(records),
        f"tau: definition {code(page.definition)} (docs/tau.md), T = {temperature:g}; average over benchmarks "
        "unweighted. Rows are sorted by it. Bold: best of the column.",
        "± is half of the 95 % percentile interval of a paired bootstrap (10,000 resamples) over prompts"
        + (", and seeds. " if several else "; with one seed it speaks of these drafters, not of training again. ")
        + "(n.s.): not separable, the interval of the difference contains 0. The best row is chosen on the prompts "
        "that it is compared on, so its lead is slightly overstated; nothing is corrected for the number of rows.",
        _seeds_note(compared),
        prompts_note(records),
        "P(A ≥ k): share of rounds that accept at least k draft tokens, mean over benchmarks. Block-mask accuracy: "
        "share of supervised slots predicted right on held-out conversations; slot k: the same for the k-th token "
        "after the anchor, in %.",
        "s / step: seconds of the drafter's own training steps. Drafters of one seed and condition are trained in one "
        "pass: the target's features of a batch are computed once, and counted for the drafter that asks first, "
        "usually the first row of the page's yaml (*). Peak memory is that of the whole process, so no row has one.",
        audit_note(records),
    ]
    return [line for item in text if item for line in (item, "")]


def _seeds_note(compared: Comparison) -> str:
    """The seeds of the page, of each condition where they differ, and what it means where rows differ."""
    seeds = {p.condition: sorted({r.seed for r in p.measured.records}) for p in compared.parts}
    texts = {condition: ", ".join(map(str, own)) for condition, own in seeds.items()}
    same = len(set(texts.values())) == 1
    each = next(iter(texts.values())) if same else "; ".join(f"{condition_name(c)}: {s}" for c, s in texts.items())
    text = f"Seeds: {each} (same initial weights, data order and anchors for every row of a condition)."
    if any(len({line.seeds for line in part.lines}) > 1 for part in compared.parts):
        text += (
            " Some rows have fewer: a tau is the mean over the seeds of its row, a difference is taken over the seeds "
            "that both rows have."
        )
    return text


def to_csv(compared: Comparison) -> str:
    """The same numbers, unrounded, in long form: one line per number."""
    rows: list[tuple[str, str, str, str, float, float | None, float | None]] = []
    for part in compared.parts:
        for line in part.lines:
            intervals = [("tau", column, i) for column, i in line.taus.items()]
            intervals += [
                (what, "average", i)
                for what, i in (
                    ("tau", line.average),
                    (f"tau - {compared.page.baseline}", line.to_baseline),
                    ("tau - best", line.to_best),
                )
                if i is not None
            ]
            intervals.append(("block-mask accuracy", "heldout", line.accuracy))
            numbers = [("P(A >= k)", f"{k}", share) for k, share in zip(DEPTHS, line.survival, strict=False)]
            numbers += [("slot accuracy", f"{k}", share) for k, share in zip(DEPTHS, line.slots, strict=False)]
            numbers += [] if line.seconds is None else [("seconds per step", "", line.seconds)]
            where = part.condition.name, line.row.recorded_as
            rows += [(*where, what, of, i.value, i.low, i.high) for what, of, i in intervals]
            rows += [(*where, what, of, value, None, None) for what, of, value in numbers]
    frame = pd.DataFrame(rows, columns=["condition", "row", "what", "of", "value", "low", "high"])
    return frame.round(6).to_csv(index=False, lineterminator="\n")


def gamma_figure(compared: Comparison) -> Figure | None:
    """tau against gamma under every condition that has several values of it, beside AUF and its controls."""
    page, panels = compared.page, []
    titles = {row.recorded_as: row.title for row in page.rows}
    records: list[RunRecord] = []
    for part in compared.parts:
        averages = {line.row.recorded_as: line.average for line in part.lines if line.average is not None}
        points = {gamma: averages[name] for name, gamma in page.gammas.items() if name in averages}
        if len(points) > 1:
            levels = {name: (titles[name], averages[name]) for name in CONTROLS if name in averages}
            title = f"{part.condition.factor} {part.condition.value}".strip()
            panels.append(GammaPanel(title, dict(sorted(points.items())), levels))
            shown = {*page.gammas, *levels}
            records += [record for record in part.measured.records if record.objective in shown]
    return tau_by_gamma(f"gamma-{page.name}", panels, page.definition, records) if panels else None


def budget_figure(compared: Comparison) -> Figure | None:
    """tau against the training steps, a panel for every factor that has several budgets."""
    panels = []
    for factor, parts in by_budget(compared).items():
        lines: dict[str, tuple[str, dict[float, Interval]]] = {}
        for budget, part in parts.items():
            for row, average_tau in _averages(part).items():
                lines.setdefault(row.recorded_as, (row.title, {}))[1][budget] = average_tau
        order = [row.recorded_as for row in compared.page.rows if row.recorded_as in lines]
        seeds = {budget: seeds_of([part.measured.records]) for budget, part in parts.items()}
        panels.append(BudgetPanel(factor, {name: lines[name] for name in order}, seeds))
    records = [r for parts in by_budget(compared).values() for part in parts.values() for r in part.measured.records]
    return tau_by_budget(f"budget-{compared.page.name}", panels, compared.page.definition, records) if panels else None


def by_budget(compared: Comparison) -> dict[str, dict[float, Part]]:
    """Measured conditions by factor and budget, for factors with several budgets."""
    found: dict[str, dict[float, Part]] = {}
    for part in compared.parts:
        if part.condition.budget is not None and part.ranked:
            found.setdefault(part.condition.factor, {})[part.condition.budget] = part
    return {factor: parts for factor, parts in found.items() if len(parts) > 1}


def _averages(part: Part) -> dict[VariantRow, Interval]:
    return {line.row: line.average for line in part.lines if line.average is not None}


def _budget_table(compared: Comparison) -> list[str]:
    """tau by objective and budget, a table for every factor with several budgets; bold: the best of a column, and those
    not separable from it."""
    text = []
    for factor, parts in by_budget(compared).items():
        budgets = sorted(parts)
        text += [f"**{cell(factor)}**: average tau, by training steps as a multiple of the profile's", ""]
        text += [table_row(["objective", *(f"x {b:g}" for b in budgets)])]
        text += [table_row(["---"] + ["--:"] * len(budgets))]
        best = {
            (line.row.recorded_as, budget)
            for budget, part in parts.items()
            for place, line in enumerate(part.lines)
            if line.average is not None and (place == 0 or (line.to_best is not None and not line.to_best.separable))
        }
        for row in compared.page.rows:
            taus = [_averages(parts[b]).get(row) for b in budgets]
            if any(t is not None for t in taus):
                cells = [tau_cell(t, bold=(row.recorded_as, b) in best) for t, b in zip(taus, budgets, strict=True)]
                text.append(table_row([cell(row.title), *cells]))
        text.append("")
    if text:
        text += ["Bold: the best after so many steps, and those that are not separable from it.", ""]
    return text
