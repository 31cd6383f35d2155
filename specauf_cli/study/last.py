"""The last table of a profile and backbone: of which records it was made, for ``specauf figures`` and ``report``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.config.specs import TableSpec, load_spec, shipped_specs
from specauf_cli.errors import InputError
from specauf_cli.reporting import figures
from specauf_cli.reporting.measured import Measured, select
from specauf_cli.reporting.report import html
from specauf_cli.session import Session, open_session
from specauf_cli.store import layout, signature, trust
from specauf_cli.store.files import read_json, write_json, write_text
from specauf_cli.store.records import RunRecord, load_record
from specauf_cli.study.render import draw, shipped_credits_tables

FEW = ["evaluation.prompts=10", "evaluation.temperatures=[0.0]", "evaluation.audit=0"]
"""How drafters from the middle of training are measured for the figure of tau against the step."""


@dataclass(frozen=True)
class LastTables:
    """The last table of every backbone under one profile, with the records that it was made of."""

    profile: str
    runs: Path
    measured: list[Measured]

    @property
    def records(self) -> list[RunRecord]:
        """The records of all of them."""
        return [record for table in self.measured for record in table.records]

    def snapshots(self) -> list[RunRecord]:
        """What was measured of the drafters that the runs kept on the way."""
        return [
            load_record(path)
            for record in self.records
            for path in layout.snapshot_record_paths(self.runs / record.run)
        ]


def remember(config: Config, spec: TableSpec, source: str, records: Sequence[RunRecord]) -> None:
    """Writes down which table was the last one of its backbone; ``source``: its name or file, as it was asked for."""
    path = _path(config)
    known = read_json(path) if path.is_file() else {}
    known = known if isinstance(known, dict) else {}
    source = str(Path(source).resolve()) if Path(source).is_file() else source
    names = [f"{r.run}/records/{r.id}.json" for r in records]
    entry = {"page": source, "records": names, "signature": signature.sign([spec.backbone, source])}
    write_json(path, {**known, spec.backbone: entry})


def draw_figures(overrides: Sequence[str]) -> None:
    """Draws the last ``specauf table`` of a profile and backbone into ``runs/figures/<profile>/``.

    Drafters that were kept on the way are measured first, on a few prompts, where nobody has measured them yet.
    """
    last = _last(overrides)
    _measure_snapshots(last, overrides)
    folder = layout.figures(last.runs, last.profile)
    for figure in draw(folder, last.measured, last.snapshots()):
        print(folder / f"{figure.name}.svg")


def write_report(overrides: Sequence[str]) -> None:
    """Writes the report of the last ``specauf table`` of a profile to ``runs/reports/<profile>.html``."""
    last = _last(overrides)
    drawn = figures.figures(last.measured, last.snapshots())
    path = layout.report(last.runs, last.profile)
    write_text(path, html(last.profile, last.measured, drawn, shipped_credits_tables(), links=None))
    print(path)


def _measure_snapshots(last: LastTables, overrides: Sequence[str]) -> None:
    """Measures the kept drafters of the first seed's runs that nobody has measured yet."""
    session: Session | None = None
    first = min(r.seed for r in last.records)
    for record in sorted(last.records, key=lambda r: r.run):
        folder = last.runs / record.run
        if record.seed != first or not layout.has_snapshots(folder):
            continue
        steps = [s for s in layout.snapshot_steps(folder) if not layout.record_paths(layout.snapshot(folder, s))]
        if not steps:
            continue
        words = [*trust.overrides_of(folder, overrides), f"runs={last.runs}", *FEW, *overrides]
        config = compose.compose(words)
        if session is None or not session.serves(config):
            session = open_session(config)
        for step in steps:
            session.measure(config, folder, ["eval", "--every-checkpoint", *FEW], step=step)


def _path(config: Config) -> Path:
    return layout.last_tables(Path(config.runs), config.profile.name)


def _last(overrides: Sequence[str]) -> LastTables:
    """The last tables of the profile that ``overrides`` name.

    Errors: InputError when none was made, its file is damaged or not of this user's making, or its records are gone.
    """
    config = compose.compose(overrides)
    runs, profile, path = Path(config.runs), config.profile.name, _path(config)
    if not path.is_file():
        raise InputError(f"no table of profile {profile} was made under {runs}/ yet; specauf table profile={profile}")
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries or not all(map(_is_entry, entries.values())):
        raise InputError(f"{path} is damaged; delete it, specauf table profile={profile} writes it anew")
    for backbone, entry in entries.items():
        source = entry["page"]
        if not signature.is_own([backbone, source], entry.get("signature")) and source not in shipped_specs():
            raise InputError(
                f"{path} names the page {source!r}, and that was not written by you: make the table again, "
                f"specauf table {source} profile={profile}"
            )
        outside = [n for n in entry["records"] if not (runs / n).resolve().is_relative_to(runs.resolve())]
        if outside:
            raise InputError(
                f"{path} names a record outside {runs}/, {outside[0]!r}; delete it and make the table again"
            )
    specs = [spec for entry in entries.values() if isinstance(spec := load_spec(entry["page"]), TableSpec)]
    records = [load_record(runs / name) for entry in entries.values() for name in entry["records"]]
    measured = [table for spec in specs if (table := select(spec, records)).records]
    if not measured:
        raise InputError(f"{', '.join(s.name for s in specs)}: no row has a record any more; make the table again")
    return LastTables(profile, runs, measured)


def _is_entry(entry: Any) -> bool:
    """True for what ``remember`` writes of one backbone."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("page"), str)
        and isinstance(entry.get("records"), list)
        and all(isinstance(name, str) for name in entry["records"])
    )
