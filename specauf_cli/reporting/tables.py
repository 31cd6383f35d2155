"""Tables as pure functions of records: ours beside the paper's, one profile at a time, a dash for what is missing."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from specauf_cli.evaluation.metrics import accuracy, tau
from specauf_cli.records import BenchmarkResult, RunRecord
from specauf_cli.schema import Experiment, InputError

DEFINITION = "engine"
DASH = "–"


@dataclass(frozen=True)
class Line:
    """One row of numbers. ``values`` follow the experiment's columns, then the average; None is a dash."""

    temperature: float
    method: str
    source: str
    values: tuple[float | None, ...]
    accuracy: float | None


def lines(experiment: Experiment, records: Sequence[RunRecord]) -> list[Line]:
    """Ours and the paper's row for every temperature and method.

    Ours are means over seeds; the average is the unweighted mean over the benchmarks, as in the paper, and a dash
    unless every column is there. Errors: InputError when the records come from several profiles.
    """
    chosen = select(experiment, records)
    found = {b.temperature for r in chosen for b in r.benchmarks}
    result = []
    for temperature in sorted(found or {0.0}):
        for row in experiment.rows:
            runs = [r for r in chosen if r.objective == row.objective]
            cells = [_mean([_tau(r, column, temperature) for r in runs]) for column in experiment.columns]
            average = None if None in cells else mean(c for c in cells if c is not None)
            blocks = mean(accuracy(r.heldout) for r in runs) if runs else None
            result.append(Line(temperature, row.title, "ours", (*cells, average), blocks))
            paper = experiment.paper.values.get(f"{temperature:g}", {}).get(row.objective)
            width = len(experiment.columns) + 1
            result.append(Line(temperature, row.title, "paper", paper or (None,) * width, None))
    return result


def select(experiment: Experiment, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records an experiment shows: its backbone and objectives, the newest of each run."""
    names = [row.objective for row in experiment.rows]
    chosen: dict[str, RunRecord] = {}
    for record in sorted(records, key=lambda r: (r.written, r.id)):
        if record.backbone == experiment.backbone and record.objective in names:
            chosen[record.run] = record
    profiles = sorted({r.profile for r in chosen.values()})
    if len(profiles) > 1:
        raise InputError(f"{experiment.name}: records of several profiles ({', '.join(profiles)}) cannot share a table")
    return sorted(chosen.values(), key=lambda r: (names.index(r.objective), r.seed, r.id))


def markdown(experiment: Experiment, records: Sequence[RunRecord], *, links: str | None = None) -> str:
    """The table as Markdown with its footnotes. ``links``: folder of the record files relative to the page."""
    chosen = select(experiment, records)
    head = ["T", "method", "", *experiment.columns.values(), "Avg", "block-mask acc."]
    text = [f"## {experiment.title}", ""]
    text += [_row(head), _row(["---"] * 3 + ["--:"] * (len(head) - 3))]
    titles = {b.column: b.title for r in chosen for b in r.benchmarks}
    if any(titles.get(c, t) != t for c, t in experiment.columns.items()):
        text.append(
            _row(["", "", "*ours measured on*", *(f"*{titles.get(c, DASH)}*" for c in experiment.columns), "", ""])
        )
    all_lines = lines(experiment, records)
    best: dict[tuple[float, int], float] = {}
    for line in all_lines:
        for i, value in enumerate(line.values):
            if line.source == "ours" and value is not None:
                best[line.temperature, i] = max(round(value, 2), best.get((line.temperature, i), 0.0))
    for line in all_lines:
        numbers = []
        for i, value in enumerate(line.values):
            shown = DASH if value is None else f"{value:.2f}"
            top = line.source == "ours" and value is not None and round(value, 2) == best[line.temperature, i]
            numbers.append(f"**{shown}**" if top else shown)
        first = [f"{line.temperature:g}", line.method] if line.source == "ours" else ["", ""]
        share = DASH if line.accuracy is None else f"{100 * line.accuracy:.1f} %"
        text.append(_row([*first, line.source, *numbers, share]))
    return "\n".join([*text, "", *notes(experiment, chosen, links), ""])


def notes(experiment: Experiment, chosen: Sequence[RunRecord], links: str | None) -> list[str]:
    """Footnotes: what was counted, on what, with which seeds, how the audit went, and the records behind the numbers."""
    if not chosen:
        return ["No run of this table is finished yet.", "", f"Paper: {experiment.paper.source}."]
    first = chosen[0]
    profile = first.config["profile"]
    results = [b for r in chosen for b in r.benchmarks]
    requests = sum(b.audit["requests"] for b in results)
    identical = sum(b.audit["identical"] for b in results)
    rounds = sum(b.audit["same_rounds"] for b in results)
    traces = sum(len(b.traces) for b in results)
    text = [
        f"Profile `{first.profile}`. {profile['text']} Target: {first.target['title']}.",
        f"tau: `{DEFINITION}`, completion tokens / verification rounds per request, then the mean over requests; average "
        "over benchmarks unweighted. Bold: best of ours in the block.",
        "Block-mask accuracy: share of supervised slots predicted right on held-out conversations, the same blocks for every drafter.",
        _prompts_note(first.benchmarks),
        _seeds_note(chosen),
        f"Audit (fp32, decoded live): {identical} of {requests} outputs equal the target's own greedy output token for "
        f"token, {rounds} of {requests} requests have the replay's rounds exactly ({traces} requests measured)."
        if first.config["evaluation"]["precision"] == "fp32"
        else f"Measured in {first.config['evaluation']['precision']}: outputs equal on {identical} of {requests} requests.",
        f"Paper: {experiment.paper.source}.",
    ]
    if links is not None:
        text.append("Records: " + " · ".join(f"[{r.objective} s{r.seed}]({links}/{r.id}.json)" for r in chosen) + ".")
    return [line for item in text for line in (item, "")][:-1]


def to_csv(experiment: Experiment, records: Sequence[RunRecord]) -> str:
    """The same numbers, unrounded, one line per row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["temperature", "method", "source", *experiment.columns, "average", "block_mask_accuracy"])
    for line in lines(experiment, records):
        cells = ["" if v is None else repr(round(v, 6)) for v in (*line.values, line.accuracy)]
        writer.writerow([f"{line.temperature:g}", line.method, line.source, *cells])
    return out.getvalue()


def _tau(record: RunRecord, column: str, temperature: float) -> float | None:
    found = [b for b in record.benchmarks if b.column == column and b.temperature == temperature]
    return tau(found[0].traces, DEFINITION) if found else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known and len(known) == len(values) else None


def _prompts_note(results: Sequence[BenchmarkResult]) -> str:
    seen = {b.column: f"{b.title} {b.prompts}" for b in results}
    skipped = sum(n for b in results for n in b.skipped.values())
    return f"Prompts: {', '.join(seen.values())}; {skipped} requests skipped."


def _seeds_note(chosen: Sequence[RunRecord]) -> str:
    seeds = {r.objective: sorted(x.seed for x in chosen if x.objective == r.objective) for r in chosen}
    distinct = {tuple(v) for v in seeds.values()}
    if len(distinct) == 1:
        only = distinct.pop()
        return f"Seeds: {', '.join(map(str, only))} (same initial weights, data order and anchors for every objective)."
    return "Seeds: " + "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in seeds.items()) + "."


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
