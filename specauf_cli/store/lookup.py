"""What prompt lookup reaches on the answers of a target, and how much these repeat themselves; no run is behind it."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from specauf_cli.errors import InputError
from specauf_cli.store.files import digest, read_json, write_json
from specauf_cli.store.records import (
    BenchmarkResult,
    CodeState,
    Count,
    Number,
    TargetDescription,
    reason_of,
    with_traces,
)

SCHEMA = 1


@dataclass(frozen=True)
class RepeatedGrams:
    """Of the 4-grams of the answers to one benchmark: how many ``repeated`` an earlier one of the same answer."""

    column: str
    temperature: Number
    repeated: Count
    total: Count


@dataclass(frozen=True)
class LookupRecord:
    """Prompt lookup measured on the trajectories of a target. Nothing was trained, so there is no run and no seed.

    ``config`` has the profile, evaluation and benchmark settings, and the rule under ``lookup``. Errors: pydantic's
    ValidationError, a ValueError, for values of another kind.
    """

    profile: str
    command: str
    config: dict[str, Any]
    code: CodeState
    environment: dict[str, str | int | float | None]
    inputs: dict[str, str]
    target: TargetDescription
    benchmarks: tuple[BenchmarkResult, ...]
    repetition: tuple[RepeatedGrams, ...]
    written: str
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The name of its file."""
        return lookup_id(self.inputs["target"], self.config)


def lookup_id(target: str, config: dict[str, Any]) -> str:
    """The id of a record: a hash of the target's fingerprint, the evaluation settings and the rule."""
    return f"lookup-{digest([target, config['evaluation'], config['benchmark'], config['lookup']], 8)}"


_RECORD = TypeAdapter(LookupRecord)


def save_lookup(record: LookupRecord, folder: Path) -> Path:
    """Writes a record under its id and returns the file."""
    path = folder / f"{record.id}.json"
    write_json(path, _RECORD.dump_python(record, exclude_unset=True))
    return path


def load_lookup(path: Path) -> LookupRecord:
    """Errors: InputError for a file that is no record of this schema, or was renamed."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or "repetition" not in raw:
        raise InputError(f"{path} is not a record of prompt lookup, schema {SCHEMA}")
    try:
        record = LookupRecord(**with_traces(raw))
        name = record.id
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a complete record of prompt lookup: {reason_of(error)}; measure again"
        ) from error
    if name != path.stem:
        raise InputError(f"{path} holds the record {name}: it was renamed or altered; measure again")
    return record
