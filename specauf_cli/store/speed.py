"""What was timed of a target and its drafters: typed records of single requests and rounds, never only means."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from specauf_cli.store.provenance import Load
from specauf_cli.store.records import CodeState, Count, Number, TargetDescription
from specauf_cli.store.typed import RecordFile

SCHEMA = 1
PLAIN, LOOKUP = "plain", "lookup"
"""Keys of the two methods without weights; a drafter's key is its run id."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class TimedMethod:
    """A way to decode. ``proposals`` is the most that a round proposes; ``lookup`` the n-grams of prompt lookup;
    ``backbone`` and ``block_size`` are those of a drafter.

    ``curve[P][prompt]``: tokens and rounds, pooled, of an exact replay with at most P proposals.
    """

    key: str
    title: str
    kind: Literal["plain", "lookup", "drafter"]
    proposals: Count
    lookup: tuple[Count, Count] | None = None
    backbone: str | None = None
    block_size: Count | None = None
    curve: dict[str, dict[str, tuple[Count, Count]]] = Field(default_factory=dict)


@dataclass(frozen=True)
class TimedRequest:
    """One request decoded live at batch size 1. ``tokens`` as in a ``Trace``; ``accepted`` of every round.

    Seconds: of the prefill; of all rounds by part (``draft``; ``verify``, the pass of the target; ``rest``); and of
    everything after the prefill (``decode``).
    """

    method: str
    repeat: Count
    benchmark: str
    prompt: str
    turn: Count
    tokens: Count
    accepted: tuple[Count, ...]
    prefill: Seconds
    draft: Seconds
    verify: Seconds
    rest: Seconds
    decode: Seconds


@dataclass(frozen=True)
class TimedRounds:
    """Rounds of one method alone, at one batch size and number of proposals: seconds per repetition, by part."""

    method: str
    batch_size: Count
    proposals: Count
    draft: tuple[Seconds, ...]
    verify: tuple[Seconds, ...]
    rest: tuple[Seconds, ...]


@dataclass(frozen=True)
class Repetition:
    """Of the 4-grams of the target's answers to one benchmark: how many ``repeated`` an earlier one, of ``total``."""

    benchmark: str
    title: str
    repeated: Count
    total: Count


@dataclass(frozen=True)
class SpeedRecord:
    """Everything that was timed together. ``context``: tokens before the first round timed alone.

    ``config``: the settings of the first run. ``different``: requests whose live tokens are not the target's own, by
    method. ``load``: of the machine meanwhile, None if it was not noted. Errors: pydantic's ValidationError, a
    ValueError, for values of another kind.
    """

    runs: tuple[str, ...]
    profile: str
    temperature: Number
    seed: Count
    context: Count
    command: str
    config: dict[str, Any]
    code: CodeState
    environment: dict[str, str | int | float | None]
    inputs: dict[str, str]
    target: TargetDescription
    methods: tuple[TimedMethod, ...]
    requests: tuple[TimedRequest, ...]
    rounds: tuple[TimedRounds, ...]
    repetition: tuple[Repetition, ...]
    different: dict[str, Count]
    written: str
    load: Load | None = None
    schema: int = SCHEMA

    @model_validator(mode="after")
    def _whole(self) -> "SpeedRecord":
        keys = [m.key for m in self.methods]
        if PLAIN not in keys or not self.requests:
            raise ValueError("plain decoding was not timed")
        unknown = {r.method for r in self.requests} | {r.method for r in self.rounds}
        if unknown - set(keys):
            raise ValueError(f"{min(unknown - set(keys))} is none of its methods")
        return self

    def method(self, key: str) -> TimedMethod:
        """The method with this key."""
        return next(m for m in self.methods if m.key == key)


SPEED = RecordFile(TypeAdapter(SpeedRecord), "specauf speed", SCHEMA, "rounds", "; measure again")
