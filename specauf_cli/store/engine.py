"""What ``make engine`` found: one server of a real engine per case, judged by the referee (benchmarks/engine.json)."""

from typing import Annotated, Any, Literal

from pydantic import Strict, TypeAdapter
from pydantic.dataclasses import dataclass

from specauf_cli.store.provenance import Load
from specauf_cli.store.records import CodeState, Count, Number
from specauf_cli.store.typed import RecordFile

SCHEMA = 1

Verdict = Literal["equal", "rounding", "differs"]
Share = tuple[Count, Count]
"""How many are equal, and how many were compared."""


@dataclass(frozen=True)
class JudgedBenchmark:
    """One benchmark: equal answers and counts, tau (pooled) of the engine and of the replay; None where there is
    none."""

    benchmark: str
    answers: Share
    counts: Share
    engine: Number | None
    replay: Number | None


@dataclass(frozen=True)
class AtTemperature:
    """All benchmarks at one temperature. ``engine`` and ``replay``: tau (pooled), unweighted mean over the benchmarks;
    ``difference``: engine minus replay, paired by prompt, with its 95 % interval; None where there is no drafter.

    ``sampling``: the largest |z| of the benchmarks (T > 0, see the referee's record).
    """

    temperature: Number
    verdict: Verdict
    answers: Share
    counts: Share
    engine: Number | None
    replay: Number | None
    difference: tuple[Number, Number, Number] | None
    sampling: Number | None
    benchmarks: tuple[JudgedBenchmark, ...]


@dataclass(frozen=True)
class Reproduced:
    """A fault that was switched on in the replay: how many of the ``examined`` requests come out as the server's."""

    fault: str
    reproduced: Count
    examined: Count


@dataclass(frozen=True)
class EngineCase:
    """One server. ``without``: workarounds that were left out; ``changed``: keys of the export's config that were.

    ``drafter`` is the name of the run, None without one; ``cause`` the fault that the referee names; ``tried``: the
    faults that reproduce most; ``first``: the first difference, in words. ``load``: of the machine, None if it was not
    noted. ``target``: the yaml of its target; ``runner``: vLLM's model runner.
    """

    name: str
    title: str
    layout: str | None
    without: tuple[str, ...]
    changed: dict[str, Any]
    drafter: str | None
    expected: Verdict
    verdict: Verdict
    cause: str | None
    tried: tuple[Reproduced, ...]
    first: str | None
    reported: tuple[str, ...]
    temperatures: tuple[AtTemperature, ...]
    engine: dict[str, str]
    environment: dict[str, str | int | float | None]
    code: CodeState
    clean: Annotated[bool, Strict()]
    inputs: str
    seconds: Number
    written: str
    load: Load | None = None
    target: str = "tiny"
    runner: str = "V1"


@dataclass(frozen=True)
class EngineRecord:
    """Every case that was judged."""

    command: str
    cases: tuple[EngineCase, ...]
    schema: int = SCHEMA


ENGINE = RecordFile(TypeAdapter(EngineRecord), "make engine", SCHEMA, "cases")
