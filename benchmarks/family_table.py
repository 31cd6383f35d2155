"""The table of families in docs/targets.md, from the records; ``python -m benchmarks.family_table`` writes it.

A row shows what benchmarks/families.py has measured of a family (benchmarks/families.json), and beside it what
benchmarks/plan.py (benchmarks/plan.json) and `make engine` (benchmarks/engine.json) have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.families import FAMILIES, RECORD
from specauf_cli.reporting import escape
from specauf_cli.reporting.marks import fill_page
from specauf_cli.reporting.tables import DASH, table_row
from specauf_cli.store.engine import ENGINE, EngineCase
from specauf_cli.store.files import read_json

PAGE = Path("docs/targets.md")
HEAD = ["target", "T = 0", "T = 1", "doctor", "export and import", "plan / measured", "vLLM, plain", "vLLM, DFlash AUF"]


def table(families: Mapping[str, Any], engine: tuple[EngineCase, ...], planned: Mapping[str, Any]) -> list[str]:
    """A row for every family; ``families`` and ``planned``: the rows of their records."""
    lines = [table_row(HEAD), table_row(["---"] * len(HEAD))]
    for family in FAMILIES:
        row, plan = families.get(family), planned.get(family)
        cells = [*measured(row), f"{plan['ratio']:.2f}" if plan else DASH, *served(family, engine)]
        lines.append(table_row([escape.code(family), *cells]))
    return lines


def measured(row: Mapping[str, Any] | None) -> list[str]:
    """Four cells: outputs and rounds at both temperatures, the doctor's verdicts, the layouts that come back equal."""
    if row is None:
        return [DASH] * 4
    exact = []
    for counts in row["exact"].values():
        outputs, rounds, asked = counts["outputs"], counts["rounds"], counts["requests"]
        both = f"{outputs} of {asked}" if outputs == rounds else f"{outputs} outputs, {rounds} rounds of {asked}"
        exact.append(both)
    verdicts = row["doctor"]
    doctor = ", ".join(f"{verdicts[v]} {v}" for v in ("ok", "warn", "FAIL", "-") if verdicts.get(v))
    equal = [name for name, same in row["imported"].items() if same]
    return [*exact, doctor, f"{len(equal)} of {len(row['imported'])} equal"]


def served(family: str, engine: tuple[EngineCase, ...]) -> list[str]:
    """Two cells: the referee on a real vLLM without and with a drafter; a dash where it was not served."""
    cells = []
    for with_drafter in (False, True):
        case = next((c for c in engine if c.target == family and bool(c.drafter) == with_drafter), None)
        cells.append(DASH if case is None else case.verdict)
    return cells


def from_records() -> list[str]:
    """The table as the records now have it."""
    families = read_json(RECORD)["rows"] if RECORD.is_file() else {}
    engine = ENGINE.load(Path("benchmarks/engine.json")).cases
    return table(families, engine, read_json(Path("benchmarks/plan.json"))["rows"])


def main() -> None:
    """Writes the table into the page."""
    fill_page(PAGE, {"families": from_records()})
    print(PAGE)


if __name__ == "__main__":
    main()
