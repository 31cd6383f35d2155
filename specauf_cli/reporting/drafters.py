"""The same objectives on different drafters: what each gains by AUF, what it weighs and costs, and the claim C10."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from specauf_cli.config.specs import Condition, DrafterRow, DraftersSpec
from specauf_cli.evaluation.statistics import Interval, Sample, average, average_difference, interval
from specauf_cli.reporting.claims import FAILS, HOLDS, OPEN, Verdict, signed
from specauf_cli.reporting.escape import cell, path
from specauf_cli.reporting.measured import Measured, check_matched, select, sources
from specauf_cli.reporting.tables import (
    DASH,
    audit_note,
    condition_name,
    profile_note,
    prompts_note,
    table_row,
    tau_cell,
)
from specauf_cli.store.records import RunRecord

CLAIM = "AUF helps drafters without a prefix channel and not those with one, in average tau"


@dataclass(frozen=True)
class Gain:
    """One objective of a drafter: average tau, and its paired difference to the drafter's baseline (None: it is the
    baseline, or that is not measured)."""

    title: str
    average: Interval
    to_baseline: Interval | None


@dataclass(frozen=True)
class Line:
    """One drafter under one condition: its objectives, the baseline first, as far as they are measured on every
    benchmark.

    ``by_column``: the paired difference of its first rival to the baseline on every benchmark.
    """

    drafter: DrafterRow
    measured: Measured
    gains: tuple[Gain, ...]
    by_column: Mapping[str, Interval]

    @property
    def rivals(self) -> list[Gain]:
        """The objectives with a difference to the baseline."""
        return [gain for gain in self.gains if gain.to_baseline is not None]


@dataclass(frozen=True)
class Part:
    """One condition, with its verdict on C10 (None: nothing is measured to judge by)."""

    condition: Condition
    lines: tuple[Line, ...]
    verdict: Verdict | None


@dataclass(frozen=True)
class SideBySide:
    """A page and what was measured of it."""

    page: DraftersSpec
    parts: tuple[Part, ...]

    @property
    def records(self) -> list[RunRecord]:
        """All records that the page shows."""
        return [r for part in self.parts for line in part.lines for r in line.measured.records]

    @property
    def quoted(self) -> tuple[Verdict, ...]:
        """The verdict for the front page."""
        return tuple(p.verdict for p in self.parts if p.condition.name == self.page.claim and p.verdict is not None)


def compare(page: DraftersSpec, records: Mapping[str, Sequence[RunRecord]]) -> SideBySide:
    """``records`` by the name of their condition. Errors: InputError for records that cannot share a table."""
    parts = []
    for condition in page.conditions:
        lines = [_line(page, drafter, records.get(condition.name, ())) for drafter in page.drafters]
        check_matched(page.name, [r for line in lines for r in line.measured.records])
        measured = tuple(line for line in lines if line.gains)
        if measured:
            parts.append(Part(condition, measured, _verdict(page, measured)))
    return SideBySide(page, tuple(parts))


def _line(page: DraftersSpec, drafter: DrafterRow, records: Sequence[RunRecord]) -> Line:
    measured = select(page.experiment(drafter), records)
    temperature = measured.temperatures[0] if measured.records else 0.0
    samples: dict[str, dict[str, Sample]] = {}
    for row in measured.experiment.rows:
        taus = measured.taus(row.objective, temperature, page.definition)
        if len(taus) == len(page.columns):
            samples[row.objective] = taus
    base = samples.get(drafter.baseline)
    gains, by_column = [], {}
    for row in measured.experiment.rows:
        if row.objective not in samples:
            continue
        own, difference = samples[row.objective], None
        if base is not None and own is not base and _common_seeds(own, base):
            difference = average_difference(own, base)
            if row.objective == drafter.rivals[0]:
                by_column = {c: average_difference({c: own[c]}, {c: base[c]}) for c in page.columns}
        gains.append(Gain(row.title, average(own), difference))
    return Line(drafter, measured, tuple(gains), by_column)


def _common_seeds(a: Mapping[str, Sample], b: Mapping[str, Sample]) -> set[int]:
    """Seeds that both have."""
    return set(next(iter(a.values())).seeds) & set(next(iter(b.values())).seeds)


def _verdict(page: DraftersSpec, lines: Sequence[Line]) -> Verdict | None:
    """C10. It holds where every drafter without a prefix channel gains by its AUF, and no objective of one with it lies
    above its baseline by more than the margin; it fails where one of the first kind loses or one of the second gains
    by more than that."""
    judged = [line for line in lines if line.rivals]
    if not judged:
        return None
    verdicts, numbers = [], []
    for line in judged:
        differences = [gain.to_baseline for gain in line.rivals if gain.to_baseline is not None]
        if line.drafter.prefix:
            gained = any(d.low > 0 and d.value > page.margin for d in differences)
            verdicts.append(FAILS if gained else HOLDS if all(d.high <= page.margin for d in differences) else OPEN)
        else:
            helped, hurt = any(d.low > 0 for d in differences), all(d.high < 0 for d in differences)
            verdicts.append(HOLDS if helped else FAILS if hurt else OPEN)
        each = ", ".join(f"{gain.title} {signed(gain.to_baseline)}" for gain in line.rivals if gain.to_baseline)
        numbers.append(f"{line.drafter.title} ({'prefix' if line.drafter.prefix else 'no prefix'}): {each}")
    missing = [d.title for d in page.drafters if d.backbone not in {line.drafter.backbone for line in judged}]
    numbers += [f"not measured: {', '.join(missing)}"] if missing else []
    whole = HOLDS if set(verdicts) == {HOLDS} and not missing else FAILS if FAILS in verdicts else OPEN
    temperature = judged[0].measured.temperatures[0]
    return Verdict("C10", CLAIM, temperature, whole, "; ".join(numbers))


def markdown(side_by_side: SideBySide, *, links: str | None = None) -> str:
    """The page: the claim, and per condition a table of drafters, of gains by benchmark, notes, and the records.

    ``links``: relative path to the folders of records.
    """
    page, parts = side_by_side.page, side_by_side.parts
    text = [f"# {cell(page.title)}", ""]
    if not parts:
        return "\n".join([*text, "No run of this page is finished yet.", ""])
    judged = [(part.condition, part.verdict) for part in parts if part.verdict is not None]
    if judged:
        text += [f"C10: {CLAIM}.", "", table_row(["condition", "verdict", "measured"]), table_row(["---"] * 3)]
        text += [table_row([condition_name(c), f"**{v.verdict}**", cell(v.numbers)]) for c, v in judged]
        text.append("")
    for part in parts:
        text += [f"## {condition_name(part.condition)}", "", *_table(part), "", *_by_benchmark(page, part), ""]
    lacking = [c for c in page.conditions if c.name not in {part.condition.name for part in parts}]
    if lacking:
        text += [f"Not measured yet: {', '.join(map(condition_name, lacking))}.", ""]
    text += _notes(side_by_side)
    if links is not None:
        text += ["Records:", ""]
        for part in parts:
            records = [r for line in part.lines for r in line.measured.records]
            text.append(
                f"- {condition_name(part.condition)}: {sources(records, f'{links}/{path(part.condition.name)}')}"
            )
        text.append("")
    return "\n".join(text)


def _table(part: Part) -> list[str]:
    """A row for every objective of every drafter."""
    head = ["drafter", "prefix channel", "parameters", "draft, MFLOP", "objective", "Avg tau", "- baseline", "seeds"]
    text = [table_row(head), table_row(["---", "---", "--:", "--:", "---", "--:", "--:", "--:"])]
    for line in part.lines:
        about = next((r.cost.drafter for r in line.measured.records if r.cost.drafter is not None), None)
        sizes = [DASH, DASH] if about is None else [f"{about.parameters:,}", f"{about.operations / 1e6:.2f}"]
        seeds = ", ".join(map(str, sorted({r.seed for r in line.measured.records})))
        first = [cell(line.drafter.title), "yes" if line.drafter.prefix else "no", *sizes]
        for gain in line.gains:
            difference = DASH if gain.to_baseline is None else signed(gain.to_baseline)
            text.append(table_row([*first, cell(gain.title), tau_cell(gain.average, bold=False), difference, seeds]))
            first = [""] * 4
    return text


def _by_benchmark(page: DraftersSpec, part: Part) -> list[str]:
    """The gain of the first rival on every benchmark."""
    head = ["gain on", *map(cell, page.columns.values())]
    text = [table_row(head), table_row(["---", *["--:"] * (len(head) - 1)])]
    for line in part.lines:
        shown = [signed(line.by_column[c]) if c in line.by_column else DASH for c in page.columns]
        text.append(table_row([cell(line.drafter.title), *shown]))
    return text


def _notes(side_by_side: SideBySide) -> list[str]:
    page, records = side_by_side.page, side_by_side.records
    return [
        "A drafter with a prefix channel is given the tokens before a slot (the data's in training, its own when "
        "drafting); slots of one without do not know each other's tokens. Drafters differ in size and cost: compare "
        "objectives within a drafter. MFLOP: matrix products of one draft after 128 tokens, those of the target's head "
        "among them.",
        "",
        f"C10 holds where every drafter without a prefix channel gains, and none with one by more than {page.margin:g} "
        "tokens. ± is half of the 95 % percentile interval of a paired bootstrap over prompts, and seeds where there "
        "are several.",
        "",
        profile_note(records),
        "",
        prompts_note(records),
        "",
        audit_note(records),
        "",
    ]


def to_csv(side_by_side: SideBySide) -> str:
    """The same numbers, unrounded, one line per number."""
    rows = []
    for part in side_by_side.parts:
        for line in part.lines:
            where = (part.condition.name, line.drafter.backbone)
            for gain in line.gains:
                numbers = [("average tau", gain.average), ("difference to baseline", gain.to_baseline)]
                rows += [(*where, gain.title, what, i.value, i.low, i.high) for what, i in numbers if i is not None]
            taus = line.measured.taus
            for row in line.measured.experiment.rows:
                by_column = taus(row.objective, line.measured.temperatures[0], side_by_side.page.definition)
                each = {column: interval(sample, column) for column, sample in by_column.items()}
                rows += [(*where, row.title, f"tau {c}", i.value, i.low, i.high) for c, i in each.items()]
    frame = pd.DataFrame(rows, columns=["condition", "backbone", "objective", "what", "value", "low", "high"])
    return frame.round(6).to_csv(index=False, lineterminator="\n")
