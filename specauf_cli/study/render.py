"""Everything under ``results/`` that is rendered from the committed records, and the tables quoted in README.md."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specauf_cli.config.specs import AblationSpec, CreditsSpec, TableSpec, load_spec, objective_yaml, shipped_specs
from specauf_cli.errors import InputError
from specauf_cli.reporting import ablation, escape, figures, tables
from specauf_cli.reporting.claims import Verdict, matrix, verdicts
from specauf_cli.reporting.frontpage import averages
from specauf_cli.reporting.measured import Measured, select
from specauf_cli.reporting.report import html
from specauf_cli.store.files import atomic, write_text
from specauf_cli.store.records import RunRecord, load_record

RESULTS = Path("results")
RECORDS = RESULTS / "records"


@dataclass(frozen=True)
class RenderedTable:
    """One table of one profile as it was rendered: what was measured, and what that says of the claims."""

    profile: str
    spec: TableSpec
    measured: Measured
    verdicts: list[Verdict]


def render() -> None:
    """Renders every table, figure and report from the committed records, and what README.md quotes.

    Errors: InputError where there are no records, or a damaged one.
    """
    if not RECORDS.is_dir():
        raise InputError("no results/records here; run this in a checkout of the project")
    for name in shipped_specs():
        if isinstance(spec := load_spec(name), CreditsSpec):
            _write(RESULTS / f"{name}.md", credits_table(spec))
    rendered: list[RenderedTable] = []
    for folder in sorted(path for path in RECORDS.iterdir() if path.is_dir()):
        rendered += _render_profile(folder)
    readme = Path("README.md")
    if readme.is_file():
        text = readme.read_text("utf-8")
        if (quoted := _quoting(text, rendered)) != text:
            write_text(readme, quoted)


def credits_table(spec: CreditsSpec) -> str:
    """A table of credits, read from the yaml files of its objectives."""
    return tables.variants(spec, {row.objective: objective_yaml(row.objective) for row in spec.rows})


def shipped_credits_tables() -> list[str]:
    """The tables of credits that come with the tool."""
    return [credits_table(spec) for spec in map(load_spec, shipped_specs()) if isinstance(spec, CreditsSpec)]


def draw(
    folder: Path, specs: Sequence[TableSpec], records: Sequence[RunRecord], snapshots: Sequence[RunRecord]
) -> list[figures.Figure]:
    """Draws every figure as SVG and PNG into ``folder``."""
    drawn = figures.figures(specs, records, snapshots)
    for figure in drawn:
        write_text(folder / f"{figure.name}.svg", figure.svg())
        with atomic(folder / f"{figure.name}.png") as temporary:
            temporary.write_bytes(figure.png())
    return drawn


def _render_profile(folder: Path) -> list[RenderedTable]:
    """Renders what the records of one profile make: tables, ablations, figures, report."""
    profile, specs = folder.name, list(map(load_spec, shipped_specs()))
    records = _records(folder)
    rendered: list[RenderedTable] = []
    for spec in specs:
        if isinstance(spec, AblationSpec) and (folder / spec.name).is_dir():
            _render_ablation(spec, folder / spec.name)
        elif isinstance(spec, TableSpec) and (measured := select(spec, records)).records:
            path = RESULTS / profile / f"{spec.name}.md"
            write_text(path.with_suffix(".csv"), tables.to_csv(spec, records))
            _write(path, tables.markdown(spec, records, links=escape.path("..", "records", profile)))
            rendered.append(RenderedTable(profile, spec, measured, verdicts(measured, spec.definition)))
    if rendered:
        _render_figures_and_report(profile, [spec for spec in specs if isinstance(spec, TableSpec)], records)
    return rendered


def _render_ablation(spec: AblationSpec, folder: Path) -> None:
    """Renders an ablation from its records, a folder for each condition."""
    profile = folder.parent.name
    records = {condition.name: _records(folder / condition.name) for condition in spec.conditions}
    path = RESULTS / profile / f"{spec.name}.md"
    write_text(path.with_suffix(".csv"), ablation.to_csv(spec, records))
    _write(path, ablation.markdown(spec, records, links=escape.path("..", "records", profile, spec.name)))


def _render_figures_and_report(profile: str, specs: Sequence[TableSpec], records: Sequence[RunRecord]) -> None:
    folder, links = RESULTS / profile, escape.path("..", "records", profile)
    drawn = draw(folder / "figures", specs, records, _records(RECORDS / profile / "steps"))
    _write(folder / "figures.md", figures.page(profile, drawn, links=links))
    report = html(profile, specs, records, drawn, shipped_credits_tables(), links=links)
    _write(folder / "report.html", report)


def _records(folder: Path) -> list[RunRecord]:
    return [load_record(path) for path in sorted(folder.glob("*.json"))]


def _quoting(readme: str, rendered: Sequence[RenderedTable]) -> str:
    """The README with the matrix of claims and the averages of every table between their marks."""
    judged: dict[str, list[Verdict]] = {}
    pages: dict[str, dict[str, str]] = {}
    measured: dict[str, dict[str, Measured]] = {}
    for table in rendered:
        page = escape.path("results", table.profile, f"{table.spec.name}.md")
        judged.setdefault(table.profile, []).extend(table.verdicts)
        pages.setdefault(table.profile, {}).update({verdict.claim: page for verdict in table.verdicts})
        measured.setdefault(table.spec.name, {})[table.profile] = table.measured
    quotes = {"claims": matrix(judged, pages)}
    quotes |= {f"averages {name}": averages(by_profile) for name, by_profile in measured.items()}
    for key, lines in quotes.items():
        readme = _between(readme, key, "".join(f"{line}\n" for line in lines))
    return readme


def _between(text: str, key: str, block: str) -> str:
    """``text`` with ``block`` between the marks ``<!-- key -->`` and ``<!-- end -->``, wherever they are."""
    marked = rf"(<!-- {re.escape(key)} -->\n).*?(<!-- end -->)"
    return re.sub(marked, lambda marks: marks[1] + block + marks[2], text, flags=re.DOTALL)


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    print(path)
