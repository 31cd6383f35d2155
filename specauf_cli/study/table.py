"""Whole tables: trains and measures the drafters that they lack, writes them, publishes their records."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.config.specs import (
    AblationSpec,
    BaselinesSpec,
    ComparisonSpec,
    ConditionsSpec,
    CreditsSpec,
    DraftersSpec,
    Spec,
    TableSpec,
    load_spec,
    shipped_specs,
)
from specauf_cli.errors import InputError
from specauf_cli.reporting import ablation, baselines, comparison, drafters, tables
from specauf_cli.reporting.measured import select
from specauf_cli.runtime import ranks
from specauf_cli.store import layout
from specauf_cli.store.files import write_text
from specauf_cli.store.records import RunRecord
from specauf_cli.study.baselines import measure_lookup
from specauf_cli.study.executors import runner
from specauf_cli.study.jobs import Job, jobs_of
from specauf_cli.study.last import remember
from specauf_cli.study.publish import publish_baselines, publish_records, require_clean
from specauf_cli.study.render import credits_table, render


def run(
    names: Sequence[str],
    overrides: Sequence[str],
    seeds: Sequence[int],
    *,
    publish: bool,
    launcher: str | None = None,
    only: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
) -> None:
    """Trains and measures every missing job of some tables, prints and writes them.

    ``only``: of these rows; ``conditions``: under these conditions.

    ``names`` are files or shipped names; none: the paper's tables. A job that fails leaves the others running; the next
    call tries it again. Errors: InputError naming the failed jobs and their reasons, at the end; before anything is
    trained, when ``publish`` is asked for on a tree with uncommitted changes.
    """
    if ranks.WORLD > 1:
        raise InputError("torchrun shares one training or evaluation; a table has workers=N and --launcher instead")
    if publish:
        require_clean()
    specs = _specs(names)
    sources = dict(zip(specs, names or specs, strict=True))
    config = compose.compose(overrides)
    for spec in specs.values():
        if isinstance(spec, CreditsSpec):
            _show(layout.tables(Path(config.runs)) / f"{spec.name}.md", credits_table(spec))
    jobs = jobs_of(list(specs.values()), overrides, seeds, steps=config.trainer.steps, only=only, conditions=conditions)
    lookups = {
        name: measure_lookup(config, spec, ["table", name, "--only", "lookup", *overrides])
        for name, spec in specs.items()
        if isinstance(spec, BaselinesSpec)
    }
    records: dict[Job, RunRecord] = {}
    failures: list[str] = []
    remaining = Counter(job.spec for job in jobs)
    for job, outcome in runner(config, launcher, len(jobs)).run(jobs):
        if isinstance(outcome, str):
            failures.append(f"{job.table}, {job.config.objective.name}, seed {job.seed}: {outcome}")
            print(f"specauf: {failures[-1]}; the other jobs go on", file=sys.stderr)
        else:
            records[job] = outcome
        remaining[job.spec] -= 1
        if not remaining[job.spec]:  # written as soon as it is complete, other tables may take a while
            measured = {other: records[other] for other in jobs if other.spec == job.spec and other in records}
            _write(specs[job.spec], sources[job.spec], config, measured)
    for name, lookup in lookups.items():
        spec = specs[name]
        assert isinstance(spec, BaselinesSpec)
        path = layout.tables(Path(config.runs)) / f"{config.profile.name}-{name}.md"
        _show(path, baselines.markdown(spec, lookup, [r for job, r in records.items() if job.spec == name]))
    if failures:
        raise InputError(f"{len(failures)} jobs failed, the same command tries them again: {' | '.join(failures)}")
    if publish:
        publish_records({job: r for job, r in records.items() if job.spec not in lookups}, Path(config.runs))
        for name, lookup in lookups.items():
            drafters_of_page = [record for job, record in records.items() if job.spec == name]
            publish_baselines(name, lookup, drafters_of_page, Path(config.runs))
        render()


def _specs(names: Sequence[str]) -> dict[str, Spec]:
    """The tables asked for, by name and in order; without names those of the paper.

    Errors: InputError for an unknown one, and for two of the same name.
    """
    specs = [load_spec(name) for name in names or shipped_specs()]
    if not names:
        specs = [spec for spec in specs if not isinstance(spec, ConditionsSpec | BaselinesSpec)]
    repeated = next((name for name, count in Counter(spec.name for spec in specs).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"two of the pages asked for are called {repeated!r}, and would be written to the same file")
    return {spec.name: spec for spec in specs}


def _write(spec: Spec, source: str, config: Config, records: Mapping[Job, RunRecord]) -> None:
    """Writes and prints one table from the records of its jobs, as far as there are any; ``source``: as it was asked
    for."""
    if not records:
        return
    path = layout.tables(Path(config.runs)) / f"{config.profile.name}-{spec.name}.md"
    if isinstance(spec, AblationSpec):
        by_condition = _by_condition(spec, records)
        write_text(path.with_suffix(".csv"), ablation.to_csv(spec, by_condition))
        _show(path, ablation.markdown(spec, by_condition))
    elif isinstance(spec, ComparisonSpec):
        compared = comparison.compare(spec, _by_condition(spec, records))
        write_text(path.with_suffix(".csv"), comparison.to_csv(compared))
        _show(path, comparison.markdown(compared))
    elif isinstance(spec, DraftersSpec):
        side_by_side = drafters.compare(spec, _by_condition(spec, records))
        write_text(path.with_suffix(".csv"), drafters.to_csv(side_by_side))
        _show(path, drafters.markdown(side_by_side))
    elif isinstance(spec, TableSpec):
        measured = select(spec, list(records.values()))
        write_text(path.with_suffix(".csv"), tables.to_csv(measured))
        _show(path, tables.markdown(measured))
        remember(config, spec, source, measured.records)


def _by_condition(spec: ConditionsSpec, records: Mapping[Job, RunRecord]) -> dict[str, list[RunRecord]]:
    return {
        condition.name: [record for job, record in records.items() if job.condition == condition.name]
        for condition in spec.conditions
    }


def _show(path: Path, text: str) -> None:
    """Writes a table and prints it."""
    write_text(path, text)
    print("\n" + text)
    print(f"written: {path}", file=sys.stderr)
