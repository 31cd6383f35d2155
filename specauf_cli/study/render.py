"""Everything under ``results/`` that is rendered from the committed records, and the tables quoted in README.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specauf_cli.config.specs import (
    AblationSpec,
    BaselinesSpec,
    ConditionsSpec,
    CreditsSpec,
    DraftersSpec,
    TableSpec,
    load_spec,
    objective_yaml,
    shipped_specs,
)
from specauf_cli.errors import InputError
from specauf_cli.reporting import ablation, baselines, comparison, drafters, escape, figures, in_short, tables
from specauf_cli.reporting.claims import Verdict, matrix, verdicts
from specauf_cli.reporting.frontpage import averages
from specauf_cli.reporting.marks import fill_page
from specauf_cli.reporting.measured import Measured, seeds_of, select
from specauf_cli.reporting.report import Found, html
from specauf_cli.store.files import atomic, write_text
from specauf_cli.store.lookup import load_lookup
from specauf_cli.store.records import RunRecord, load_record

RESULTS = Path("results")
RECORDS = RESULTS / "records"
LOOKUPS = RESULTS / "lookup"
"""Records of prompt lookup, which belong to no run."""


@dataclass(frozen=True)
class RenderedPage:
    """One page of one profile as it was rendered, and what it says of the claims.

    ``measured``: what its averages on the front page are taken from; None for a page of conditions. ``short``: what it
    found, in a few lines of Markdown.
    """

    profile: str
    name: str
    measured: Measured | None
    verdicts: Sequence[Verdict]
    title: str
    seeds: str = ""
    short: Sequence[str] = ()


def render() -> None:
    """Renders every table, figure and report from the committed records, and what README.md quotes.

    Errors: InputError where there are no records, or a damaged one.
    """
    if not RECORDS.is_dir():
        raise InputError("no results/records here; run this in a checkout of the project")
    for name in shipped_specs():
        if isinstance(spec := load_spec(name), CreditsSpec):
            _write(RESULTS / f"{name}.md", credits_table(spec))
    rendered: list[RenderedPage] = []
    for folder in sorted(path for path in RECORDS.iterdir() if path.is_dir()):
        rendered += _render_profile(folder)
    readme = Path("README.md")
    if readme.is_file():
        text, quotes = readme.read_text("utf-8"), _quotes(rendered)
        fill_page(readme, {key: lines for key, lines in quotes.items() if f"<!-- {key} -->" in text})


def credits_table(spec: CreditsSpec) -> str:
    """A table of credits, read from the yaml files of its objectives."""
    return tables.variants(spec, {row.objective: objective_yaml(row.objective) for row in spec.rows})


def shipped_credits_tables() -> list[str]:
    """The tables of credits that come with the tool."""
    return [credits_table(spec) for spec in map(load_spec, shipped_specs()) if isinstance(spec, CreditsSpec)]


def draw(folder: Path, measured: Sequence[Measured], snapshots: Sequence[RunRecord]) -> list[figures.Figure]:
    """Draws every figure of these tables as SVG and PNG into ``folder``."""
    drawn = figures.figures(measured, snapshots)
    for figure in drawn:
        _draw(folder, figure)
    return drawn


def _draw(folder: Path, figure: figures.Figure) -> None:
    write_text(folder / f"{figure.name}.svg", figure.svg())
    with atomic(folder / f"{figure.name}.png") as temporary:
        temporary.write_bytes(figure.png())


def _render_profile(folder: Path) -> list[RenderedPage]:
    """Renders what the records of one profile make: tables, pages of conditions, figures, report."""
    profile, specs = folder.name, list(map(load_spec, shipped_specs()))
    records = _records(folder)
    rendered: list[RenderedPage] = []
    for spec in specs:
        if isinstance(spec, ConditionsSpec) and (folder / spec.name).is_dir():
            rendered.append(_render_conditions(spec, folder / spec.name))
        elif isinstance(spec, BaselinesSpec) and (LOOKUPS / profile).is_dir():
            rendered.append(_render_baselines(spec, folder))
        elif isinstance(spec, TableSpec) and (measured := select(spec, records)).records:
            path = RESULTS / profile / f"{spec.name}.md"
            write_text(path.with_suffix(".csv"), tables.to_csv(measured))
            _write(path, tables.markdown(measured, links=escape.path("..", "records", profile)))
            judged, short = verdicts(measured, spec.definition), in_short.of_table(measured, spec.definition)
            seeds = seeds_of([measured.records])
            rendered.append(RenderedPage(profile, spec.name, measured, judged, spec.title, seeds, short))
    if any(page.measured is not None for page in rendered):
        _render_figures_and_report(profile, rendered)
    return rendered


def _render_conditions(spec: ConditionsSpec, folder: Path) -> RenderedPage:
    """Renders a page of conditions from its records, a folder for each of them."""
    profile = folder.parent.name
    records = {condition.name: _records(folder / condition.name) for condition in spec.conditions}
    path, links = RESULTS / profile / f"{spec.name}.md", escape.path("..", "records", profile, spec.name)
    seeds = seeds_of(records.values())
    if isinstance(spec, AblationSpec):
        write_text(path.with_suffix(".csv"), ablation.to_csv(spec, records))
        _write(path, ablation.markdown(spec, records, links=links))
        return RenderedPage(profile, spec.name, None, [], spec.title, seeds, in_short.of_ablation(spec, records))
    if isinstance(spec, DraftersSpec):
        side_by_side = drafters.compare(spec, records)
        write_text(path.with_suffix(".csv"), drafters.to_csv(side_by_side))
        _write(path, drafters.markdown(side_by_side, links=links))
        short = in_short.of_drafters(side_by_side)
        return RenderedPage(profile, spec.name, None, side_by_side.quoted, spec.title, seeds, short)
    compared = comparison.compare(spec, records)
    figure = comparison.budget_figure(compared) or comparison.gamma_figure(compared)
    if figure is not None:
        _draw(path.parent / "figures", figure)
    write_text(path.with_suffix(".csv"), comparison.to_csv(compared))
    _write(path, comparison.markdown(compared, links=links, figure=figure))
    short = in_short.of_comparison(compared)
    return RenderedPage(profile, spec.name, None, compared.quoted, spec.title, seeds, short)


def _render_baselines(spec: BaselinesSpec, folder: Path) -> RenderedPage:
    """Renders plain decoding and prompt lookup beside drafters: its own, or those of the tables if it has none."""
    profile = folder.name
    own = folder / spec.name
    records, links = (
        (_records(own), escape.path("..", "records", profile, spec.name))
        if own.is_dir()
        else (_records(folder), escape.path("..", "records", profile))
    )
    lookups = [load_lookup(path) for path in sorted((LOOKUPS / profile).glob("*.json"))]
    newest = max(lookups, key=lambda record: record.written)
    _write(RESULTS / profile / f"{spec.name}.md", baselines.markdown(spec, newest, records, links=links))
    short = baselines.in_short(spec, newest, records)
    return RenderedPage(profile, spec.name, None, [], spec.title, seeds_of([records]), short)


def _render_figures_and_report(profile: str, pages: Sequence[RenderedPage]) -> None:
    folder, links = RESULTS / profile, escape.path("..", "records", profile)
    measured = [page.measured for page in pages if page.measured is not None]
    drawn = draw(folder / "figures", measured, _records(RECORDS / profile / "steps"))
    _write(folder / "figures.md", figures.page(profile, drawn, links=links))
    tables_first = sorted(pages, key=lambda page: page.measured is None)
    found = [Found(f"{page.name}.md", page.title, page.seeds, page.short) for page in tables_first]
    report = html(profile, measured, drawn, shipped_credits_tables(), links=links, found=found)
    _write(folder / "report.html", report)


def _records(folder: Path) -> list[RunRecord]:
    return [load_record(path) for path in sorted(folder.glob("*.json"))]


def _quotes(rendered: Sequence[RenderedPage]) -> dict[str, list[str]]:
    """What the front page may quote, by its marks: the matrix of claims, and the averages of every table."""
    judged: dict[str, list[Verdict]] = {}
    pages: dict[str, dict[str, str]] = {}
    measured: dict[str, dict[str, Measured]] = {}
    for page in rendered:
        address = escape.path("results", page.profile, f"{page.name}.md")
        judged.setdefault(page.profile, []).extend(page.verdicts)
        pages.setdefault(page.profile, {}).update({verdict.claim: address for verdict in page.verdicts})
        if page.measured is not None:
            measured.setdefault(page.name, {})[page.profile] = page.measured
    quotes = {"claims": matrix(judged, pages)}
    return quotes | {f"averages {name}": averages(by_profile, most=1) for name, by_profile in measured.items()}


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    print(path)
