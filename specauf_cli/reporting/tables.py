"""Tables as pure functions of records: ours beside the paper's, one profile at a time, a dash for what is missing."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specauf_cli.config.overrides import key_of
from specauf_cli.config.specs import Condition, CreditsSpec, TableSpec
from specauf_cli.evaluation.statistics import Interval, Sample, average, average_difference, difference, interval
from specauf_cli.evaluation.tau import TAU
from specauf_cli.reporting import escape
from specauf_cli.reporting.claims import of_tau, verdicts
from specauf_cli.reporting.measured import Measured, common, sources
from specauf_cli.store.records import BenchmarkResult, RunRecord, skips

DASH = "–"


@dataclass(frozen=True)
class Line:
    """One row of numbers. ``values`` follow the experiment's columns, then the average; None is a dash.

    ``source`` is ``ours`` (intervals) or ``paper`` (plain numbers). ``accuracy`` is the block-mask accuracy.
    """

    temperature: float
    method: str
    source: str
    values: tuple[Interval | float | None, ...]
    accuracy: Interval | None


def lines(measured: Measured) -> list[Line]:
    """Ours and the paper's row for every temperature and method.

    Ours are means over seeds with 95 % intervals; the average is the unweighted mean over the benchmarks, as in the
    paper, and a dash unless every column is there.
    """
    experiment, result = measured.experiment, []
    for temperature in measured.temperatures or [0.0]:
        for row in experiment.rows:
            taus = measured.taus(row.objective, temperature, experiment.definition)
            blocks = measured.accuracy(row.objective)
            result.append(
                Line(
                    temperature,
                    row.title,
                    "ours",
                    _values(experiment, taus),
                    None if blocks is None else interval(blocks, "heldout"),
                )
            )
            result.append(Line(temperature, row.title, "paper", _paper(experiment, temperature, row.objective), None))
    return result


def differences(measured: Measured) -> list[Line]:
    """Every method minus the baseline: ours paired by prompt and seed, the paper's from its rounded values."""
    experiment, result = measured.experiment, []
    for temperature in measured.temperatures:
        base = measured.taus(experiment.baseline, temperature, experiment.definition)
        base_blocks = measured.accuracy(experiment.baseline)
        for row in experiment.rows:
            if row.objective == experiment.baseline:
                continue
            taus, blocks = (
                measured.taus(row.objective, temperature, experiment.definition),
                measured.accuracy(row.objective),
            )
            both = common(taus, base)
            cells: list[Interval | float | None] = [
                difference(taus[c], base[c], c) if c in both else None for c in experiment.columns
            ]
            whole = len(both) == len(experiment.columns)
            cells.append(average_difference(taus, base) if whole else None)
            share = (
                difference(blocks, base_blocks, "heldout") if blocks is not None and base_blocks is not None else None
            )
            result.append(Line(temperature, row.title, "ours", tuple(cells), share))
            theirs = zip(
                _paper(experiment, temperature, row.objective),
                _paper(experiment, temperature, experiment.baseline),
                strict=True,
            )
            minus = tuple(a - b if isinstance(a, float) and isinstance(b, float) else None for a, b in theirs)
            result.append(Line(temperature, row.title, "paper", minus, None))
    return result


def _values(experiment: TableSpec, taus: Mapping[str, Sample]) -> tuple[Interval | None, ...]:
    cells = [interval(taus[c], c) if c in taus else None for c in experiment.columns]
    return (*cells, average(taus) if None not in cells else None)


def _paper(experiment: TableSpec, temperature: float, objective: str) -> tuple[float | None, ...]:
    known = experiment.paper.values.get(f"{temperature:g}", {}).get(objective)
    return known or (None,) * (len(experiment.columns) + 1)


def markdown(measured: Measured, *, links: str | None = None) -> str:
    """The table as Markdown with differences, verdicts and footnotes. ``links``: relative path to the record
    files."""
    experiment = measured.experiment
    text = [f"# {escape.cell(experiment.title)}", "", *main_table(measured), ""]
    if measured.records:
        text += [f"## Differences to {escape.cell(_title(measured.experiment))}", "", *difference_table(measured), ""]
        found = verdicts(measured, experiment.definition)
        text += [
            "## Verdicts on the paper's claims",
            "",
            table_row(["claim", "T", "verdict", "measured"]),
            table_row(["---"] * 4),
        ]
        text += [
            table_row(
                [
                    escape.cell(f"{v.claim}: {v.text}"),
                    DASH if v.temperature is None else f"{v.temperature:g}",
                    f"**{v.verdict}**",
                    escape.cell(v.numbers),
                ]
            )
            for v in found
        ]
        text += ["", "## By every definition of tau", "", *definition_table(measured), ""]
    return "\n".join([*text, *notes(measured, links), ""])


def main_table(measured: Measured) -> list[str]:
    """Rows of tau: ours above the paper's; the best of ours in each column and temperature in bold."""
    experiment = measured.experiment
    text = _head(experiment)
    titles = {b.column: b.title for r in measured.records for b in r.benchmarks}
    if any(titles.get(c, t) != t for c, t in experiment.columns.items()):
        measured_on = (f"*{escape.cell(titles.get(c, DASH))}*" for c in experiment.columns)
        text.append(table_row(["", "", "*ours measured on*", *measured_on, "", ""]))
    all_lines = lines(measured)
    best: dict[tuple[float, int], float] = {}
    for line in all_lines:
        for i, cell in enumerate(line.values):
            if isinstance(cell, Interval):
                key = (line.temperature, i)
                best[key] = max(round(cell.value, 2), best.get(key, 0.0))
    for line in all_lines:
        cells = []
        for i, cell in enumerate(line.values):
            top = isinstance(cell, Interval) and round(cell.value, 2) == best[line.temperature, i]
            cells.append(tau_cell(cell, bold=top))
        first = [f"{line.temperature:g}", escape.cell(line.method)] if line.source == "ours" else ["", ""]
        share = (
            DASH
            if line.accuracy is None
            else f"{100 * line.accuracy.value:.1f} ± {100 * line.accuracy.half_width:.1f} %"
        )
        text.append(table_row([*first, line.source, *cells, share]))
    return text


def difference_table(measured: Measured) -> list[str]:
    """Rows of differences to the baseline; those whose interval contains 0 are marked."""
    text = _head(measured.experiment)
    for line in differences(measured):
        cells = [difference_cell(cell) for cell in line.values]
        first = [f"{line.temperature:g}", escape.cell(line.method)] if line.source == "ours" else ["", ""]
        points = DASH
        if line.accuracy is not None:
            mark = "" if line.accuracy.separable else " (n.s.)"
            points = f"{100 * line.accuracy.value:+.1f} ± {100 * line.accuracy.half_width:.1f}{mark}"
        text.append(table_row([*first, line.source, *cells, points]))
    return text


def definition_table(measured: Measured) -> list[str]:
    """Average tau and every verdict based on tau, by each definition: does a conclusion depend on the definition?"""
    titles = {r.objective: r.title for r in measured.experiment.rows if measured.of(r.objective)}
    found = {d: of_tau(measured, d) for d in TAU}
    claims = sorted({v.claim for each in found.values() for v in each})
    head = ["T", "definition", *map(escape.cell, titles.values()), *claims]
    text = [table_row(head), table_row(["---"] * 2 + ["--:"] * len(titles) + ["---"] * len(claims))]
    for temperature in measured.temperatures:
        for definition, each in found.items():
            taus = (measured.taus(o, temperature, definition) for o in titles)
            cells = [tau_cell(_values(measured.experiment, t)[-1], bold=False) for t in taus]
            words = {v.claim: v.verdict for v in each if v.temperature == temperature}
            text.append(
                table_row([f"{temperature:g}", f"`{definition}`", *cells, *(words.get(c, DASH) for c in claims)])
            )
    return text


def notes(measured: Measured, links: str | None) -> list[str]:
    """Footnotes: what was counted, on what, with which seeds, how the audit went, and the records."""
    experiment, chosen = measured.experiment, measured.records
    if not chosen:
        return ["No run of this table is finished yet.", "", f"Paper: {escape.cell(experiment.paper.source)}."]
    seeds = len({r.seed for r in chosen})
    text = [
        profile_note(chosen),
        _changes_note(chosen),
        f"tau: definition {escape.code(experiment.definition)} (docs/tau.md; the paper's is the mean of A + 1 over "
        "rounds); average over benchmarks unweighted. Bold: best of ours in the column.",
        "± is half of the 95 % percentile interval of a paired bootstrap (10,000 resamples) over prompts, a "
        "conversation being one "
        f"cluster{', and seeds' if seeds > 1 else '; with one seed it speaks of this drafter, not of training again'}. "
        "(n.s.): not separable, the interval of the difference contains 0.",
        _detectable_note(measured),
        "Block-mask accuracy: share of supervised slots predicted right on held-out conversations, the same blocks "
        "for every drafter; differences in points."
        + (
            " Domino's is that of its final branch, which is given the tokens of the data before each slot: not to be "
            "compared with DFlash's."
            if experiment.backbone == "domino"
            else ""
        ),
        prompts_note(chosen),
        _seeds_note(chosen),
        audit_note(chosen),
        f"Paper: {escape.cell(experiment.paper.source)}.",
    ]
    if links is not None:
        text.append(f"Records: {sources(chosen, links)}.")
    return [line for item in text if item for line in (item, "")][:-1]


def variants(table: CreditsSpec, objectives: Mapping[str, Mapping[str, Any]]) -> str:
    """The matrix of credits per branch as Markdown, from the content of ``conf/objective``, and whether each
    variant is in the paper."""
    text = [
        f"# {escape.cell(table.title)}",
        "",
        table_row(["name", "base branch", "final branch", "decay", "as in the paper"]),
        table_row(["---"] * 5),
    ]
    for row in table.rows:
        found = matrix(objectives[row.objective])
        same = DASH if row.objective not in table.paper else "yes" if found == table.paper[row.objective] else "**no**"
        text.append(table_row([escape.cell(row.title), *map(escape.cell, found), same]))
    note = (
        "common: the whole valid block; base-auf, final-auf: up to and including the first wrong token of that "
        "branch. Read from `conf/objective`, not written by hand."
    )
    return "\n".join([*text, "", note, "", f"Paper: {escape.cell(table.source)}.", ""])


def matrix(objective: Mapping[str, Any]) -> tuple[str, str, str]:
    """Base branch's mask, final branch's mask, and whether decay multiplies them, of one objective's yaml."""
    masks, decays = [], []
    for branch, reads in (("base", "base"), ("final", objective.get("final_reads"))):
        credit = (objective.get(branch) or {}).get("credit", DASH).rpartition(".")[2]
        masks.append(
            {"full_ce": "common", "decay": "common", "auf": f"{reads}-auf", "auf_decay": f"{reads}-auf"}.get(
                credit, credit
            )
        )
        decays.append("on" if "gamma" in (objective.get(branch) or {}) else "off")
    return masks[0], masks[1], decays[0] if decays[0] == decays[1] else f"{decays[0]}, {decays[1]}"


def to_csv(measured: Measured) -> str:
    """The main table, unrounded, in long form: one line per number."""
    rows = []
    for line in lines(measured):
        names = [*measured.experiment.columns, "average", "block_mask_accuracy"]
        for name, cell in zip(names, [*line.values, line.accuracy], strict=True):
            if cell is not None:
                known = (cell.value, cell.low, cell.high) if isinstance(cell, Interval) else (cell, None, None)
                rows.append((line.temperature, line.method, line.source, name, *known))
    frame = pd.DataFrame(rows, columns=["temperature", "method", "source", "column", "value", "low", "high"])
    return frame.round(6).to_csv(index=False, lineterminator="\n")


def _head(experiment: TableSpec) -> list[str]:
    head = ["T", "method", "", *map(escape.cell, experiment.columns.values()), "Avg", "block-mask acc."]
    return [table_row(head), table_row(["---"] * 3 + ["--:"] * (len(head) - 3))]


def tau_cell(cell: Interval | float | None, *, bold: bool) -> str:
    """A tau with its interval, or the paper's, which has none; None is a dash."""
    if cell is None:
        return DASH
    if not isinstance(cell, Interval):
        return f"{cell:.2f}"
    value = f"**{cell.value:.2f}**" if bold else f"{cell.value:.2f}"
    return f"{value} ± {cell.half_width:.2f}"


def difference_cell(cell: Interval | float | None) -> str:
    """A difference in tau; (n.s.) where its interval contains 0, None is a dash."""
    if cell is None:
        return DASH
    if not isinstance(cell, Interval):
        return f"{round(cell, 2) + 0.0:+.2f}"
    return f"{round(cell.value, 2) + 0.0:+.2f} ± {cell.half_width:.2f}" + ("" if cell.separable else " (n.s.)")


def _title(experiment: TableSpec) -> str:
    return next(row.title for row in experiment.rows if row.objective == experiment.baseline)


def _detectable_note(measured: Measured) -> str:
    found = [c.detectable for line in differences(measured) for c in line.values if isinstance(c, Interval)]
    averages = [line.values[-1].detectable for line in differences(measured) if isinstance(line.values[-1], Interval)]
    if not found or not averages:
        return ""
    return (
        f"Smallest difference found separable with 80 % power: up to {max(found):.2f} on a benchmark, up to "
        f"{max(averages):.2f} on the average."
    )


def measured_prompts(result: BenchmarkResult) -> str:
    """Prompts that were measured, and what was skipped, for Markdown: ``199 (1 skipped: ...)``."""
    return f"{result.measured} ({escape.cell(skips(result.skipped))})" if result.skipped else f"{result.measured}"


def prompts_note(records: Sequence[RunRecord]) -> str:
    """How many were measured, what was skipped and why, and how many answers ended before the limit cut them off: the
    first record's."""
    record = records[0]
    whose = f" (seed {record.seed})" if len({r.inputs.get("target") for r in records}) > 1 else ""
    at: dict[float, list[BenchmarkResult]] = {}
    for b in record.benchmarks:
        at.setdefault(b.temperature, []).append(b)
    counts = {
        t: ", ".join(f"{escape.cell(b.title)} {measured_prompts(b)}" for b in results) for t, results in at.items()
    }
    if len(set(counts.values())) == 1:
        measured = next(iter(counts.values()))
    else:
        measured = "; ".join(f"at T = {t:g} {text}" for t, text in sorted(counts.items()))
    ended = []
    for temperature, results in sorted(at.items()):
        shares = [
            f"{escape.cell(b.title)} {100 * sum(t.ended for t in b.traces) / len(b.traces):.0f}"
            for b in results
            if b.traces
        ]
        ended.append(f"at T = {temperature:g} {', '.join(shares)} %")
    most = escape.cell(record.config["evaluation"].get("max_new_tokens"))
    return (
        f"Prompts measured: {measured}. At most {most} new tokens each; answers that ended by themselves{whose}: "
        f"{'; '.join(ended)}."
    )


def profile_note(records: Sequence[RunRecord]) -> str:
    """What was measured where, in a sentence or two: the first record's profile, and every target."""
    text = escape.cell(records[0].config["profile"]["text"])
    targets = list({r.target.title: _target(r) for r in reversed(records)}.values())[::-1]
    named = f"Target: {targets[0]}" if len(targets) == 1 else f"Targets, here not the profile's: {'; '.join(targets)}"
    return f"Profile {escape.code(records[0].profile)}. {text} {named}.{_weights_note(records)}"


def _weights_note(records: Sequence[RunRecord]) -> str:
    """Says which seeds had which weights where one target was trained more than once."""
    seeds: dict[str, dict[str, set[int]]] = {}
    for r in records:
        seeds.setdefault(r.target.title, {}).setdefault(r.inputs.get("target", ""), set()).add(r.seed)
    several = {title: weights for title, weights in seeds.items() if len(weights) > 1}
    if not several:
        return ""
    listed = "; ".join(
        f"{escape.cell(title)}: "
        + ", ".join(
            f"{escape.code(name[:8])} (seed{'s' * (len(own) > 1)} {', '.join(map(str, sorted(own)))})"
            for name, own in weights.items()
        )
        for title, weights in several.items()
    )
    return (
        " Weights differ between seeds where a target was trained again (another processor rounds differently): "
        f"{listed}. Rows are compared within a seed, on one target."
    )


def _target(record: RunRecord) -> str:
    """Its title, and its size and training data where it was trained here."""
    target = record.target
    if target.parameters is None:
        return escape.cell(target.title)
    return (
        f"{escape.cell(target.title)}, {target.parameters:,} parameters, trained from scratch on "
        f"{escape.code(record.training.data.name)} ({target.train['tokens seen']:,} tokens)"
    )


PLACES = (
    "profile",
    "backbone",
    "objective",
    "seed",
    "experiment",
    "runs",
    "device",
    "threads",
    "workers",
    "together",
    "data_root",
    "benchmark_root",
    "evaluation.audit",
    "evaluation.batch_size",
    "evaluation.all_starts",
)
"""Keys whose values a table shows anyway, or that change no number in it."""


def _changes_note(chosen: Sequence[RunRecord]) -> str:
    """Settings that were changed on the command line, in training or when measured."""
    words = [w for r in chosen for c in (r.training.command, r.command) for w in shlex.split(c)]
    changed = dict.fromkeys(w for w in words if "=" in w and key_of(w) not in PLACES)
    return f"Changed on the command line: {', '.join(map(escape.code, changed))}." if changed else ""


def _seeds_note(chosen: Sequence[RunRecord]) -> str:
    seeds = {r.objective: sorted(x.seed for x in chosen if x.objective == r.objective) for r in chosen}
    distinct = {tuple(v) for v in seeds.values()}
    if len(distinct) == 1:
        only = distinct.pop()
        return f"Seeds: {', '.join(map(str, only))} (same initial weights, data order and anchors for every objective)."
    return "Seeds: " + "; ".join(f"{escape.cell(k)}: {', '.join(map(str, v))}" for k, v in seeds.items()) + "."


def audit_note(chosen: Sequence[RunRecord]) -> str:
    """How many live outputs and rounds were exactly as recorded."""
    return audit_text([b for r in chosen for b in r.benchmarks], chosen[0].config)


def audit_text(results: Sequence[BenchmarkResult], config: Mapping[str, Any]) -> str:
    """The same of some benchmarks, measured with the settings ``config``."""
    audits = [b.audit for b in results]
    asked = sum(a.requests for a in audits)
    same = sum(a.identical for a in audits)
    rounds = sum(a.same_rounds for a in audits)
    traces = sum(len(b.traces) for b in results)
    precision = config["evaluation"]["precision"]
    if not asked:
        return f"Audit: no request was decoded live ({traces} requests measured by replay alone)."
    return (
        f"Audit ({escape.cell(precision)}, decoded live): {same} of {asked} outputs equal the target's own token for "
        f"token, {rounds} of {asked} have the recorded rounds exactly ({traces} requests measured)."
    )


def condition_name(condition: Condition) -> str:
    """A condition in words, for Markdown."""
    return escape.cell(f"{condition.factor} {condition.value}".strip())


def table_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
