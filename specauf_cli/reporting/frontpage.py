"""What README and report open with: average tau of one table, every profile beside the paper."""

from collections.abc import Mapping

from specauf_cli.evaluation.statistics import average
from specauf_cli.reporting.escape import cell, code
from specauf_cli.reporting.measured import Measured
from specauf_cli.reporting.tables import DASH, table_row


def averages(measured: Mapping[str, Measured], *, most: int | None = None) -> list[str]:
    """Average tau by method: ours by profile, then the paper's. ``measured``: one experiment; ``most``: so many
    temperatures, from the lowest (None: all)."""
    experiment = next(iter(measured.values())).experiment
    temperatures = sorted({t for m in measured.values() for t in m.temperatures})[:most]
    head = [f"{source}, T = {t:g}" for t in temperatures for source in (*map(code, measured), "paper")]
    text = [table_row(["average tau", *head]), table_row(["---", *["--:"] * len(head)])]
    for row in experiment.rows:
        shown = [cell(row.title)]
        for t in temperatures:
            shown += [_ours(m, row.objective, t) for m in measured.values()]
            paper = experiment.paper.values.get(f"{t:g}", {}).get(row.objective)
            shown.append(f"{paper[-1]:.2f}" if paper else DASH)
        text.append(table_row(shown))
    return text


def _ours(measured: Measured, objective: str, temperature: float) -> str:
    taus = measured.taus(objective, temperature, measured.experiment.definition)
    if len(taus) < len(measured.experiment.columns):
        return DASH
    mean = average(taus)
    return f"{mean.value:.2f} ± {mean.half_width:.2f}"
