"""docs/engines.md: the tables of what ``make engine`` found; ``python -m specauf_cli.reporting.engines`` writes them.

Everything else on the page is written by hand; what is rendered is between ``<!-- equal -->``, ``<!-- faults -->`` or
``<!-- runs -->``, and ``<!-- end -->``.
"""

from collections.abc import Sequence
from pathlib import Path

from specauf_cli.reporting import escape
from specauf_cli.reporting.marks import fill_page
from specauf_cli.reporting.referee import SAMPLING
from specauf_cli.reporting.tables import DASH, table_row
from specauf_cli.store.engine import ENGINE, AtTemperature, EngineCase
from specauf_cli.store.referee import LARGEST_Z

PAGE, RECORD = Path("docs/engines.md"), Path("benchmarks/engine.json")
LAYOUTS = {"vllm": "speculators", "hf": "Hugging Face", None: DASH}
HEAD = ["T", "equal answers", "equal histograms", "tau, engine", "tau, replay", "difference", "sampling", "verdict"]


def parts(cases: Sequence[EngineCase]) -> dict[str, list[str]]:
    """The tables of ``cases`` by their marks on the page."""
    return {
        "equal": whole([c for c in cases if c.expected == "equal"]),
        "faults": faulty([c for c in cases if c.expected != "equal"]),
        "runs": [versions(cases)],
    }


def whole(cases: Sequence[EngineCase]) -> list[str]:
    """Servers from which equality is expected: two rows each."""
    rows = [[escape.cell(c.title), layout_of(c), *measured(t)] for c in cases for t in c.temperatures]
    return table(["server drafts with", "export", *HEAD], rows)


def layout_of(case: EngineCase) -> str:
    """What the layout of its export is called; vLLM has one of its own for Medusa heads."""
    own = case.layout == "vllm" and (case.drafter or "").startswith("medusa-")
    return "vLLM's own" if own else LAYOUTS[case.layout]


def faulty(cases: Sequence[EngineCase]) -> list[str]:
    """Servers with a fault: two rows each, then what the referee named."""
    rows = [[fault(c), *measured(t)] for c in cases for t in c.temperatures]
    return [*table(["without, or changed", *HEAD], rows), "", *map(diagnosis, cases)]


def fault(case: EngineCase) -> str:
    """What was left out or changed."""
    changed = [escape.code(f"{key}: {str(value).lower()}") for key, value in case.changed.items()]
    return ", ".join([*map(escape.code, case.without), *changed])


def measured(at: AtTemperature) -> list[str]:
    """The cells of one temperature."""
    difference = DASH
    if at.difference is not None:
        value, low, high = at.difference
        half = (high - low) / 2
        difference = f"{value:+.3f} ± {half:.3f}" if half else f"{value:+.3f}"
    return [
        f"{at.temperature:g}",
        *(f"{equal} of {compared}" if compared else DASH for equal, compared in (at.answers, at.counts)),
        *(DASH if tau is None else f"{tau:.3f}" for tau in (at.engine, at.replay)),
        difference,
        DASH if at.sampling is None else f"{at.sampling:.1f}",
        at.verdict,
    ]


def diagnosis(case: EngineCase) -> str:
    """A line of the list below the table: the fault that the referee names, and the first difference."""
    cause = f"the referee names: {case.cause}" if case.cause else "the referee names none of the faults it knows"
    named = next((t for t in case.tried if case.cause is not None and case.cause.startswith(t.fault)), None)
    if named is not None:
        cause += f" ({named.reproduced} of {named.examined} requests come out alike)"
    wrong = [t for t in case.temperatures if t.sampling is not None and t.sampling > LARGEST_Z]
    if wrong and case.cause != SAMPLING:
        cause += f"; at T = {wrong[0].temperature:g} the draws are not the target's either"
    first = f". First difference: {case.first}" if case.first else ""
    return f"- {fault(case)}: {escape.cell(cause + first)}."


def versions(cases: Sequence[EngineCase]) -> str:
    """The line that says what ran where."""
    engines = sorted({", ".join(f"{k} {v}" for k, v in c.engine.items()) for c in cases})
    machines = sorted({f"{c.environment['cpu']}, {c.environment['threads']} thread(s)" for c in cases})
    commits = sorted({str(c.code.commit)[:12] for c in cases})
    days = sorted({c.written[:10] for c in cases})
    return escape.cell(f"{'; '.join(engines)}; {'; '.join(machines)}; {', '.join(days)}, commit {', '.join(commits)}.")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; columns from the T on are aligned to the right."""
    at = head.index("T")
    line = ["---"] * at + ["--:"] * (len(head) - at - 1) + ["---"]
    return [table_row(head), table_row(line), *map(table_row, rows)]


def main() -> None:
    """Writes the tables of ``RECORD`` into ``PAGE``."""
    fill_page(PAGE, parts(ENGINE.load(RECORD).cases))
    print(PAGE)


if __name__ == "__main__":
    main()
