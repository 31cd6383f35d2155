"""What the README quotes: average tau of one table, every profile beside the paper."""

from collections.abc import Mapping

from specauf_cli.evaluation.statistics import Interval
from specauf_cli.reporting.escape import cell, code
from specauf_cli.reporting.measured import Measured
from specauf_cli.reporting.tables import DASH, lines, table_row


def averages(measured: Mapping[str, Measured]) -> list[str]:
    """Average tau by method: ours per profile and the paper's, at every temperature. All of one experiment, by profile."""
    experiment = next(iter(measured.values())).experiment
    found = {
        profile: {(x.temperature, x.method, x.source): x.values[-1] for x in lines(m)}
        for profile, m in measured.items()
    }
    temperatures = sorted({t for m in measured.values() for t in m.temperatures})
    sources = [*((p, "ours") for p in measured), (next(iter(measured)), "paper")]
    head = [f"{code(p)}, T = {t:g}" if s == "ours" else f"paper, T = {t:g}" for t in temperatures for p, s in sources]
    text = [table_row(["average tau", *head]), table_row(["---", *["--:"] * len(head)])]
    for row in experiment.rows:
        shown = [found[p].get((t, row.title, s)) for t in temperatures for p, s in sources]
        text.append(table_row([cell(row.title), *map(_shown, shown)]))
    return text


def _shown(value: Interval | float | None) -> str:
    if value is None:
        return DASH
    return f"{value.value:.2f} ± {value.half_width:.2f}" if isinstance(value, Interval) else f"{value:.2f}"
