"""Measurements of a run: the run id, and records with their typed sections."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    Strict,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from specauf_cli.config import settings
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest, read_json, write_json
from specauf_cli.types import Trace

SCHEMA = 1

Count = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
"""Of requests, prompts, tokens of one answer."""
Sum = Annotated[int, Strict(), Field(ge=0, lt=2**53)]
"""Of slots, tokens or parameters over many answers."""
Number = Sum | Annotated[float, Strict(), Field(allow_inf_nan=False)]
"""A finite number, written as it was read: 0 stays 0 and 0.0 stays 0.0."""


def run_id(config: Config, *, target: str, data: str, init: str | None = None) -> str:
    """Names plus a short hash of everything that determines the trained weights; evaluation settings do not enter.

    ``target`` and ``data`` are the fingerprints of the target's weights and of the training data's content, ``init``
    that of the weights it starts from (None: random ones, which the seed determines).
    """
    identity = settings.identity(config.resolved)
    parts = (config.backbone.name, config.objective.name, config.target.name, config.profile.name, f"s{config.seed}")
    return "-".join([*parts, digest([identity, target, data, *([init] if init else [])], 8)])


class Section(BaseModel):
    """A part of a record. Keys that this version does not know are kept, so a record is written as it was read."""

    model_config = ConfigDict(frozen=True, extra="allow")


class CodeState(Section):
    """The code that ran (``provenance.code_state``); ``began``: the code that a continued training began with."""

    version: str | None = None
    commit: str | None
    dirty: StrictBool | None
    began: "CodeState | None" = None


class TargetDescription(Section):
    """The target. ``parameters`` and the fields below it are known if it was trained here; others have further keys."""

    title: str
    path: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    parameters: Sum | None = None
    vocabulary: Sum | None = None
    train: dict[str, Sum] = {}
    last: dict[str, Number] = {}
    seconds: Number | None = None
    peak_memory_mib: Number | None = None
    written: str | None = None


class TrainingData(Section):
    """Name of the training data; further keys count conversations, examples, tokens, and what was dropped."""

    __pydantic_extra__: dict[str, Sum] = Field(init=False)
    name: str


class Training(Section):
    """How the drafter was trained: the last line of the log, totals, and the log's columns that figures need.

    ``curve`` is empty and ``imported`` says from where for a drafter that was trained elsewhere.
    """

    last: dict[str, Number]
    seconds: Number
    peak_memory_mib: Number
    data: TrainingData
    code: CodeState
    command: str
    curve: dict[str, tuple[Number, ...]] = {}
    imported: dict[str, str | None] | None = None


class Heldout(Section):
    """Block-mask sums on held-out conversations.

    Per slot: supervised slots (``valid``), those predicted right (``correct``), and both over the blocks whose earlier
    slots are all right (``reached``, ``passed``). Per example (``ids``): ``id_valid`` and ``id_correct``.
    """

    valid: tuple[Sum, ...]
    correct: tuple[Sum, ...]
    reached: tuple[Sum, ...] = ()
    passed: tuple[Sum, ...] = ()
    ids: tuple[str, ...]
    id_valid: tuple[Sum, ...]
    id_correct: tuple[Sum, ...]

    @model_validator(mode="after")
    def _alike(self) -> "Heldout":
        if len(self.valid) != len(self.correct) or len(self.reached) != len(self.passed):
            raise ValueError("sums for other numbers of slots")
        if not len(self.ids) == len(self.id_valid) == len(self.id_correct):
            raise ValueError("sums for other numbers of examples")
        return self

    @property
    def accuracy(self) -> float:
        """The paper's common-mask accuracy, the share of supervised slots predicted right; NaN where there is none."""
        total = sum(self.valid)
        return sum(self.correct) / total if total else float("nan")


class FirstDifference(Section):
    """Where a live output first differs from the target's own: token ``token`` of the answer."""

    prompt: str
    turn: Count
    token: Count


class Audit(Section):
    """Of ``requests`` decoded live: how many outputs are the target's own, how many have the replay's rounds."""

    requests: Count
    identical: Count
    same_rounds: Count
    first_difference: FirstDifference | None = None


class DrafterDescription(Section):
    """Trainable parameters, and the operations of one draft (``evaluation/draft_cost.py``)."""

    parameters: Sum
    operations: Sum


class Cost(Section):
    """Seconds by part of the evaluation, the peak memory of the process in MiB, and what the drafter itself costs."""

    heldout: Number = 0.0
    trajectories: Number = 0.0
    traces: Number = 0.0
    audit: Number = 0.0
    peak_memory_mib: Number = 0.0
    drafter: DrafterDescription | None = None


def _possible(traces: tuple[Trace, ...]) -> tuple[Trace, ...]:
    """Errors: ValueError for rounds that no decoding can produce. A plain loop: a record holds tens of thousands."""
    for t in traces:
        counts = (t.tokens, t.turn, t.proposed)
        if not isinstance(t.prompt_id, str) or not all(type(n) is int and 0 <= n < 2**31 for n in counts):
            raise ValueError(f"a text or a count of request {t.prompt_id!r} is of another kind")
        if not all(type(a) is int and 0 <= a <= t.proposed for a in t.accepted) or t.tokens < 1:
            raise ValueError(f"impossible rounds of {t.prompt_id}")
        if not t.accepted and t.tokens > 1:  # the pass over the prompt gives one token, the others need a round
            raise ValueError(f"impossible rounds of {t.prompt_id}")
    return traces


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark at one temperature: the traces of every request and what was left out.

    ``starts`` (replay only): the histogram of accepted counts over every start, and block-mask sums per slot on
    trajectories.
    """

    benchmark: str
    title: str
    column: str
    temperature: Number
    prompts_sha256: str
    prompts: Count
    origin: str
    skipped: dict[str, Count]
    audit: Audit
    starts: dict[str, tuple[Sum, ...]]
    traces: Annotated[tuple[Trace, ...], SkipValidation, AfterValidator(_possible)]

    @property
    def measured(self) -> int:
        """Number of prompts with a trace; some of the ``prompts`` may have been skipped."""
        return len({t.prompt_id for t in self.traces})


def skips(skipped: Mapping[str, int]) -> str:
    """What was skipped, in words: ``1 skipped: prompt longer than the target's context``; empty if nothing was."""
    return ", ".join(f"{count} skipped: {reason}" for reason, count in skipped.items())


@dataclass(frozen=True)
class RunRecord:
    """Everything needed to check and repeat one measurement: settings, inputs, machine and raw outcome.

    Means are never stored; tables compute them from the sums. ``step`` is set when a drafter from the middle of
    training was measured; such records are never in a table. Errors: pydantic's ValidationError, a ValueError, for
    values of another kind.
    """

    run: str
    profile: str
    backbone: str
    objective: str
    title: str
    seed: Annotated[int, Strict()]
    command: str
    config: dict[str, Any]
    code: CodeState
    environment: dict[str, str | int | float | None]
    inputs: dict[str, str]
    target: TargetDescription
    training: Training
    heldout: Heldout
    benchmarks: tuple[BenchmarkResult, ...]
    cost: Cost
    written: str
    step: Count | None = None
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The run's id plus a hash of the evaluation settings: the name of the record's file."""
        return record_id(self.run, self.config, self.step)


def record_id(run: str, config: dict[str, Any], step: int | None) -> str:
    """The id of a record: the run's, the step of a snapshot, and a hash of the evaluation settings in ``config``."""
    at = "" if step is None else f".step{step:06d}"
    return f"{run}{at}.{digest([config['evaluation'], config['benchmark']], 8)}"


_RECORD = TypeAdapter(RunRecord)


def save_record(record: RunRecord, folder: Path) -> Path:
    """Writes the record under its id and returns the file. Under ``runs/`` a later measurement replaces an earlier one;
    what was published is never overwritten (``study``)."""
    path = folder / f"{record.id}.json"
    write_json(path, _RECORD.dump_python(record, exclude_unset=True))
    return path


def load_record(path: Path) -> RunRecord:
    """Errors: InputError for a file that is not a record of this schema."""
    try:
        raw = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; delete it and measure again") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a run record of schema {SCHEMA}")
    try:
        record = RunRecord(**with_traces(raw))
        name = record.id
        _check(record)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = reason_of(error)
        raise InputError(f"{path} is not a complete run record: {reason}; delete it and measure again") from error
    if name != path.stem:
        raise InputError(f"{path} holds the record {name}: it was renamed or altered; delete it and measure again")
    return record


def with_traces(raw: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a record with the traces of its benchmarks as such. Errors: KeyError, TypeError."""
    benchmarks = [
        {**b, "traces": tuple(Trace(**{**t, "accepted": tuple(t["accepted"])}) for t in b["traces"])}
        for b in raw["benchmarks"]
    ]
    return {**raw, "benchmarks": benchmarks}


def reason_of(error: Exception) -> str:
    """Why a record cannot be read, in a line: of pydantic's errors the first, with its key."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def _check(record: RunRecord) -> None:
    """Errors: ValueError, KeyError or TypeError for a record with values of the right kinds that no evaluation can
    produce."""
    if not record.benchmarks:
        raise ValueError("it measured nothing")
    empty = next((b.benchmark for b in record.benchmarks if not b.traces), None)
    if empty is not None:
        raise ValueError(f"{empty}: no requests")
    missing = next((key for key in ("name", "text") if key not in record.config["profile"]), None)
    if missing is not None:
        raise ValueError(f"config.profile.{missing} is missing")


def settings_of(record: RunRecord) -> dict[str, Any]:
    """The evaluation settings that change numbers: not how many requests were audited, nor the batch size."""
    return deciding(record.config["evaluation"])


def deciding(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings ``evaluation``, those that change numbers."""
    kept = {k: evaluation.get(k) for k in ("precision", "max_new_tokens", "seed", "heldout_anchors", "confidence")}
    return {**kept, "draw": evaluation.get("draw", "inverse_cdf")}
