"""Answers of a server, and the file that keeps them: one line per answer, written at once, read again by the next
call."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field, Strict
from pydantic.dataclasses import dataclass

from specauf_cli.config.schema import CLOSED, Bool, Count, Int
from specauf_cli.config.settings import validated
from specauf_cli.errors import InputError

Whole = Annotated[Int, Field(ge=0)]
"""A token, or a count that may be 0."""


@dataclass(frozen=True, config=CLOSED)
class Answer:
    """One answered request. ``completion`` tokens, prefill token included; ``rounds`` verifications, None where
    unreported.

    ``accepted`` draft tokens, the ``histogram`` of rounds by accepted count, and accepted tokens round by round
    (``steps``) are None where the server gives none.
    """

    tokens: Annotated[tuple[Whole, ...], Strict(False)] | None
    text: str
    completion: Count
    ended: Bool
    rounds: Whole | None
    accepted: Whole | None
    histogram: Annotated[tuple[Whole, ...], Strict(False)] | None
    steps: Annotated[tuple[Whole, ...], Strict(False)] | None = None


@dataclass(frozen=True)
class Wave:
    """Keys of requests that were sent together, and what the server's counters reported for all of them.

    ``counts``: drafts, draft tokens, accepted tokens, and accepted tokens per slot.
    """

    keys: frozenset[str]
    counts: list[Any]


class Answers:
    """The file of finished answers and closed waves of one server. ``kept``: answers with their seconds, by key;
    ``torn``: how many incomplete lines were left out."""

    def __init__(self, path: Path) -> None:
        """Reads the file if it exists; lines cut short by a kill are left out. Errors: InputError when it cannot be
        written."""
        self.path = path
        self.kept: dict[str, tuple[Answer, float]] = {}
        self.waves: list[Wave] = []
        self.torn = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.is_file() else b""
            for line in raw.decode("utf-8", "replace").splitlines():
                self._read(line)
            self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        if raw and not raw.endswith(b"\n"):
            self._append("")
        self._before = dict(self.kept), list(self.waves), self._file.tell()

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line) if line else {}
            if "wave" in row:
                drafts, proposed, accepted, slots = row["counts"]
                counts = [int(drafts), int(proposed), int(accepted), [*map(int, slots)]]
                self.waves.append(Wave(frozenset(row["wave"]), counts))
            elif "key" in row:
                answer = validated(Answer, row["answer"], "answer")
                self.kept[row["key"]] = answer, float(row["seconds"])
        except (ValueError, KeyError, TypeError):
            self.torn += 1

    def get(self, key: str, keys: Collection[str]) -> Answer | None:
        """The answer of ``key``, one of ``keys`` sent together; None if neither it nor its wave has counts."""
        answer, _ = self.kept.get(key, (None, 0.0))
        if answer is None or (answer.rounds is None and self.wave(key, keys) is None):
            return None
        return answer

    def wave(self, key: str, keys: Collection[str]) -> Wave | None:
        """The latest wave of ``key``, if all its requests are among ``keys`` and none was counted again since."""
        wave = self._latest(key)
        if wave is None or not all(k in keys and self._latest(k) is wave for k in wave.keys):
            return None
        return wave

    def _latest(self, key: str) -> Wave | None:
        return next((w for w in reversed(self.waves) if key in w.keys), None)

    def add(self, key: str, answer: Answer, seconds: float) -> None:
        """Adds an answer and writes it to disk."""
        self.kept[key] = answer, seconds
        self._append(json.dumps({"key": key, "seconds": round(seconds, 3), "answer": asdict(answer)}))

    def close_wave(self, keys: Sequence[str], counts: Sequence[Any]) -> None:
        """Adds the counts of a wave and writes them to disk."""
        self.waves.append(Wave(frozenset(keys), [*counts]))
        self._append(json.dumps({"wave": list(keys), "counts": counts}))

    def _append(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def discard(self) -> None:
        """Deletes the answers and waves that were added since the file was opened, on disk too."""
        self.kept, self.waves = dict(self._before[0]), list(self._before[1])
        self._file.truncate(self._before[2])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
