"""What needs no training beside what does: plain decoding and prompt lookup in one table with trained drafters."""

from collections.abc import Mapping, Sequence

from specauf_cli.config.specs import BaselineRow, BaselinesSpec
from specauf_cli.errors import InputError
from specauf_cli.evaluation.lookup import plain_traces
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
from specauf_cli.reporting.measured import Measured, select, sources
from specauf_cli.reporting.speed import repetition_note
from specauf_cli.reporting.tables import (
    DASH,
    audit_note,
    audit_text,
    difference_cell,
    profile_note,
    table_row,
    tau_cell,
)
from specauf_cli.store.lookup import LookupRecord
from specauf_cli.store.records import RunRecord, deciding, settings_of
from specauf_cli.types import Trace

AVERAGE = "Avg"


def markdown(
    spec: BaselinesSpec, lookup: LookupRecord, records: Sequence[RunRecord], *, links: str | None = None
) -> str:
    """The page; rows without a drafter of the same target are dashes. ``links``: relative path to the records.

    Errors: InputError when drafters were measured on other prompts or with other settings than prompt lookup.
    """
    measured, left_out = _measured(spec, lookup, records)
    chosen = [record for each in measured.values() for record in each.records]
    text = [f"# {escape.cell(spec.title)}", ""]
    for temperature in sorted({b.temperature for b in lookup.benchmarks}):
        text += [f"## T = {temperature:g}", "", *_table(spec, lookup, measured, temperature), ""]
    rule = lookup.config["lookup"]
    text += [
        f"tau: definition {escape.code(spec.definition)} (docs/tau.md); plain decoding emits one token a pass. Average "
        "over benchmarks unweighted. ± is half of the 95 % percentile interval of a paired bootstrap over prompts, and "
        "seeds where there are several; prompt lookup and plain decoding have none. (n.s.): not separable.",
        "",
        f"Prompt lookup: of the last {rule['longest']} down to {rule['shortest']} tokens the earliest other occurrence "
        f"in prompt and answer; at most {rule['proposals']} tokens that followed it (vLLM's rule for `ngram`). A round "
        "without an occurrence is a plain step and counts as a round, which vLLM's counters leave out.",
        "",
        "Repeated 4-grams: share of the 4-grams of the target's answers that occurred in the same answer before. A "
        "target that repeats itself is easy for every drafter, prompt lookup above all.",
        "",
        *([profile_note(chosen[:1]), ""] if chosen else []),
        f"Prompt lookup: {audit_text(lookup.benchmarks, lookup.config)}",
    ]
    if chosen:
        text += ["", f"Drafters: {audit_note(chosen)}"]
    if left_out:
        text += ["", f"Left out: {left_out} records of drafters for another target."]
    if links is not None:
        address = f"../lookup/{escape.path(lookup.profile, f'{lookup.id}.json')}"
        addresses = [escape.link("prompt lookup", address), *([sources(chosen, links)] if chosen else [])]
        text += ["", f"Records: {' · '.join(addresses)}."]
    return "\n".join([*text, ""])


def in_short(spec: BaselinesSpec, lookup: LookupRecord, records: Sequence[RunRecord]) -> list[str]:
    """The average tau of every complete row, a line for each temperature."""
    measured, _ = _measured(spec, lookup, records)
    lines = []
    for temperature in sorted({b.temperature for b in lookup.benchmarks}):
        averages = [
            f"{escape.cell(row.title)} {tau_cell(average(taus), bold=False)}"
            for row in spec.rows
            if len(taus := _taus(spec, lookup, measured, row, temperature)) == len(spec.columns)
        ]
        lines.append(f"T = {temperature:g}: {', '.join(averages)}")
    return lines


def _measured(
    spec: BaselinesSpec, lookup: LookupRecord, records: Sequence[RunRecord]
) -> tuple[dict[str, Measured], int]:
    """What was measured on prompt lookup's target, by backbone, and how many records are of another one."""
    rows = {(row.backbone, row.objective) for row in spec.rows}
    records = [r for r in records if (r.backbone, r.objective) in rows]
    own = [r for r in records if r.inputs.get("target") == lookup.inputs.get("target")]
    backbones = dict.fromkeys(str(row.backbone) for row in spec.trained)
    measured = {name: select(spec.experiment(name), own) for name in backbones}
    for each in measured.values():
        for record in each.records:
            _check_alike(record, lookup)
    return measured, len(records) - len(own)


def _taus(
    spec: BaselinesSpec, lookup: LookupRecord, measured: Mapping[str, Measured], row: BaselineRow, temperature: float
) -> dict[str, Sample]:
    """Samples of tau of one row, by column."""
    if row.backbone is None:
        return _of_lookup(spec, lookup, temperature, (0,), plain=row.objective == "plain")
    return measured[row.backbone].taus(row.objective, temperature, spec.definition)


def _table(
    spec: BaselinesSpec, lookup: LookupRecord, measured: Mapping[str, Measured], temperature: float
) -> list[str]:
    """tau of every row, the drafters' lead over prompt lookup, and the repetition in the target's answers."""
    titles = {b.column: b.title for b in lookup.benchmarks}
    head = ["method", *map(escape.cell, spec.columns.values()), AVERAGE]
    rows = [table_row(head), table_row(["---", *["--:"] * (len(head) - 1)])]
    rows.append(table_row(["*measured on*", *(f"*{escape.cell(titles.get(c, DASH))}*" for c in spec.columns), ""]))
    leads: list[str] = []
    for row in spec.rows:
        taus = _taus(spec, lookup, measured, row, temperature)
        title = escape.cell(row.title)
        rows.append(table_row([title, *_cells(spec, taus)]))
        if row.backbone is not None and taus:
            seeds = next(iter(taus.values())).seeds
            others = _of_lookup(spec, lookup, temperature, seeds, plain=False)
            leads.append(table_row([f"{title} - prompt lookup", *_differences(spec, taus, others)]))
    shares = {r.column: r for r in lookup.repetition if r.temperature == temperature}
    notes = [repetition_note(shares[c].repeated, shares[c].total) if c in shares else DASH for c in spec.columns]
    everywhere = sum(r.repeated for r in shares.values()), sum(r.total for r in shares.values())
    return [*rows, *leads, table_row(["repeated 4-grams", *notes, repetition_note(*everywhere)])]


def _of_lookup(
    spec: BaselinesSpec, lookup: LookupRecord, temperature: float, seeds: Sequence[int], *, plain: bool
) -> dict[str, Sample]:
    """Samples of tau by column. It has no seed, so it is the same for each of ``seeds``."""
    samples = {}
    for result in lookup.benchmarks:
        if result.temperature == temperature and result.column in spec.columns:
            traces: Sequence[Trace] = plain_traces(result.traces) if plain else result.traces
            samples[result.column] = sample(dict.fromkeys(seeds, traces), spec.definition)
    return {c: samples[c] for c in spec.columns if c in samples}


def _cells(spec: BaselinesSpec, taus: Mapping[str, Sample]) -> list[str]:
    cells: list[Interval | None] = [interval(taus[c], c) if c in taus else None for c in spec.columns]
    cells.append(average(taus) if None not in cells else None)
    return [tau_cell(cell, bold=False) for cell in cells]


def _differences(spec: BaselinesSpec, a: Mapping[str, Sample], b: Mapping[str, Sample]) -> list[str]:
    cells: list[Interval | None] = [difference(a[c], b[c], c) if c in a and c in b else None for c in spec.columns]
    cells.append(average_difference(a, b) if None not in cells else None)
    return [difference_cell(cell) for cell in cells]


def _check_alike(record: RunRecord, lookup: LookupRecord) -> None:
    known = {(b.column, b.temperature): b.prompts_sha256 for b in lookup.benchmarks}
    for b in record.benchmarks:
        if known.get((b.column, b.temperature), b.prompts_sha256) != b.prompts_sha256:
            raise InputError(f"{record.run} and prompt lookup were measured on different prompts of {b.title}")
    if deciding(lookup.config["evaluation"]) != settings_of(record):
        raise InputError(f"{record.run} and prompt lookup were measured with different evaluation settings")
