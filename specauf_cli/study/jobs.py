"""The drafters that a table is made of: one job each, composed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.config.specs import (
    BaselineRow,
    BaselinesSpec,
    ConditionsSpec,
    CreditsSpec,
    DraftersSpec,
    Row,
    Spec,
    TableSpec,
    condition_overrides,
)
from specauf_cli.errors import InputError, nearest


@dataclass(frozen=True)
class Job:
    """One drafter of a table: the row it belongs to, and what it is trained with.

    ``spec`` names the table, ``condition`` the condition under which it is trained (None where the spec has none).
    ``settings`` are all other overrides, many of them shared with other rows; ``config`` is composed from ``words`` and
    takes no part in comparisons.
    """

    spec: str
    condition: str | None
    backbone: str
    objective: str
    seed: int
    settings: tuple[str, ...]
    config: Config = field(compare=False, repr=False)

    @classmethod
    def composed(
        cls, spec: str, condition: str | None, backbone: str, objective: str, seed: int, settings: Sequence[str]
    ) -> "Job":
        """The job with its configuration. Errors: InputError for settings that cannot be composed."""
        config = compose.compose(_words(backbone, objective, seed, settings))
        return cls(spec, condition, backbone, objective, seed, tuple(settings), config)

    @property
    def words(self) -> list[str]:
        """All overrides of the job, for worker processes, launchers and the ``run.json`` of its run."""
        return _words(self.backbone, self.objective, self.seed, self.settings)

    @property
    def table(self) -> str:
        """The table of tau it belongs to: that of its spec, or of its condition, as in ``robustness/block-8``."""
        return self.spec if self.condition is None else f"{self.spec}/{self.condition}"


def _words(backbone: str, objective: str, seed: int, settings: Sequence[str]) -> list[str]:
    return [*settings, f"backbone={backbone}", f"objective={objective}", f"seed={seed}"]


def jobs_of(
    specs: Sequence[Spec],
    overrides: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None,
    only: Sequence[str] | None = None,
    conditions: Sequence[str] | None = None,
) -> list[Job]:
    """The jobs of some tables, seed by seed; ``only``: of these rows, by the name of their objective in records;
    ``conditions``: under these.

    ``steps`` are the profile's own, of which a condition may take a multiple. Errors: InputError for a row or a
    condition that no table has, and for whatever is wrong with the settings of any job.
    """
    if only is not None:
        _check_rows(only, specs)
    if conditions is not None:
        _check_conditions(conditions, specs)
    return [
        Job.composed(spec.name, condition, backbone, row.objective, seed, settings)
        for seed in seeds
        for spec in specs
        for condition, backbone, row, settings in _rows(spec, overrides, steps)
        if (only is None or row.recorded_as in only) and (conditions is None or condition in conditions)
    ]


def _rows(spec: Spec, overrides: Sequence[str], steps: int | None) -> list[tuple[str | None, str, Row, list[str]]]:
    """Condition, backbone, row and settings of every drafter that a table is made of."""
    if isinstance(spec, BaselinesSpec):
        return [(None, str(row.backbone), row, list(overrides)) for row in spec.trained]
    if isinstance(spec, TableSpec):
        return [(None, spec.backbone, row, list(overrides)) for row in spec.rows]
    if isinstance(spec, ConditionsSpec):
        return [
            (
                condition.name,
                backbone,
                row,
                [
                    *spec.settings,
                    *overrides,
                    *condition_overrides(condition, row.objective, steps),
                    *(spec.settings_of(backbone) if isinstance(spec, DraftersSpec) else row.overrides),
                ],
            )
            for condition in spec.conditions
            for row in spec.rows_under(condition)
            for backbone in [str(row.backbone) if isinstance(row, BaselineRow) else _backbone(spec)]
        ]
    return []  # a table of credits is read from the yaml files of its objectives


def _backbone(spec: ConditionsSpec) -> str:
    """The one backbone of a page whose rows name none."""
    assert not isinstance(spec, DraftersSpec)
    return spec.backbone


def _check_rows(only: Sequence[str], specs: Sequence[Spec]) -> None:
    """InputError for a name of ``--only`` that is a row of no table."""
    trained = [spec for spec in specs if not isinstance(spec, CreditsSpec)]
    rows = list(dict.fromkeys(row.recorded_as for spec in trained for row in spec.rows))
    if not rows:
        raise InputError(
            f"--only {','.join(only)}: nothing is trained for {', '.join(s.name for s in specs)}; leave it out"
        )
    unknown = next((name for name in only if name not in rows), None)
    if unknown is not None:
        raise InputError(f"--only: {unknown!r} is no row here; valid: {', '.join(rows)}.{nearest(unknown, rows)}")


def _check_conditions(conditions: Sequence[str], specs: Sequence[Spec]) -> None:
    """InputError for a name of ``--conditions`` that is a condition of no table."""
    known = [condition.name for spec in specs if isinstance(spec, ConditionsSpec) for condition in spec.conditions]
    unknown = next((name for name in conditions if name not in known), None)
    if unknown is not None:
        valid = f"valid: {', '.join(known)}.{nearest(unknown, known)}" if known else "these tables have none"
        raise InputError(f"--conditions: {unknown!r} is no condition here; {valid}")
