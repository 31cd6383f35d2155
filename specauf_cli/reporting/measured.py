"""The records of one table as samples: what tables and claims are computed from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from specauf_cli.config.specs import TableSpec
from specauf_cli.errors import InputError
from specauf_cli.evaluation.statistics import Sample, alpha_sample, common_alpha_samples, sample
from specauf_cli.reporting.escape import cell, link, path
from specauf_cli.reporting.labels import labels
from specauf_cli.store.records import RunRecord, settings_of
from specauf_cli.types import Trace


@dataclass(frozen=True, eq=False)  # compared by identity, so that its samples can be kept
class Measured:
    """The chosen records of one experiment and one profile, by objective in the order of its rows."""

    experiment: TableSpec
    records: tuple[RunRecord, ...]

    @property
    def temperatures(self) -> list[float]:
        """Every temperature that any record has, ascending."""
        return sorted({b.temperature for r in self.records for b in r.benchmarks})

    def of(self, objective: str) -> list[RunRecord]:
        """The records of one objective, one per seed."""
        return [r for r in self.records if r.objective == objective]

    def traces(self, objective: str, column: str, temperature: float) -> dict[int, tuple[Trace, ...]]:
        """Traces per seed; empty unless every seed of the objective has this benchmark."""
        runs = self.of(objective)
        by_seed = {
            r.seed: b.traces for r in runs for b in r.benchmarks if b.column == column and b.temperature == temperature
        }
        return by_seed if len(by_seed) == len(runs) else {}

    def taus(self, objective: str, temperature: float, definition: str) -> dict[str, Sample]:
        """Samples of tau by column, for the columns that are complete."""
        return dict(_taus(self, objective, temperature, definition))

    def alphas(self, objective: str, temperature: float, k: int, *, given: int | None = None) -> dict[str, Sample]:
        """Samples of conditional acceptance alpha_k by column, with ``given`` = 0 of P(A >= k). Errors: InputError
        where no round got to depth k - 1."""
        by_column = {c: self.traces(objective, c, temperature) for c in self.experiment.columns}
        return {c: alpha_sample(runs, k, given=given) for c, runs in by_column.items() if runs}

    def common_alphas(self, a: str, b: str, temperature: float, k: int) -> tuple[dict[str, Sample], dict[str, Sample]]:
        """Samples of alpha_k of two objectives on the rounds that both begin and in which both accept k - 1 tokens, by
        column. Errors: InputError where no such round is left."""
        ours, theirs = dict[str, Sample](), dict[str, Sample]()
        for column in self.experiment.columns:
            runs = [self.traces(name, column, temperature) for name in (a, b)]
            if all(runs):
                ours[column], theirs[column] = common_alpha_samples(runs[0], runs[1], k)
        return ours, theirs

    def accuracy(self, objective: str) -> Sample | None:
        """Common-mask accuracy on held-out conversations as a ratio of sums per conversation."""
        runs = self.of(objective)
        if not runs:
            return None
        # A conversation is one cluster; a template that rewrites earlier turns makes several examples of one.
        place, ids = pd.factorize(np.array(runs[0].heldout.ids, dtype=object))
        top = np.array([np.bincount(place, r.heldout.id_correct, len(ids)) for r in runs])
        bottom = np.array([np.bincount(place, r.heldout.id_valid, len(ids)) for r in runs])
        return Sample(tuple(r.seed for r in runs), tuple(map(str, ids)), top, bottom)


@lru_cache(maxsize=4096)  # tables, claims and figures ask for the same ones
def _taus(measured: Measured, objective: str, temperature: float, definition: str) -> dict[str, Sample]:
    """``Measured.taus``."""
    by_column = {c: measured.traces(objective, c, temperature) for c in measured.experiment.columns}
    return {c: sample(runs, definition) for c, runs in by_column.items() if runs}


def select(experiment: TableSpec, records: Sequence[RunRecord]) -> Measured:
    """The records an experiment shows: its backbone and objectives, the newest of each run.

    Errors: InputError when they come from several profiles, one objective and seed was trained in two ways, or one seed
    with two targets or on two data sets.
    """
    names = [row.objective for row in experiment.rows]
    chosen: dict[str, RunRecord] = {}
    for record in sorted(records, key=lambda r: (r.written, r.id)):
        if record.backbone == experiment.backbone and record.objective in names:
            chosen[record.run] = record
    profiles = sorted({r.profile for r in chosen.values()})
    if len(profiles) > 1:
        raise InputError(f"{experiment.name}: records of several profiles ({', '.join(profiles)}) cannot share a table")
    seen: dict[tuple[str, int], str] = {}
    for run, record in chosen.items():
        other = seen.setdefault((record.objective, record.seed), run)
        if other != run:
            both = [chosen[other], record]
            one, two = (
                f"{r.run} ({label})" if label else r.run
                for r, label in zip(both, labels([r.config for r in both]), strict=True)
            )
            raise InputError(
                f"{experiment.name}: {one} and {two} are both {record.objective} with seed {record.seed}; keep one"
            )
    for name in names:
        _check_one_training(experiment, [r for r in chosen.values() if r.objective == name])
    _check_same_conditions(experiment, list(chosen.values()))
    check_matched(experiment.name, list(chosen.values()))
    return Measured(experiment, tuple(sorted(chosen.values(), key=lambda r: (names.index(r.objective), r.seed))))


def _check_one_training(experiment: TableSpec, records: Sequence[RunRecord]) -> None:
    """Requires that the seeds of a row differ in nothing but the seed, else their mean is not a mean over seeds."""
    apart = labels([r.config for r in records])
    differ = [f"{r.run} ({label})" for r, label in zip(records, apart, strict=True) if label]
    if differ:
        raise InputError(f"{experiment.name}: {' and '.join(differ)} cannot share a row; keep those trained one way")


def _check_same_conditions(experiment: TableSpec, records: Sequence[RunRecord]) -> None:
    """Requires the same prompts per column, the same settings and the same held-out conversations everywhere."""
    asked: dict[tuple[str, float], tuple[str, RunRecord]] = {}
    for record in records:
        columns = [(b.column, b.temperature) for b in record.benchmarks]
        twice = next((c for c in columns if columns.count(c) > 1), None)
        if twice is not None:
            raise InputError(
                f"{experiment.name}: {record.id} has two benchmarks in column {twice[0]}; evaluate them apart"
            )
        for b in record.benchmarks:
            known, other = asked.setdefault((b.column, b.temperature), (b.prompts_sha256, record))
            if known != b.prompts_sha256:
                raise InputError(
                    f"{experiment.name}: {other.run} and {record.run} were measured on different prompts of {b.title}"
                )
        for what, mine, theirs in (
            ("evaluation settings", settings_of(record), settings_of(records[0])),
            ("held-out conversations", record.heldout.ids, records[0].heldout.ids),
        ):
            if mine != theirs:
                raise InputError(
                    f"{experiment.name}: {records[0].run} and {record.run} were measured with different {what}; "
                    "evaluate them alike"
                )


def check_matched(page: str, records: Sequence[RunRecord]) -> None:
    """Requires that drafters of one seed had the same target and training data, else more than the objective differs.

    Another seed may have a target with other weights: rows are compared within a seed. Errors: InputError.
    """
    first: dict[int, RunRecord] = {}
    for record in records:
        other = first.setdefault(record.seed, record)
        for name, called in (("target", "targets"), ("data", "training data")):
            if record.inputs.get(name) != other.inputs.get(name):
                both = " and ".join(f"{r.run} ({r.inputs.get(name, 'none')[:12]})" for r in (other, record))
                raise InputError(f"{page}: {both} have different {called} with seed {record.seed}; train them alike")


def common(a: Mapping[str, Sample], b: Mapping[str, Sample]) -> list[str]:
    """Columns that both have, in the order of ``a``."""
    return [c for c in a if c in b]


def sources(records: Sequence[RunRecord], links: str) -> str:
    """Markdown that names the records by objective, each a link to its file; ``links``: relative path to the profile's
    records."""
    several = len({r.backbone for r in records}) > 1
    record_links: dict[str, list[str]] = {}
    for r in records:
        name = f"{r.config['backbone']['title']} {r.title}" if several else r.title
        label, place = (f"s{r.seed}", "") if r.step is None else (f"s{r.seed} step {r.step}", "steps/")
        record_links.setdefault(name, []).append(link(label, f"{links}/{place}{path(f'{r.id}.json')}"))
    return " · ".join(f"{cell(name)} {' '.join(each)}" for name, each in record_links.items())


def seeds_of(conditions: Iterable[Sequence[RunRecord]]) -> str:
    """Seeds of each drafter under each condition: ``5 seeds``, or ``1 or 3 seeds``; empty without a record."""
    each = (Counter((r.backbone, r.objective) for r in records).values() for records in conditions)
    counts = sorted({count for counts in each for count in counts})
    return f"{' or '.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''}" if counts else ""
