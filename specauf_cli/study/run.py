"""Whole tables: which jobs are missing, train and measure them, render, publish."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from specauf_cli.config import compose, groups
from specauf_cli.config.specs import (
    AblationSpec,
    CreditsSpec,
    Spec,
    TableSpec,
    condition_overrides,
    load_spec,
    objective_yaml,
    shipped_specs,
)
from specauf_cli.errors import InputError, nearest
from specauf_cli.reporting import ablation, tables
from specauf_cli.reporting import figures as drawings
from specauf_cli.reporting.claims import Verdict, matrix, verdicts
from specauf_cli.reporting.escape import path as address
from specauf_cli.reporting.frontpage import averages
from specauf_cli.reporting.measured import Measured, select
from specauf_cli.reporting.report import html
from specauf_cli.runtime import ranks
from specauf_cli.session import Session, open_session
from specauf_cli.store import signature, trust
from specauf_cli.store.files import atomic, read_json, write_json
from specauf_cli.store.layout import snapshot, snapshot_steps
from specauf_cli.store.provenance import code_state
from specauf_cli.store.records import RunRecord, load_record
from specauf_cli.study.executors import Job, outcomes

RESULTS = Path("results")
CHECKOUT = groups.folder("conf").parent


def run(
    names: Sequence[str],
    overrides: Sequence[str],
    seeds: Sequence[int],
    *,
    publish: bool,
    launcher: str | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Trains and measures every missing job of the experiments (``only``: of these objectives), then prints and writes
    their tables.

    A job that fails leaves the others running; the next call tries it again. Errors: InputError naming the failed jobs
    and their reasons, at the end; before anything is trained, when ``publish`` is asked for on a tree with uncommitted
    changes.
    """
    if ranks.WORLD > 1:
        raise InputError("torchrun shares one training or evaluation; a table has workers=N and --launcher instead")
    if publish:
        _require_clean()
    chosen = [load_spec(n) for n in names] if names else _main_pages()
    asked = dict(zip((page.name for page in chosen), names or (page.name for page in chosen), strict=True))
    config = compose.compose(overrides)
    local, profile = Path(config.runs), config.profile.name
    pages = {page.name: page for page in chosen}
    if len(pages) < len(chosen):
        twice = next(n for n in pages if [p.name for p in chosen].count(n) > 1)
        raise InputError(f"two of the pages asked for are called {twice!r}, and would be written to the same file")
    for page in chosen:
        if isinstance(page, CreditsSpec):
            _print(local / "tables" / f"{page.name}.md", _variants(page))
    jobs = [c for seed in seeds for page in pages.values() for c in _jobs(page, overrides, seed, config.trainer.steps)]
    if only is not None:
        known = dict.fromkeys(c.objective for c in jobs)
        wrong = next((o for o in only if o not in known), None)
        if not known:
            raise InputError(f"--only {','.join(only)}: nothing is trained for {', '.join(pages)}; leave it out")
        if wrong is not None:
            raise InputError(f"--only: {wrong!r} is no row here; valid: {', '.join(known)}.{nearest(wrong, known)}")
        jobs = [c for c in jobs if c.objective in only]
    for job in jobs if seeds else []:
        if job.seed == seeds[0]:
            compose.compose(job.words)  # what is wrong with a job is said before the first one is trained
    made: dict[str, list[RunRecord]] = {c.experiment: [] for c in jobs}
    missing = Counter(_page(c.experiment) for c in jobs)
    failed: list[str] = []
    for job, found in outcomes(jobs, config, launcher):
        name = _page(job.experiment)
        missing[name] -= 1
        if isinstance(found, str):
            failed.append(f"{job.experiment}, {job.objective}, seed {job.seed}: {found}")
            print(f"specauf: {failed[-1]}; the other jobs go on", file=sys.stderr)
        else:
            made[job.experiment].append(found)
        records = made[job.experiment]
        page, path = pages[name], local / "tables" / f"{profile}-{name}.md"
        if missing[name] or not any(made[k] for k in made if _page(k) == name):
            continue  # shown as soon as it is whole, the others may take a while
        if isinstance(page, AblationSpec):
            mine = {c.name: made[f"{name}/{c.name}"] for c in page.conditions}
            _write(path.with_suffix(".csv"), ablation.to_csv(page, mine))
            _print(path, ablation.markdown(page, mine))
        elif isinstance(page, TableSpec):
            records.sort(key=lambda r: [(c.seed, c.objective) for c in jobs].index((r.seed, r.objective)))
            _write(path.with_suffix(".csv"), tables.to_csv(page, records))
            _print(path, tables.markdown(page, records))
            _remember(local / "tables" / f"{profile}.json", page, asked[name], records)
    if failed:
        raise InputError(f"{len(failed)} jobs failed, the same command tries them again: {' | '.join(failed)}")
    if publish:
        for name, records in made.items():
            for record in records:
                _publish(record, local, under=name if "/" in name else "")
                for path in [] if "/" in name else sorted((local / record.run / "snapshots").glob("*/records/*.json")):
                    _publish(load_record(path), local, path, "steps")
        render()


def _main_pages() -> list[Spec]:
    """The tables of the paper; pages of conditions are asked for by name."""
    return [p for p in map(load_spec, shipped_specs()) if not isinstance(p, AblationSpec)]


def _jobs(page: Spec, overrides: Sequence[str], seed: int, steps: int | None) -> list[Job]:
    """The drafters that a page is made of, for one seed; those of a condition are named ``PAGE/CONDITION``."""
    if isinstance(page, TableSpec):
        return [Job(page.name, page.backbone, row.objective, seed, tuple(overrides)) for row in page.rows]
    if isinstance(page, CreditsSpec):
        return []
    return [
        Job(
            f"{page.name}/{condition.name}",
            page.backbone,
            row.objective,
            seed,
            (*page.settings, *overrides, *condition_overrides(condition, row.objective, steps)),
        )
        for condition in page.conditions
        for row in page.rows
    ]


def _page(experiment: str) -> str:
    """The page that a job belongs to."""
    return experiment.partition("/")[0]


def figures(overrides: Sequence[str]) -> None:
    """Draws the last ``specauf table`` of a profile and backbone into ``runs/figures/<profile>/``.

    Drafters that were kept on the way are measured first, on a few prompts, where nobody has measured them yet.
    """
    profile, local, pages, records = _remembered(overrides)
    _measure_on_the_way(local, records, overrides)
    folder = local / "figures" / profile
    for figure in _draw(folder, pages, records, _on_the_way(local, records)):
        print(folder / f"{figure.name}.svg")


FEW = ["evaluation.prompts=10", "evaluation.temperatures=[0.0]", "evaluation.audit=0"]
"""How drafters from the middle of training are measured for the figure of tau against the step."""


def _measure_on_the_way(local: Path, records: Sequence[RunRecord], overrides: Sequence[str]) -> None:
    """Measures the kept drafters of the first seed's runs that nobody has measured yet."""
    session: Session | None = None
    first = min(r.seed for r in records)
    for record in sorted(records, key=lambda r: r.run):
        folder = local / record.run
        if record.seed != first or not (folder / "snapshots").is_dir():
            continue
        steps = [s for s in snapshot_steps(folder) if not any(snapshot(folder, s).glob("records/*.json"))]
        if not steps:
            continue
        own = [*trust.overrides_of(folder, overrides), f"runs={local}", *FEW, *overrides]
        config = compose.compose(own)
        if session is None or not session.serves(config):
            session = open_session(config)
        for step in steps:
            session.measure(config, folder, ["eval", "--every-checkpoint", *FEW], step=step)


def report(overrides: Sequence[str]) -> None:
    """Writes the report of the last ``specauf table`` of a profile to ``runs/reports/<profile>.html``."""
    profile, local, pages, records = _remembered(overrides)
    drawn = drawings.figures(pages, records, _on_the_way(local, records))
    path = local / "reports" / f"{profile}.html"
    _write(path, html(profile, pages, records, drawn, _variant_pages(), links=None))
    print(path)


def _remember(path: Path, page: TableSpec, asked: str, records: Sequence[RunRecord]) -> None:
    """Which page a backbone's last table was, and of which records it was made, for figures and report."""
    known = read_json(path) if path.is_file() else {}
    known = known if isinstance(known, dict) else {}
    source = str(Path(asked).resolve()) if Path(asked).is_file() else asked
    names = [f"{r.run}/records/{r.id}.json" for r in records]
    made = {"page": source, "records": names, "signature": signature.sign([page.backbone, source])}
    write_json(path, {**known, page.backbone: made})


def _remembered(overrides: Sequence[str]) -> tuple[str, Path, list[TableSpec], list[RunRecord]]:
    """Profile, local folder, the pages of its last tables and the records they were made of."""
    config = compose.compose(overrides)
    local, profile = Path(config.runs), config.profile.name
    path = local / "tables" / f"{profile}.json"
    if not path.is_file():
        raise InputError(f"no table of profile {profile} was made under {local}/ yet; specauf table profile={profile}")
    tables_ = read_json(path)
    if (
        not isinstance(tables_, dict)
        or not tables_
        or not all(
            isinstance(found, dict)
            and isinstance(found.get("page"), str)
            and isinstance(found.get("records"), list)
            and all(isinstance(name, str) for name in found["records"])
            for found in tables_.values()
        )
    ):
        raise InputError(f"{path} is damaged; delete it, specauf table profile={profile} writes it anew")
    for backbone, found in tables_.items():
        own = signature.is_own([backbone, found["page"]], found.get("signature"))
        if not own and found["page"] not in shipped_specs():
            raise InputError(
                f"{path} names the page {found['page']!r}, and that was not written by you: make the table again, "
                f"specauf table {found['page']} profile={profile}"
            )
        outside = [n for n in found["records"] if not (local / n).resolve().is_relative_to(local.resolve())]
        if outside:
            raise InputError(
                f"{path} names a record outside {local}/, {outside[0]!r}; delete it and make the table again"
            )
    pages = [page for found in tables_.values() if isinstance(page := load_spec(found["page"]), TableSpec)]
    records = [load_record(local / name) for found in tables_.values() for name in found["records"]]
    if not any(select(page, records).records for page in pages):
        raise InputError(f"{', '.join(p.name for p in pages)}: no row has a record any more; make the table again")
    return profile, local, pages, records


def _on_the_way(local: Path, records: Sequence[RunRecord]) -> list[RunRecord]:
    """What was measured of the drafters that runs kept along the way."""
    return [load_record(p) for r in records for p in sorted((local / r.run / "snapshots").glob("*/records/*.json"))]


def _tau_experiments() -> list[TableSpec]:
    return [e for e in map(load_spec, shipped_specs()) if isinstance(e, TableSpec)]


def _variant_pages() -> list[str]:
    shipped = map(load_spec, shipped_specs())
    return [_variants(e) for e in shipped if isinstance(e, CreditsSpec)]


def _draw(
    folder: Path, pages: Sequence[TableSpec], records: Sequence[RunRecord], snapshots: Sequence[RunRecord]
) -> list[drawings.Figure]:
    """Draws every figure as SVG and PNG into ``folder``."""
    drawn = drawings.figures(pages, records, snapshots)
    for figure in drawn:
        _write(folder / f"{figure.name}.svg", figure.svg())
        with atomic(folder / f"{figure.name}.png") as temporary:
            temporary.write_bytes(figure.png())
    return drawn


def render() -> None:
    """Renders every table under ``results/`` from the committed records, and the tables quoted in README.md."""
    if not (RESULTS / "records").is_dir():
        raise InputError("no results/records here; run this in a checkout of the project")
    quoted: dict[str, str] = {}
    judged: dict[str, list[Verdict]] = {}
    pages: dict[str, dict[str, str]] = {}
    measured: dict[str, dict[str, Measured]] = {}
    shipped = {name: load_spec(name) for name in shipped_specs()}
    for name, experiment in shipped.items():
        if isinstance(experiment, CreditsSpec):
            _write(RESULTS / f"{name}.md", _variants(experiment))
            print(RESULTS / f"{name}.md")
    for profile in sorted(p for p in (RESULTS / "records").iterdir() if p.is_dir()):
        records = [load_record(p) for p in sorted(profile.glob("*.json"))]
        for name, experiment in shipped.items():
            if isinstance(experiment, AblationSpec) and (profile / name).is_dir():
                _render_conditions(experiment, profile / name)
            if not isinstance(experiment, TableSpec) or not (chosen := select(experiment, records)).records:
                continue
            page = RESULTS / profile.name / f"{name}.md"
            _write(page, tables.markdown(experiment, records, links=address("..", "records", profile.name)))
            _write(page.with_suffix(".csv"), tables.to_csv(experiment, records))
            measured.setdefault(name, {})[profile.name] = chosen
            found = verdicts(chosen, experiment.definition)
            judged.setdefault(profile.name, []).extend(found)
            pages.setdefault(profile.name, {}).update(
                {v.claim: address("results", profile.name, f"{name}.md") for v in found}
            )
            print(page)
        if not any(select(e, records).records for e in _tau_experiments()):
            continue
        snapshots = [load_record(p) for p in sorted((profile / "steps").glob("*.json"))]
        drawn = _draw(RESULTS / profile.name / "figures", _tau_experiments(), records, snapshots)
        links = address("..", "records", profile.name)
        _write(RESULTS / profile.name / "figures.md", drawings.page(profile.name, drawn, links=links))
        text = html(profile.name, _tau_experiments(), records, drawn, _variant_pages(), links=links)
        _write(RESULTS / profile.name / "report.html", text)
        print(RESULTS / profile.name / "figures.md")
        print(RESULTS / profile.name / "report.html")
    quoted["claims"] = "\n".join([*matrix(judged, pages), ""])
    quoted |= {f"averages {name}": "\n".join([*averages(found), ""]) for name, found in measured.items()}
    readme = Path("README.md")
    if readme.is_file():
        text = readme.read_text("utf-8")
        for key, block in quoted.items():
            pattern = rf"(<!-- {re.escape(key)} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, block=block: m[1] + block + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if text != readme.read_text("utf-8"):
            _write(readme, text)


def _render_conditions(page: AblationSpec, folder: Path) -> None:
    """Renders a page of conditions from its records, a folder for each condition."""
    records = {c.name: [load_record(p) for p in sorted((folder / c.name).glob("*.json"))] for c in page.conditions}
    path = RESULTS / folder.parent.name / f"{page.name}.md"
    _write(path, ablation.markdown(page, records, links=address("..", "records", folder.parent.name, page.name)))
    _write(path.with_suffix(".csv"), ablation.to_csv(page, records))
    print(path)


def _variants(page: CreditsSpec) -> str:
    return tables.variants(page, {row.objective: objective_yaml(row.objective) for row in page.rows})


def _print(path: Path, text: str) -> None:
    """Writes a page and shows it."""
    _write(path, text)
    print("\n" + text)
    print(f"written: {path}", file=sys.stderr)


def _require_clean() -> None:
    state = code_state()
    if Path.cwd().resolve() != CHECKOUT.resolve():
        raise InputError(f"--publish writes into results/ of the checkout; run it in {CHECKOUT}")
    if state["commit"] is None:
        raise InputError("--publish works in a git checkout of the project only: a published record names its commit")
    if state["dirty"]:
        raise InputError(
            "--publish needs a clean tree: commit the changes to code, conf and experiments first, so that the "
            "record's commit is what ran"
        )


def _publish(record: RunRecord, local: Path, source: Path | None = None, under: str = "") -> None:
    """Copies one record; refuses one that was measured or trained with uncommitted code."""
    for what, code in (("measured", record.code), ("trained", record.training.code)):
        if code.dirty is not False:
            raise InputError(
                f"record {record.id} was {what} with uncommitted changes; move runs/{record.run} aside and make it "
                "again"
            )
    source = source or local / record.run / "records" / f"{record.id}.json"
    goal = RESULTS / "records" / record.profile / under / source.name
    if goal.is_file() and goal.read_bytes() != source.read_bytes():
        raise InputError(f"{goal} exists with other content; published records are never overwritten")
    with atomic(goal) as temporary:
        shutil.copyfile(source, temporary)


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")
