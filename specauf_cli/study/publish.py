"""Records of a table copied into ``results/``, where they are committed and never overwritten."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from specauf_cli.config import groups
from specauf_cli.errors import InputError
from specauf_cli.store import layout
from specauf_cli.store.files import atomic
from specauf_cli.store.lookup import LookupRecord
from specauf_cli.store.provenance import code_state
from specauf_cli.store.records import RunRecord, load_record
from specauf_cli.study.jobs import Job
from specauf_cli.study.render import LOOKUPS, RECORDS

CHECKOUT = groups.folder("conf").parent


def require_clean() -> None:
    """Errors: InputError outside the checkout, without git, and on a tree with uncommitted changes."""
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


def publish_records(records: Mapping[Job, RunRecord], runs: Path) -> None:
    """Copies the records of some jobs, those of a page of conditions into a folder for each of them.

    Of other tables also those of the drafters that were kept on the way, into ``steps/``. Errors: InputError for one
    that was made with uncommitted code, or that is published already with other content.
    """
    for job, record in records.items():
        run = runs / record.run
        path = layout.record_path(run, record.id)
        if job.condition is not None:
            _copy(record, path, RECORDS / record.profile / job.table)
            continue
        _copy(record, path, RECORDS / record.profile)
        for path in layout.snapshot_record_paths(run):
            _copy(load_record(path), path, RECORDS / record.profile / "steps")


def publish_baselines(name: str, lookup: LookupRecord, drafters: Sequence[RunRecord], runs: Path) -> None:
    """Copies the record of prompt lookup, and those of the drafters beside it into a folder of the page ``name``.

    Drafters that the tables have published already stay there. Errors: InputError for a record that was made with
    uncommitted code, or that is published already with other content.
    """
    if lookup.code.dirty is not False:
        raise InputError(
            f"record {lookup.id} of prompt lookup was measured with uncommitted changes; delete it in "
            f"{layout.lookup(runs)} and make it again"
        )
    _copy_file(layout.lookup(runs) / f"{lookup.id}.json", LOOKUPS / lookup.profile)
    if all((RECORDS / record.profile / f"{record.id}.json").is_file() for record in drafters):
        return
    for record in drafters:
        _copy(record, layout.record_path(runs / record.run, record.id), RECORDS / record.profile / name)


def _copy(record: RunRecord, path: Path, folder: Path) -> None:
    """Copies one record from ``path`` into ``folder``; refuses one that was measured or trained with uncommitted
    code."""
    for what, code in (("measured", record.code), ("trained", record.training.code)):
        if code.dirty is not False:
            raise InputError(
                f"record {record.id} was {what} with uncommitted changes; move runs/{record.run} aside and make it "
                "again"
            )
    _copy_file(path, folder)


def _copy_file(path: Path, folder: Path) -> None:
    published = folder / path.name
    if published.is_file() and published.read_bytes() != path.read_bytes():
        raise InputError(f"{published} exists with other content; published records are never overwritten")
    with atomic(published) as temporary:
        shutil.copyfile(path, temporary)
