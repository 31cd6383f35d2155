"""What each page found, in a line or a few: how the report begins. Markdown, from the same numbers as the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specauf_cli.config.specs import AblationSpec
from specauf_cli.evaluation.statistics import Interval, average, average_difference
from specauf_cli.reporting import ablation
from specauf_cli.reporting.claims import signed
from specauf_cli.reporting.comparison import Comparison, Line, Part, by_budget, listed, tied_with_best
from specauf_cli.reporting.drafters import SideBySide
from specauf_cli.reporting.escape import cell
from specauf_cli.reporting.measured import Measured
from specauf_cli.reporting.tables import condition_name, tau_cell
from specauf_cli.store.records import RunRecord

AUF = "auf"


def of_table(measured: Measured, definition: str, baseline: str = "decay") -> list[str]:
    """At each temperature the row with the highest average tau beside the baseline, and its lead over it."""
    titles = {row.objective: row.title for row in measured.experiment.rows}
    lines = []
    for temperature in measured.temperatures:
        taus = {name: measured.taus(name, temperature, definition) for name in titles}
        whole = {name: t for name, t in taus.items() if len(t) == len(measured.experiment.columns)}
        averages = {name: average(t) for name, t in whole.items()}
        others = [name for name in averages if name != baseline]
        if baseline not in averages or not others:
            continue
        best = max(others, key=lambda name: averages[name].value)
        lead = average_difference(whole[best], whole[baseline])
        lines.append(
            f"T = {temperature:g}: {_tau(titles[best], averages[best])}, "
            f"{_tau(titles[baseline], averages[baseline])}; difference {signed(lead)}"
        )
    return lines


def of_comparison(compared: Comparison) -> list[str]:
    """Under each condition the best row and AUF's difference to the baseline; over budgets, these in a row."""
    page = compared.page
    title = next(row.title for row in page.rows if row.recorded_as == page.baseline)
    in_a_row, lines = by_budget(compared), list[str]()
    for factor, parts in in_a_row.items():
        ordered = [(budget, parts[budget]) for budget in sorted(parts)]
        gains = [f"{signed(auf.to_baseline)} (x {b:g})" for b, p in ordered if (auf := _auf(p)) and auf.to_baseline]
        first = [f"{cell(p.lines[0].row.title)} (x {b:g})" for b, p in ordered]
        lines += [f"{cell(factor)}, best: {'; '.join(first)}"]
        lines += [f"{cell(factor)}, AUF - {cell(title)}: {', '.join(gains)}"] if gains else []
    shown = {part.condition.name for parts in in_a_row.values() for part in parts.values()}
    for part in compared.parts:
        best, auf = part.lines[0], _auf(part)
        if part.condition.name in shown or best.average is None:
            continue
        text = f"{condition_name(part.condition)}: best {_tau(best.row.title, best.average)}"
        if tied := tied_with_best(part.lines):
            text += f" (not separable from it: {listed(tied)})"
        if auf is not None and auf.to_baseline is not None:
            text += f"; AUF - {cell(title)} {signed(auf.to_baseline)}"
        lines.append(text)
    return lines


def of_drafters(side_by_side: SideBySide) -> list[str]:
    """Under each condition what every drafter gains over its baseline."""
    return [
        f"{condition_name(part.condition)}: {cell(part.verdict.numbers)}"
        for part in side_by_side.parts
        if part.verdict is not None
    ]


def of_ablation(page: AblationSpec, records: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Each claim with the number of conditions under which it holds."""
    found = (ablation.finding(page, c, records.get(c.name, ())) for c in page.conditions)
    return [line.removeprefix("- ") for line in ablation.summary([f for f in found if f is not None])]


def _tau(title: str, tau: Interval) -> str:
    return f"{cell(title)} {tau_cell(tau, bold=False)}"


def _auf(part: Part) -> Line | None:
    return next((line for line in part.lines if line.row.recorded_as == AUF), None)
