"""What a table, figure or ablation shows: the yaml of ``experiments/`` in, a checked spec out."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from specauf_cli.config.compose import read_yaml
from specauf_cli.config.groups import file_of, folder, groups
from specauf_cli.config.overrides import key_of
from specauf_cli.config.schema import CLOSED, Float, Positive
from specauf_cli.config.settings import validated
from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Definition


@dataclass(frozen=True, config=CLOSED)
class Row:
    """One line of a table: an objective, named as in ``conf/objective``."""

    objective: str
    title: str


@dataclass(frozen=True, config=CLOSED)
class Paper:
    """Reference values: ``values[temperature][objective]`` lists the columns in order, then the average."""

    source: str
    values: dict[str, dict[str, tuple[Annotated[Float, Field(ge=0)], ...]]]


@dataclass(frozen=True, config=CLOSED)
class TauSpec:
    """What every page of tau says.

    ``columns`` are benchmark columns in the paper's order; differences are taken to the objective ``baseline``;
    ``definition`` is that of tau; ``margin`` (tokens) bounds a difference that counts as none.
    """

    name: str
    title: str
    backbone: str
    baseline: str
    definition: Definition
    margin: Positive
    columns: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, config=CLOSED)
class TableSpec(TauSpec):
    """``experiments/*.yaml``: one table of tau beside the paper's."""

    paper: Paper


@dataclass(frozen=True, config=CLOSED)
class CreditsSpec:
    """``experiments/*.yaml`` of kind ``variants``; ``paper[objective]``: its base branch, final branch and decay
    there."""

    name: str
    title: str
    backbone: str
    rows: tuple[Row, ...]
    source: str
    paper: dict[str, tuple[str, str, str]]


@dataclass(frozen=True, config=CLOSED)
class Condition:
    """One row of a ``AblationSpec`` page: ``factor`` and its ``value`` as shown, and what is changed to get there.

    ``settings`` are overrides; ``gamma`` is that of the rows whose credit decays; ``budget`` multiplies the profile's
    steps.
    """

    name: str
    factor: str
    value: str
    settings: tuple[str, ...] = ()
    gamma: Positive | None = None
    budget: Positive | None = None


@dataclass(frozen=True, config=CLOSED)
class AblationSpec(TauSpec):
    """``experiments/*.yaml`` of kind ``conditions``: under which of them AUF's claims hold.

    Every condition trains all of the rows; ``settings`` are shared by all conditions.
    """

    settings: tuple[str, ...]
    conditions: tuple[Condition, ...]

    @property
    def experiment(self) -> TableSpec:
        """The table of any one of the conditions; the paper has none."""
        shared = {f.name: getattr(self, f.name) for f in fields(TauSpec)}
        return TableSpec(**shared, paper=Paper("", {}))


Spec = TableSpec | CreditsSpec | AblationSpec


def load_spec(name: str) -> Spec:
    """An experiment by file path, or by its name among the shipped ones. Errors: InputError."""
    known = {f.stem: f for f in sorted(folder("experiments").glob("*.yaml"))}
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else known.get(name)
    if path is None or not path.is_file():
        raise InputError(f"no experiment {name!r}; shipped: {', '.join(known)}.{nearest(Path(name).stem, known)}")
    values = read_yaml(path)
    kinds = {"tau": TableSpec, "variants": CreditsSpec, "conditions": AblationSpec}
    kind = values.pop("kind", "tau")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: kind {kind!r} is none of {', '.join(kinds)}.{nearest(str(kind), kinds)}")
    try:
        found = cast(Spec, validated(kinds[kind], values))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if found.name != path.stem:
        raise InputError(
            f"{path}: name: {found.name} must be the name of the file, {path.stem}; tables are written under it"
        )
    names = [row.objective for row in found.rows]
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated or not names:
        raise InputError(f"{path}: {f'objective {repeated!r} has two rows' if repeated else 'it has no rows'}")
    choices = groups()
    named = [
        ("backbone", found.backbone, choices["backbone"]),
        *(("objective", n, choices["objective"]) for n in names),
    ]
    if not isinstance(found, CreditsSpec):
        columns = [b for b in choices["benchmark"] if b != "all" and not b.startswith("offline")]  # as the paper's
        named += [("column", c, columns) for c in found.columns]
        named += [("baseline", found.baseline, names)]
    if isinstance(found, TableSpec):
        named += [("objective of paper.values", o, names) for block in found.paper.values.values() for o in block]
    if isinstance(found, CreditsSpec):
        named += [("objective of paper", o, names) for o in found.paper]
    if isinstance(found, AblationSpec):
        named += [("objective that a claim needs,", o, names) for o in ("auf", "decay", "auf_decay")]
    for what, word, valid in named:
        if word not in valid:
            raise InputError(f"{path}: {what} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    for name_ in names:
        _check_row(name_, found.backbone, str(path))
    if isinstance(found, TableSpec):
        _check_cells(found, str(path))
    if isinstance(found, AblationSpec):
        _check_conditions(found, str(path))
    return found


def _check_row(objective: str, backbone: str, path: str) -> None:
    """InputError for a row whose records would carry another name, or that the backbone has no use for."""
    content = objective_yaml(objective)
    kind = read_yaml(file_of("backbone", backbone)).get("like") or backbone
    if kind not in content["backbones"]:
        alias = content.get("aliases", {}).get(kind)
        means = f"is called {alias} on {backbone}; write objective: {alias}" if alias else f"does not fit {backbone}"
        raise InputError(f"{path}: objective {objective!r} {means}")


def _check_cells(found: TableSpec, path: str) -> None:
    for temperature, block in found.paper.values.items():
        if not re.fullmatch(r"\d+(\.\d+)?", temperature) or f"{float(temperature):g}" != temperature:
            raise InputError(f"{path}: paper.values.{temperature}: a temperature is written as in '0', '1' or '0.7'")
        for name, cells in block.items():
            if len(cells) != len(found.columns) + 1:
                raise InputError(
                    f"{path}: paper.values.{temperature}.{name} has {len(cells)} numbers; {len(found.columns) + 1} are "
                    "needed (columns and average)"
                )


def _check_conditions(found: AblationSpec, path: str) -> None:
    """InputError for names that cannot be folders or that two share, settings that a row has already, a gamma or budget
    that cannot be."""
    for word in [*found.settings, *(w for c in found.conditions for w in c.settings)]:
        if (key := key_of(word)) in ("backbone", "objective", "seed", "profile", "runs"):
            raise InputError(f"{path}: settings {word!r}: the page's rows, --seeds and the command line choose {key}")
    names = [c.name for c in found.conditions]
    for condition in found.conditions:
        where = f"{path}: condition {condition.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", condition.name):
            raise InputError(
                f"{where}: a name is letters, digits, '_', '.' and '-'; its records lie in a folder of that name"
            )
        if names.count(condition.name) > 1:
            raise InputError(f"{where} is there twice")
    if not names:
        raise InputError(f"{path}: it has no conditions")
    if not found.columns:
        raise InputError(f"{path}: it has no columns")


def objective_yaml(name: str) -> dict[str, Any]:
    """The plain content of ``conf/objective/NAME.yaml``."""
    return read_yaml(file_of("objective", name))


def shipped_specs() -> list[str]:
    """Names of the experiments that come with the tool."""
    return sorted(f.stem for f in folder("experiments").glob("*.yaml"))


def condition_overrides(condition: Condition, objective: str, steps: int | None) -> list[str]:
    """What makes a drafter of ``objective`` one of a condition; ``steps`` are the profile's own.

    Errors: InputError where a budget is to be multiplied and the profile counts no steps.
    """
    found = list(condition.settings)
    content = objective_yaml(objective)
    if condition.gamma is not None:
        branches = [b for b in ("base", "final") if "gamma" in (content.get(b) or {})]
        found += [f"objective.{b}.gamma={condition.gamma:g}" for b in branches]
    if condition.budget is not None:
        if steps is None:
            raise InputError(
                f"condition {condition.name!r} multiplies trainer.steps, which is null; give trainer.steps=N"
            )
        found.append(f"trainer.steps={max(1, round(condition.budget * steps))}")
    return found
