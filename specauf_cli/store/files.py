"""Files that survive a crash: written whole or not at all, locked by one process, hashed, read with one-line errors."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from specauf_cli.errors import InputError


def digest(value: Any, length: int = 64) -> str:
    """Hex SHA-256 of a JSON value in canonical form, cut to ``length`` characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write; it replaces ``path`` only when the block succeeds.

    Errors: InputError when there is no space left or the folder cannot be written; ``path`` is then as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {reason}; what was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, of the same name; it replaces ``path`` only when the block succeeds.

    Separate from ``atomic`` because a folder that is not empty cannot be replaced: an earlier ``path`` is removed
    first, so a crash between the two steps leaves no folder, but never a partial one. It is filled one level below its
    temporary parent, so that no search for complete folders next to ``path`` finds it. Errors: as ``atomic``.
    """
    parent = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary = parent / path.name
        temporary.mkdir()
        yield temporary
        for written in sorted(p for p in temporary.rglob("*") if p.is_file()):
            with open(written, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {reason}") from error
    finally:
        if parent is not None:
            shutil.rmtree(parent, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of ``atomic_folder(path)``. The caller must hold the folder's lock."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def create_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, unless it exists: of two processes the first one wins.

    Unlike ``atomic`` it replaces nothing. Errors: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


def append_line(path: Path, value: Any) -> None:
    """Appends one line of JSON to a log. Unlike ``atomic`` it does not rewrite the file: a kill may leave an incomplete
    last line, which ``read_log`` omits. Errors: InputError when it cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def lock(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Locks ``folder`` for this process; the system releases the lock when the process ends, even if it is killed.

    Errors: InputError, naming the process and its host, while another one holds it; ``wait``: waits for that one
    instead.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    with file:
        try:
            _flock(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise InputError(
                    f"{what} is in use by {holder}; wait for it, or stop it, and run this again"
                ) from error
            print(f"{what} is in use by {holder}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())  # not buffered: said once
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
        yield


def _flock(file: TextIO) -> None:
    """Takes the lock; OSError while another process has it. Tried twice, since ``held`` takes it for a moment to
    look."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(folder: Path) -> str:
    """The process that currently holds ``folder``, as it named itself; empty if none does."""
    try:
        if not (folder / ".lock").is_file():
            return ""
        with open(folder / ".lock", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except OSError:
        pass  # it was never locked
    return ""


def write_text(path: Path, text: str) -> None:
    """Writes text atomically, in UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, one nesting level per line where that helps a reader and a diff."""
    write_text(path, pretty(value) + "\n")


def pretty(value: Any, indent: int = 0) -> str:
    """JSON with short leaves on one line: objects and lists that fit 110 columns, and lists of numbers, stay whole."""
    flat = json.dumps(value, ensure_ascii=False)
    whole = not isinstance(value, dict | list) or not value or len(flat) + indent <= 110
    if whole or (isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)):
        return flat
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, dict):
        rows = [f"{pad}{json.dumps(str(k), ensure_ascii=False)}: {pretty(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + pretty(v, indent + 1) for v in value) + f"\n{end}]"


def read_json(path: Path) -> Any:
    """Errors: InputError naming the file, and the line where its JSON breaks."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block forever
        raise InputError(f"cannot read {path}: it is not a file")
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); the file is damaged") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8; the file is damaged") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply; the file is damaged") from error
    except ValueError as error:
        raise InputError(f"{path}: a number that is too long; the file is damaged") from error


def is_number(value: Any) -> bool:
    """True for a finite number that fits a float."""
    return type(value) in (int, float) and abs(value) < 1e300


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a training log without an incomplete last one. A missing log has none."""
    lines: list[dict[str, float]] = []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        numbers = isinstance(line, dict) and all(map(is_number, line.values()))
        if not numbers or type(line.get("step")) is not int or "loss" not in line:
            break
        lines.append(line)
    return lines
