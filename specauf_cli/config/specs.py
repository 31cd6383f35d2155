"""What a table, figure or ablation shows: the yaml of ``experiments/`` in, a checked spec out."""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from specauf_cli.config.compose import quoted, read_yaml
from specauf_cli.config.groups import file_of, folder, groups
from specauf_cli.config.overrides import key_of, value_of
from specauf_cli.config.schema import CLOSED, Count, Float, Positive
from specauf_cli.config.settings import validated
from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Definition


@dataclass(frozen=True, config=CLOSED)
class Row:
    """One line of a table: an objective, named as in ``conf/objective``."""

    objective: str
    title: str

    @property
    def recorded_as(self) -> str:
        """The name of the objective in the records of this row."""
        return self.objective

    @property
    def overrides(self) -> list[str]:
        """What is changed of the objective, as overrides."""
        return []


@dataclass(frozen=True, config=CLOSED)
class VariantRow(Row):
    """One line of a ``ComparisonSpec`` page: an objective, and what is changed of it.

    ``name`` tells its runs and records from those of the objective itself (None: it is the objective itself);
    ``settings`` are overrides; ``conditions`` names those under which it is trained (None: all of them); rows of one
    ``group`` are shown as such.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")] | None = None
    settings: tuple[str, ...] = ()
    conditions: tuple[str, ...] | None = None
    group: str = ""

    @property
    def recorded_as(self) -> str:
        """The name of the objective in the records of this row."""
        return self.name or self.objective

    @property
    def overrides(self) -> list[str]:
        """What is changed of the objective, its name and title among it, as overrides."""
        if self.recorded_as == self.objective:
            return list(self.settings)
        title = quoted(self.title, '"')
        return [*self.settings, f"objective.name={self.name}", f"objective.title={title}"]


@dataclass(frozen=True, config=CLOSED)
class Paper:
    """Reference values: ``values[temperature][objective]`` lists the columns in order, then the average."""

    source: str
    values: dict[str, dict[str, tuple[Annotated[Float, Field(ge=0)], ...]]]


NO_PAPER = Paper("", {})
"""Of pages that the paper does not have."""


@dataclass(frozen=True, config=CLOSED)
class PageSpec:
    """What every page of tau says.

    ``columns`` are benchmark columns in the paper's order; ``definition`` is that of tau; ``margin`` (tokens) bounds a
    difference that counts as none.
    """

    name: str
    title: str
    definition: Definition
    margin: Positive
    columns: dict[str, str]


@dataclass(frozen=True, config=CLOSED)
class TauSpec(PageSpec):
    """A page of one backbone; differences are taken to the objective ``baseline``."""

    backbone: str
    baseline: str
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
    """One condition of a page: ``factor`` and its ``value`` as shown, and what is changed to get there.

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
        return _table_without_paper(self, self.rows, backbone=self.backbone, baseline=self.baseline)

    def rows_under(self, condition: Condition) -> tuple[Row, ...]:
        """The rows that are trained under a condition: all of them."""
        return self.rows


@dataclass(frozen=True, config=CLOSED)
class ComparisonSpec(TauSpec):
    """``experiments/*.yaml`` of kind ``comparison``: many objectives, and variants of them, under a few conditions.

    ``settings`` are shared by all rows and conditions. ``claims`` names the conditions whose verdicts on C8 and C9 may
    stand on the front page, which takes the first whose rows are measured; without any the page judges no claim.
    """

    rows: tuple[VariantRow, ...]
    settings: tuple[str, ...]
    conditions: tuple[Condition, ...]
    claims: tuple[str, ...] = ()

    def rows_under(self, condition: Condition) -> tuple[VariantRow, ...]:
        """The rows that are trained under a condition."""
        return tuple(row for row in self.rows if row.conditions is None or condition.name in row.conditions)

    def experiment(self, condition: Condition) -> TableSpec:
        """The table of one condition; the paper has none."""
        rows = [Row(row.recorded_as, row.title) for row in self.rows_under(condition)]
        return _table_without_paper(self, rows, backbone=self.backbone, baseline=self.baseline)

    @property
    def gammas(self) -> dict[str, float]:
        """gamma of the rows that are decay with one gamma or another and nothing else changed, by their names."""
        rows = [row for row in self.rows if row.objective == "decay"]
        rows = [row for row in rows if all(key_of(word) == "objective.base.gamma" for word in row.settings)]
        texts = [[str(objective_yaml("decay")["base"]["gamma"]), *map(value_of, row.settings)][-1] for row in rows]
        return {row.recorded_as: float(text) for row, text in zip(rows, texts, strict=True)}


UNTRAINED = ("plain", "lookup")
"""Rows of a ``BaselinesSpec`` that have no drafter: plain decoding and prompt lookup."""


@dataclass(frozen=True, config=CLOSED)
class BaselineRow(Row):
    """One line of a ``BaselinesSpec`` page: ``plain``, ``lookup``, or an objective with its ``backbone``."""

    backbone: str | None = None


@dataclass(frozen=True, config=CLOSED)
class LookupSpec:
    """Prompt lookup as vLLM's ``prompt_lookup_max``, ``prompt_lookup_min`` and ``num_speculative_tokens``."""

    longest: Count
    shortest: Count
    proposals: Count


@dataclass(frozen=True, config=CLOSED)
class BaselinesSpec:
    """``experiments/*.yaml`` of kind ``baselines``: what needs no training beside drafters of one or more backbones."""

    name: str
    title: str
    definition: Definition
    lookup: LookupSpec
    columns: dict[str, str]
    rows: tuple[BaselineRow, ...]

    @property
    def trained(self) -> tuple[BaselineRow, ...]:
        """The rows that have a drafter."""
        return tuple(row for row in self.rows if row.objective not in UNTRAINED)

    def experiment(self, backbone: str) -> TableSpec:
        """The table of the drafters of one backbone; the paper has none."""
        rows = tuple(Row(row.objective, row.title) for row in self.trained if row.backbone == backbone)
        return TableSpec(
            name=self.name,
            title=self.title,
            backbone=backbone,
            baseline=rows[0].objective,
            definition=self.definition,
            margin=1.0,  # no difference is judged here
            columns=self.columns,
            rows=rows,
            paper=NO_PAPER,
        )


@dataclass(frozen=True, config=CLOSED)
class DrafterRow:
    """One drafter of a ``DraftersSpec``: a backbone with its ``baseline`` objective and the ``rivals`` of that.

    ``prefix``: whether a slot is given the tokens before it; ``settings`` are overrides.
    """

    backbone: str
    title: str
    prefix: bool
    baseline: str
    rivals: tuple[str, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, config=CLOSED)
class DraftersSpec(PageSpec):
    """``experiments/*.yaml`` of kind ``drafters``: the same objectives on different drafters, under a few conditions.

    ``claim``: the condition that the front page quotes.
    """

    settings: tuple[str, ...]
    conditions: tuple[Condition, ...]
    drafters: tuple[DrafterRow, ...]
    claim: str

    @property
    def rows(self) -> tuple[BaselineRow, ...]:
        """An objective of each drafter, the baseline first."""
        return tuple(
            BaselineRow(objective, str(objective_yaml(objective)["title"]), drafter.backbone)
            for drafter in self.drafters
            for objective in (drafter.baseline, *drafter.rivals)
        )

    def rows_under(self, condition: Condition) -> tuple[BaselineRow, ...]:
        """The rows that are trained under a condition: all of them."""
        return self.rows

    def settings_of(self, backbone: str) -> tuple[str, ...]:
        """What is changed of a drafter."""
        return next(drafter.settings for drafter in self.drafters if drafter.backbone == backbone)

    def experiment(self, drafter: DrafterRow) -> TableSpec:
        """The table of one drafter; the paper has none."""
        rows = [Row(row.objective, row.title) for row in self.rows if row.backbone == drafter.backbone]
        return _table_without_paper(self, rows, backbone=drafter.backbone, baseline=drafter.baseline)


def _table_without_paper(page: PageSpec, rows: Sequence[Row], *, backbone: str, baseline: str) -> TableSpec:
    """The table of some rows of a page that the paper does not have."""
    shared = {f.name: getattr(page, f.name) for f in fields(PageSpec)}
    return TableSpec(**shared, backbone=backbone, baseline=baseline, rows=tuple(rows), paper=NO_PAPER)


ConditionsSpec = AblationSpec | ComparisonSpec | DraftersSpec
"""Pages whose drafters are trained under several conditions; their records are stored apart from other tables'."""
Spec = TableSpec | CreditsSpec | ConditionsSpec | BaselinesSpec


def load_spec(name: str) -> Spec:
    """An experiment by file path, or by its name among the shipped ones. Errors: InputError."""
    known = {f.stem: f for f in sorted(folder("experiments").glob("*.yaml"))}
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else known.get(name)
    if path is None or not path.is_file():
        raise InputError(f"no experiment {name!r}; shipped: {', '.join(known)}.{nearest(Path(name).stem, known)}")
    values = read_yaml(path)
    kinds = {
        "tau": TableSpec,
        "variants": CreditsSpec,
        "conditions": AblationSpec,
        "comparison": ComparisonSpec,
        "baselines": BaselinesSpec,
        "drafters": DraftersSpec,
    }
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
    if isinstance(found, BaselinesSpec):
        _check_baselines(found, str(path))
        return found
    if isinstance(found, DraftersSpec):
        _check_conditions(found, str(path))
        _check_drafters(found, str(path))
        return found
    names = [row.recorded_as for row in found.rows]
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated or not names:
        apart = "; give each a name of its own" if isinstance(found, ComparisonSpec) else ""
        raise InputError(f"{path}: {f'objective {repeated!r} has two rows{apart}' if repeated else 'it has no rows'}")
    choices = groups()
    named = [
        ("backbone", found.backbone, choices["backbone"]),
        *(("objective", row.objective, choices["objective"]) for row in found.rows),
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
    if isinstance(found, ComparisonSpec):
        conditions = [c.name for c in found.conditions]
        named += [
            (f"row {row.recorded_as!r}: condition", c, conditions) for row in found.rows for c in row.conditions or ()
        ]
        named += [("condition of claims", c, conditions) for c in found.claims]
        needed = ("auf", "shuffled_auf", "static_auf") if found.claims else ()
        named += [("row that a claim needs,", n, names) for n in needed]
    for what, word, valid in named:
        if word not in valid:
            raise InputError(f"{path}: {what} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    for row in found.rows:
        _check_row(row.objective, found.backbone, str(path))
    if isinstance(found, TableSpec):
        _check_cells(found, str(path))
    if isinstance(found, AblationSpec | ComparisonSpec):
        _check_conditions(found, str(path))
    if isinstance(found, ComparisonSpec):
        _check_variants(found, choices["objective"], str(path))
    return found


def _check_baselines(found: BaselinesSpec, path: str) -> None:
    """InputError for a row that is there twice or lacks its backbone, an unknown one, and an impossible lookup."""
    choices = groups()
    columns = [b for b in choices["benchmark"] if b != "all" and not b.startswith("offline")]  # as the paper's
    named = [("column", c, columns) for c in found.columns]
    for row in found.rows:
        if (row.objective in UNTRAINED) != (row.backbone is None):
            needs = "takes no" if row.objective in UNTRAINED else "needs a"
            raise InputError(f"{path}: row {row.objective!r} {needs} backbone")
        if row.backbone is not None:
            named += [("objective", row.objective, choices["objective"])]
            named += [("backbone", row.backbone, choices["backbone"])]
        if sum((r.objective, r.backbone) == (row.objective, row.backbone) for r in found.rows) > 1:
            raise InputError(f"{path}: row {row.objective!r} of {row.backbone or 'no backbone'} is there twice")
    for what, word, valid in named:
        if word not in valid:
            raise InputError(f"{path}: {what} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    for row in found.trained:
        _check_row(row.objective, str(row.backbone), path)
    if not found.columns or not found.rows:
        raise InputError(f"{path}: it has no {'rows' if found.columns else 'columns'}")
    if found.lookup.shortest > found.lookup.longest:
        raise InputError(f"{path}: lookup.shortest={found.lookup.shortest} is more than {found.lookup.longest}")


def _check_drafters(found: DraftersSpec, path: str) -> None:
    """InputError for an unknown backbone or objective, a backbone that is there twice, and a claim about no
    condition."""
    choices, backbones = groups(), [drafter.backbone for drafter in found.drafters]
    columns = [b for b in choices["benchmark"] if b != "all" and not b.startswith("offline")]  # as the paper's
    named = [("column", c, columns) for c in found.columns]
    named += [("backbone", b, choices["backbone"]) for b in backbones]
    named += [("objective", o, choices["objective"]) for d in found.drafters for o in (d.baseline, *d.rivals)]
    named += [("claim", found.claim, [c.name for c in found.conditions])]
    for what, word, valid in named:
        if word not in valid:
            raise InputError(f"{path}: {what} {word!r} is none of {', '.join(valid)}.{nearest(word, valid)}")
    for drafter in found.drafters:
        if backbones.count(drafter.backbone) > 1 or not drafter.rivals:
            wrong = "has no rivals" if not drafter.rivals else "is there twice"
            raise InputError(f"{path}: drafter {drafter.backbone!r} {wrong}")
        for objective in (drafter.baseline, *drafter.rivals):
            _check_row(objective, drafter.backbone, path)


def _check_row(objective: str, backbone: str, path: str) -> None:
    """InputError for a row whose records would carry another name, or that the backbone has no use for."""
    content = objective_yaml(objective)
    like = read_yaml(file_of("backbone", backbone)).get("like") or backbone
    if not {like, backbone} & set(content["backbones"]):
        alias = content.get("aliases", {}).get(like)
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


def _check_conditions(found: ConditionsSpec, path: str) -> None:
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


def _check_variants(found: ComparisonSpec, objectives: Sequence[str], path: str) -> None:
    """InputError for a row that has the name of another objective, changes what rows of a table share, or is missing
    where others are compared with it, and for a condition's gamma, which is that of the rows here."""
    for row in found.rows:
        where = f"{path}: row {row.recorded_as!r}"
        if row.name in objectives and row.name != row.objective:
            raise InputError(f"{where}: that is the name of another objective than {row.objective!r}")
        for word in row.settings:
            key = key_of(word)
            if "=" not in word or key.partition(".")[0] not in ("objective", "trainer", "backbone") or "." not in key:
                raise InputError(
                    f"{where}: settings {word!r}: a row changes settings objective.*, trainer.* and backbone.*; the "
                    "rest is shared by all rows of a condition"
                )
            if key.endswith(".gamma") and not re.fullmatch(r"\d+(\.\d+)?", value_of(word)):
                raise InputError(f"{where}: settings {word!r}: gamma is a number of slots, as in 1.65")
            if key in ("objective.name", "objective.title"):
                raise InputError(f"{where}: settings {word!r}: write {key.partition('.')[2]}: beside the objective")
    for condition in found.conditions:
        where = f"{path}: condition {condition.name!r}"
        if condition.gamma is not None:
            raise InputError(f"{where}: gamma is that of the rows here; write it in their settings")
        names = [row.recorded_as for row in found.rows_under(condition)]
        if found.baseline not in names:
            raise InputError(f"{where}: the baseline {found.baseline!r} is not trained under it")
    if found.claims and len(found.gammas) < 2:
        raise InputError(f"{path}: claims need rows of decay with at least two values of gamma")


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
