"""What ``experiments/*.yaml`` say: the pages that records are rendered into."""

from dataclasses import dataclass, fields


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
class TauPage:
    """What every page of tau says.

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


@dataclass(frozen=True)
class Experiment(TauPage):
    """``experiments/*.yaml``: one table of tau beside the paper's."""

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
class Conditions(TauPage):
    """``experiments/*.yaml`` of kind ``conditions``: under which of them AUF's claims hold.

    Every condition trains all of the rows; ``settings`` are shared by all conditions.
    """

    settings: tuple[str, ...]
    conditions: tuple[Condition, ...]

    @property
    def experiment(self) -> Experiment:
        """The table of any one of the conditions; the paper has none."""
        shared = {f.name: getattr(self, f.name) for f in fields(TauPage)}
        return Experiment(**shared, paper=Paper("", {}))


Page = Experiment | Variants | Conditions
