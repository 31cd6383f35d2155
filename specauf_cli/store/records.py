"""Identity, provenance and files: run ids, RunRecords, atomic write-once, load."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specauf_cli.config import settings
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest, is_number, read_json, write_json
from specauf_cli.types import Trace

SCHEMA = 1


def run_id(config: Config, *, target: str, data: str, init: str | None = None) -> str:
    """Names plus a short hash of everything that determines the trained weights; evaluation settings do not enter.

    ``target`` and ``data`` are the fingerprints of the target's weights and of the training data's content, ``init``
    that of the weights it starts from (None: random ones, which the seed determines).
    """
    identity = settings.identity(config.resolved)
    parts = (config.backbone.name, config.objective.name, config.target.name, config.profile.name, f"s{config.seed}")
    return "-".join([*parts, digest([identity, target, data, *([init] if init else [])], 8)])


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark at one temperature: the traces of every request and what was left out.

    ``starts`` (replay only): the histogram of accepted counts over every start, and block-mask sums per slot on
    trajectories.
    """

    benchmark: str
    title: str
    column: str
    temperature: float
    prompts_sha256: str
    prompts: int
    origin: str
    skipped: dict[str, int]
    audit: dict[str, Any]
    starts: dict[str, list[int]]
    traces: tuple[Trace, ...]

    @property
    def measured(self) -> int:
        """Prompts with a trace: of the ``prompts`` that were asked some may have been skipped."""
        return len({t.prompt_id for t in self.traces})


@dataclass(frozen=True)
class RunRecord:
    """Everything needed to trust and redo one run: what was asked, with what, where, and the raw outcome.

    ``heldout`` holds block-mask sums on held-out conversations: per slot, valid and correct counts. ``training`` is the
    last line of the log plus totals, and the log's columns that figures need. Means are never stored; tables compute
    them. ``step`` is set when a drafter from the middle of training was measured; such records are never in a table.
    """

    run: str
    profile: str
    backbone: str
    objective: str
    title: str
    seed: int
    command: str
    config: dict[str, Any]
    code: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, str]
    target: dict[str, Any]
    training: dict[str, Any]
    heldout: dict[str, Any]
    benchmarks: tuple[BenchmarkResult, ...]
    cost: dict[str, float]
    written: str
    step: int | None = None
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The run's id plus a hash of the evaluation settings: the name of the record's file."""
        at = "" if self.step is None else f".step{self.step:06d}"
        return f"{self.run}{at}.{digest([self.config['evaluation'], self.config['benchmark']], 8)}"


def save_record(record: RunRecord, folder: Path) -> Path:
    """Writes the record under its id and returns the file. Under ``runs/`` a later measurement replaces an earlier one;
    what was published is never overwritten (``study``)."""
    path = folder / f"{record.id}.json"
    write_json(path, asdict(record))
    return path


def load_record(path: Path) -> RunRecord:
    """Errors: InputError for a file that is not a record of this schema."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a run record of schema {SCHEMA}")
    try:
        raw["benchmarks"] = tuple(
            BenchmarkResult(
                **{**b, "traces": tuple(Trace(**{**t, "accepted": tuple(t["accepted"])}) for t in b["traces"])}
            )
            for b in raw["benchmarks"]
        )
        record = RunRecord(**raw)
        name = record.id
        _check(record)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a complete run record: {error}; delete it and measure again") from error
    if name != path.stem:
        raise InputError(f"{path} holds the record {name}: it was renamed or altered; delete it and measure again")
    return record


def _check(record: RunRecord) -> None:
    """Errors: ValueError, KeyError, TypeError or AttributeError for a record that no evaluation can have written."""
    if not record.benchmarks or not isinstance(record.written, str):
        raise ValueError("it measured nothing")
    if type(record.seed) is not int or not all(isinstance(t, str) for t in (record.run, record.title, record.command)):
        raise ValueError("seed, run, title or command is of another kind")
    for b in record.benchmarks:
        texts = (b.benchmark, b.title, b.column, b.origin, *(t.prompt_id for t in b.traces))
        counts = [*b.skipped.values(), b.prompts, *(b.audit.get(k) for k in ("requests", "identical", "same_rounds"))]
        counts += [n for t in b.traces for n in (t.tokens, t.turn, t.proposed)]
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and n < 2**31 for n in counts):
            raise ValueError(f"{b.title!r}: a text or a count is of another kind")
        if not is_number(b.temperature):
            raise ValueError(f"{b.title}: temperature {b.temperature!r}")
        for t in b.traces:
            if not all(type(a) is int and 0 <= a <= t.proposed for a in t.accepted) or t.tokens < 1:
                raise ValueError(f"{b.benchmark}: impossible rounds of {t.prompt_id}")
            if not t.accepted and t.tokens > 1:  # the pass over the prompt gives one token, the others need a round
                raise ValueError(f"{b.benchmark}: impossible rounds of {t.prompt_id}")
        if not b.traces or {"requests", "identical", "same_rounds"} - set(b.audit):
            raise ValueError(f"{b.benchmark}: no requests")
    sums = [n for k in ("id_correct", "id_valid", "valid", "correct") for n in record.heldout.get(k, ())]
    if not all(map(is_number, sums)):
        raise ValueError("heldout holds what is no count")
    for part, keys in (
        (record.heldout, ("ids", "id_correct", "id_valid", "valid", "correct")),
        (record.training, ("command", "code")),
        (record.code, ("commit", "dirty")),
        (record.target, ("title",)),
        (record.config["profile"], ("name", "text")),
    ):
        missing = [k for k in keys if k not in part]
        if missing:
            raise ValueError(f"{missing[0]} is missing")


def settings_of(record: RunRecord) -> dict[str, Any]:
    """The evaluation settings that change numbers: not how many requests were audited, nor the batch size."""
    kept = ("precision", "max_new_tokens", "seed", "heldout_anchors")
    return {k: record.config["evaluation"].get(k) for k in kept}
