"""What ``experiments/*.yaml`` say: the pages that records are rendered into."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of an experiment's table: an objective, named as in ``conf/objective``."""

    objective: str
    title: str


@dataclass(frozen=True)
class Paper:
    """Reference values: ``values[temperature][objective]`` lists the columns in order, then the average."""

    source: str
    values: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Experiment:
    """``experiments/*.yaml``: what one table shows.

    ``columns`` are benchmark columns in the paper's order; differences are taken to the objective ``baseline``;
    ``definition`` is that of tau; ``margin`` (tokens) bounds a difference that counts as none.
    """

    name: str
    title: str
    backbone: str
    baseline: str
    definition: str
    margin: float
    columns: dict[str, str]
    rows: tuple[Row, ...]
    paper: Paper


@dataclass(frozen=True)
class Variants:
    """``experiments/*.yaml`` of kind ``variants``; ``paper[objective]``: its base branch, final branch and decay there."""

    name: str
    title: str
    backbone: str
    rows: tuple[Row, ...]
    source: str
    paper: dict[str, tuple[str, str, str]]


@dataclass(frozen=True)
class Condition:
    """One row of a ``Conditions`` page: ``factor`` and its ``value`` as shown, and what is changed to get there.

    ``settings`` are overrides; ``gamma`` is that of the rows whose credit decays; ``budget`` multiplies the profile's steps.
    """

    name: str
    factor: str
    value: str
    settings: tuple[str, ...] = ()
    gamma: float | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Conditions:
    """``experiments/*.yaml`` of kind ``conditions``: under which of them AUF's claims hold. ``settings`` are shared by all.

    The rows are drafters as in ``Experiment``, whose words the rest are; every condition trains all of them.
    """

    name: str
    title: str
    backbone: str
    baseline: str
    definition: str
    margin: float
    settings: tuple[str, ...]
    columns: dict[str, str]
    rows: tuple[Row, ...]
    conditions: tuple[Condition, ...]

    @property
    def experiment(self) -> Experiment:
        """The table of any one of the conditions; the paper has none."""
        shared = (self.name, self.title, self.backbone, self.baseline, self.definition, self.margin)
        return Experiment(*shared, self.columns, self.rows, Paper("", {}))


Page = Experiment | Variants | Conditions
