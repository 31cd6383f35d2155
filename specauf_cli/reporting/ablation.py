"""Where AUF's claims hold and where they do not: one row of differences and verdicts for every condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from specauf_cli.config.specs import AblationSpec, Condition
from specauf_cli.evaluation.statistics import Interval, average, difference, equivalent
from specauf_cli.reporting.claims import FAILS, HOLDS, all_above, all_within, pairs, signed
from specauf_cli.reporting.escape import cell, path
from specauf_cli.reporting.measured import select, sources
from specauf_cli.reporting.tables import DASH, audit_note, condition_name, profile_note, table_row
from specauf_cli.store.records import RunRecord

CLAIMS = ("AUF > decay", "AUF = AUF+decay", "inversion")
AVERAGE = "Avg"


@dataclass(frozen=True)
class Finding:
    """One condition: average tau by objective, the differences by column title and ``Avg``, and the verdict on each
    claim.

    ``gain`` is AUF - decay, ``rest`` AUF - AUF+decay in tau; ``accuracy`` decay - AUF in block-mask accuracy.
    """

    condition: Condition
    taus: Mapping[str, Interval]
    gain: Mapping[str, Interval]
    rest: Mapping[str, Interval]
    accuracy: Interval
    verdicts: Mapping[str, str]


def finding(page: AblationSpec, condition: Condition, records: Sequence[RunRecord]) -> Finding | None:
    """What was measured under one condition, at the lowest temperature; None while a row or a benchmark is missing.

    Verdicts are on the average over the benchmarks: AUF > decay, AUF and AUF+decay within the margin of each other, and
    the inversion: decay has the higher block-mask accuracy and yet the lower tau.
    """
    measured = select(page.experiment, records)
    if {r.objective for r in measured.records} != {r.objective for r in page.rows}:
        return None
    temperature = measured.temperatures[0]
    taus = {r.objective: measured.taus(r.objective, temperature, page.definition) for r in page.rows}
    if any(len(found) < len(page.columns) for found in taus.values()):
        return None
    gain = pairs(measured, "auf", "decay", temperature, page.definition)
    rest = pairs(measured, "auf", "auf_decay", temperature, page.definition)
    theirs, ours = measured.accuracy("decay"), measured.accuracy("auf")
    assert theirs is not None
    assert ours is not None
    accuracy = difference(theirs, ours, "heldout")
    found = [
        all_above([gain[AVERAGE]]),
        all_within([rest[AVERAGE]], page.margin),
        all_above([accuracy, gain[AVERAGE]]),
    ]
    return Finding(
        condition,
        {k: average(v) for k, v in taus.items()},
        gain,
        rest,
        accuracy,
        dict(zip(CLAIMS, found, strict=True)),
    )


def markdown(page: AblationSpec, records: Mapping[str, Sequence[RunRecord]], *, links: str | None = None) -> str:
    """The page: a row for every condition, a line for every claim, the single benchmarks, and the records
    it.

    ``records`` by the name of their condition; ``links``: relative path to the folders of records.
    """
    findings = [f for c in page.conditions if (f := finding(page, c, records.get(c.name, ()))) is not None]
    missing = [condition_name(c) for c in page.conditions if c.name not in {f.condition.name for f in findings}]
    titles = {r.objective: r.title for r in page.rows}
    head = [
        "factor",
        "value",
        *(f"tau, {cell(t)}" for t in titles.values()),
        "AUF - decay",
        CLAIMS[0],
        "AUF - AUF+decay",
        CLAIMS[1],
        "accuracy, decay - AUF",
        CLAIMS[2],
    ]
    text = [f"# {cell(page.title)}", "", *summary(findings), "", table_row(head), table_row(["---"] * len(head))]
    for f in findings:
        of, columns = [v for k, v in f.gain.items() if k != AVERAGE], len(page.columns)
        above = sum(i.low > 0 for i in of)
        close = sum(equivalent(i, page.margin) for k, i in f.rest.items() if k != AVERAGE)
        text.append(
            table_row(
                [
                    cell(f.condition.factor),
                    cell(f.condition.value),
                    *(f"{f.taus[o].value:.2f} ± {f.taus[o].half_width:.2f}" for o in titles),
                    signed(f.gain[AVERAGE]),
                    f"**{f.verdicts[CLAIMS[0]]}** ({above} of {columns})",
                    signed(f.rest[AVERAGE]),
                    f"**{f.verdicts[CLAIMS[1]]}** ({close} of {columns})",
                    f"{100 * f.accuracy.value:+.1f} ± {100 * f.accuracy.half_width:.1f}",
                    f"**{f.verdicts[CLAIMS[2]]}**",
                ]
            )
        )
    text += ["", *_benchmarks(page, findings)]
    if missing:
        text += ["", f"Not measured yet: {', '.join(missing)}."]
    everything = [r for f in findings for r in records[f.condition.name]]
    at = min((b.temperature for r in everything for b in r.benchmarks), default=0.0)
    text += [
        "",
        f"Verdicts are on the average over the benchmarks at T = {at:g}. AUF = AUF+decay: the interval is within "
        f"±{page.margin:g} tokens. Inversion: decay has the higher block-mask accuracy (in points) and yet the lower "
        "tau. In brackets: on how many single benchmarks.",
    ]
    if everything:
        seeds = {condition_name(f.condition): sorted({r.seed for r in records[f.condition.name]}) for f in findings}
        text += ["", profile_note(everything), "", _interval_note(seeds), "", audit_note(everything)]
    if links is not None:
        text += ["", "Records:", ""]
        for name, title in ((f.condition.name, condition_name(f.condition)) for f in findings):
            text.append(f"- {title}: {sources(records[name], f'{links}/{path(name)}')}")
    return "\n".join([*text, ""])


def _interval_note(seeds: Mapping[str, Sequence[int]]) -> str:
    """What intervals are about; ``seeds`` of every condition."""
    each = {condition: ", ".join(map(str, own)) for condition, own in seeds.items()}
    same = len(set(each.values())) == 1
    several = ", and seeds where there are several" if any(len(own) > 1 for own in seeds.values()) else ""
    alone = any(len(own) == 1 for own in seeds.values())
    listed = next(iter(each.values())) if same else "; ".join(f"{name}: {own}" for name, own in each.items())
    return (
        f"± is half of the 95 % percentile interval of a paired bootstrap (10,000 resamples) over prompts{several}"
        f"{'; with one seed it speaks of these drafters, not of training again' if alone else ''}. Seeds: {listed}. "
        "Conditions were tried once each: no row was searched for."
    )


def summary(findings: Sequence[Finding]) -> list[str]:
    """A line for every claim: under how many conditions it holds, and which are the others."""
    lines = []
    for claim in CLAIMS:
        holds = sum(f.verdicts[claim] == HOLDS for f in findings)
        parts = [f"**{claim}** on average holds under {holds} of {len(findings)} conditions"]
        for word in (FAILS, "not separable"):
            names = [condition_name(f.condition) for f in findings if f.verdicts[claim] == word]
            parts += [f"{word}: {', '.join(names)}"] if names else []
        lines.append("- " + "; ".join(parts) + ".")
    return lines


def _benchmarks(page: AblationSpec, findings: Sequence[Finding]) -> list[str]:
    """AUF - decay on every benchmark."""
    head = ["AUF - decay", "", *map(cell, page.columns.values())]
    rows = [table_row(head), table_row(["---"] * len(head))]
    for f in findings:
        cells = [signed(f.gain[t]) if t in f.gain else DASH for t in page.columns.values()]
        rows.append(table_row([cell(f.condition.factor), cell(f.condition.value), *cells]))
    return rows


def to_csv(page: AblationSpec, records: Mapping[str, Sequence[RunRecord]]) -> str:
    """The same numbers, unrounded, in long form: one line per number."""
    rows = []
    for condition in page.conditions:
        f = finding(page, condition, records.get(condition.name, ()))
        if f is None:
            continue
        numbers = [("average tau", k, v) for k, v in f.taus.items()]
        numbers += [("AUF - decay", k, v) for k, v in f.gain.items()] + [
            ("AUF - AUF+decay", k, v) for k, v in f.rest.items()
        ]
        numbers += [("accuracy, decay - AUF", "heldout", f.accuracy)]
        rows += [(condition.name, what, of, i.value, i.low, i.high) for what, of, i in numbers]
    frame = pd.DataFrame(rows, columns=["condition", "what", "of", "value", "low", "high"])
    return frame.round(6).to_csv(index=False, lineterminator="\n")
