"""The file of a server's answers: one line each, written before anything else happens, read again by the next call."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from specauf_cli.config.settings import validated
from specauf_cli.engines.backends import Answer
from specauf_cli.errors import InputError


class Answers:
    """The file of finished answers and closed waves of one server."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; lines that a kill has torn are left out. Errors: InputError when it cannot be
        written."""
        self.path, self.found, self.waves, self.torn = (
            path,
            dict[str, tuple[Answer, float]](),
            list[dict[str, Any]](),
            0,
        )
        whole = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.is_file() else b""
            whole = not raw or raw.endswith(b"\n")
            for line in raw.decode("utf-8", "replace").splitlines():
                self._read(line)
            self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        if not whole:
            self._append("")

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line) if line else {}
            if "wave" in row:
                drafts, proposed, accepted, slots = row["counts"]
                self.waves.append(
                    {
                        "wave": frozenset(row["wave"]),
                        "counts": [*map(int, (drafts, proposed, accepted)), [*map(int, slots)]],
                    }
                )
            elif "key" in row:
                answer = validated(Answer, row["answer"], "answer")
                if answer.completion < 1 or min(answer.rounds or 0, answer.accepted or 0) < 0:
                    raise ValueError("impossible counts")
                self.found[row["key"]] = answer, float(row["seconds"])
        except (ValueError, KeyError, TypeError):
            self.torn += 1

    def get(self, key: str, keys: Collection[str]) -> Answer | None:
        """The answer of ``key``, of ``keys`` that are asked together; None when it has no counts, its own or a
        wave's."""
        known = self.found.get(key)
        if known is None or (known[0].rounds is None and self.wave(key, keys) is None):
            return None
        return known[0]

    def wave(self, key: str, keys: Collection[str]) -> dict[str, Any] | None:
        """The latest wave of ``key``, if all it counted is among ``keys`` and was not counted again since."""
        found = self._latest(key)
        if found is None or not all(k in keys and self._latest(k) is found for k in found["wave"]):
            return None
        return found

    def _latest(self, key: str) -> dict[str, Any] | None:
        return next((w for w in reversed(self.waves) if key in w["wave"]), None)

    def add(self, key: str, answer: Answer, seconds: float) -> None:
        """Keeps an answer, on disk before anything else happens."""
        self.found[key] = answer, seconds
        self._append(json.dumps({"key": key, "seconds": round(seconds, 3), "answer": asdict(answer)}))

    def close_wave(self, keys: Sequence[str], counts: Sequence[Any]) -> None:
        """Keeps what the counters said of a wave."""
        self.waves.append({"wave": frozenset(keys), "counts": [*counts]})
        self._append(json.dumps({"wave": list(keys), "counts": counts}))

    def _append(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def discard(self) -> None:
        """Forgets every answer, on disk too."""
        self.found.clear()
        self.waves.clear()
        self._file.truncate(0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
