"""Rows of JSON files and of the Hugging Face hub, not yet interpreted.

Every row comes with its file and line, so that an error about it can name them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from specauf_cli.errors import InputError

Row = Mapping[str, object]


BOM = b"\xef\xbb\xbf"


def json_rows(path: Path, seen: Callable[[bytes], object] = lambda _: None) -> Iterator[tuple[int, str, Row]]:
    """``(number, where, row)`` of each JSON object: one per line (blank lines skipped), or one array in a ``.json``.

    Lines are read one by one, so a file of them may be larger than memory; an array is read whole. ``seen`` gets the
    contents of the file in pieces, for a checksum. Raises ``InputError`` naming ``path`` and the line (of an array: the
    item) for anything else, and when the file cannot be read or is empty.
    """
    try:
        with open(path, "rb") as file:
            yield from _rows_of(file, path, seen)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _rows_of(file: BinaryIO, path: Path, seen: Callable[[bytes], object]) -> Iterator[tuple[int, str, Row]]:
    empty = True
    for number, line in enumerate(file, 1):
        seen(line)
        text = line.removeprefix(BOM) if number == 1 else line
        if not text.strip():
            continue
        if empty and path.suffix == ".json" and text.lstrip().startswith(b"["):
            rest = file.read()
            seen(rest)
            items = _parse(b"\n" * (number - 1) + text + rest, path, line=None)
            assert isinstance(items, list)
            for place, item in enumerate(items, 1):
                yield place, f"{path}, item {place}", _object(item, f"{path}, item {place}")
            return
        empty = False
        where = f"{path}, line {number}"
        yield number, where, _object(_parse(text, path, line=number), where)
    if empty:
        raise InputError(f"{path} is empty; expected one JSON object per line")


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {kind(row)}")
    return row


def hub_rows(
    hub_id: str, *, subset: str | None, split: str | None, revision: str | None, files: str | None, instead: str
) -> tuple[Iterable[Row], str]:
    """``(rows, commit)`` of a data set of the Hugging Face hub; ``commit`` is ``revision`` if it cannot be resolved.

    Raises ``InputError``, ending in ``instead``, if the set cannot be loaded for any reason.
    """
    try:
        import datasets

        loaded = datasets.load_dataset(hub_id, name=subset, split=split or "train", revision=revision, data_files=files)
        assert isinstance(loaded, datasets.Dataset)
    except Exception as error:  # an open set: network, DNS, proxy, HTTP status, gated, unknown id, subset, split, disk
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise InputError(f"cannot load {hub_id!r} from the Hugging Face hub ({reason}); {instead}") from error
    return loaded, resolved_commit([str(file["filename"]) for file in loaded.cache_files]) or revision or "main"


def resolved_commit(cache_files: Iterable[str]) -> str | None:
    """The commit of a hub data set: ``datasets`` names the folder of its cached files after it."""
    for file in cache_files:
        folder = Path(file).parent.name
        if len(folder) == 40 and set(folder) <= set("0123456789abcdef"):
            return folder
    return None


def is_unicode(text: str) -> bool:
    """False for text with half a surrogate pair: JSON can express it (``"\\ud83d"``), no tokenizer can encode it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind(value: object) -> str:
    """The kind of a JSON value in words, for an error message."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def names(row: Mapping[str, object]) -> str:
    """The fields of a row, for an error message (a null field counts as absent)."""
    return ", ".join(str(name) for name, value in row.items() if value is not None) or "nothing"


def _parse(text: bytes, path: Path, *, line: int | None) -> object:
    try:
        parsed: object = json.loads(text.decode())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {line or error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8; a number or a nesting beyond Python's limits
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "beyond what can be parsed"
        before = text[: error.start].count(b"\n") if isinstance(error, UnicodeDecodeError) else 0
        raise InputError(f"{path}, line {line or before + 1}: not valid JSON ({reason})") from error
    return parsed
