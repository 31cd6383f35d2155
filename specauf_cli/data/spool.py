"""Sequences of any length: in memory while they are small, else in a memory-mapped Arrow file.

The file is temporary, in the system's folder for such files (``TMPDIR=FOLDER`` names another one), about as large as
the text or the tokens in it.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from specauf_cli.errors import InputError, first_line
from specauf_cli.types import Conversation, Example, Message

T = TypeVar("T")

LIMIT = 256_000_000
"""Bytes that one sequence may take in memory, roughly."""
WRITTEN, READ = 500, 100
"""Rows that are written together, and those that are read together when all are read in order."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """How items are stored: the Arrow type of each column (a list where it ends in ``[]``), an item as a row and back,
    and its bytes in memory."""

    columns: Mapping[str, str]
    pack: Callable[[T], dict[str, Any]]
    unpack: Callable[[Mapping[str, Any]], T]
    size: Callable[[T], int]


class Stored(Sequence[T]):
    """Rows of a memory-mapped file, or some of them in another order; an item is made when it is asked for."""

    def __init__(self, rows: Any, form: Format[T]) -> None:
        """``rows``: a ``datasets.Dataset``."""
        self._rows, self._form = rows, form

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Stored[T]: ...
    def __getitem__(self, index: int | slice) -> T | Stored[T]:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._form.unpack(self._rows[index])

    def __iter__(self) -> Iterator[T]:
        for group in self._rows.iter(READ):
            for values in zip(*group.values(), strict=True):
                yield self._form.unpack(dict(zip(group, values, strict=True)))

    def column(self, name: str) -> Iterator[int]:
        """The numbers of one column, in order; nothing else is read."""
        for group in self._rows.select_columns([name]).iter(WRITTEN):
            yield from group[name]

    def select(self, index: Sequence[int]) -> Stored[T]:
        """The rows at these places, in this order; 8 bytes of memory for each."""
        return Stored(self._rows.select(index if len(index) else []), self._form)


def select(rows: Sequence[T], index: Sequence[int]) -> Sequence[T]:
    """The items at these places, in this order; stored where ``rows`` are."""
    return rows.select(index) if isinstance(rows, Stored) else tuple(rows[i] for i in index)


def lengths(examples: Sequence[Example]) -> Sequence[int]:
    """The tokens of each example; 4 bytes of memory for each."""
    return array("i", examples.column("length") if isinstance(examples, Stored) else (len(e.tokens) for e in examples))


class Spool(Generic[T]):
    """Takes items one by one, and gives them back as a sequence."""

    def __init__(self, form: Format[T], name: str) -> None:
        """``name``: what is kept, for a line of progress."""
        self.form, self.name = form, name
        self._items: list[T] = []
        self._bytes = 0
        self._folder: Any = None
        self._writer: Any = None

    def append(self, item: T) -> None:
        """Errors: InputError when the file cannot be written."""
        if self._writer is not None:
            with self._told():
                self._writer.write(self.form.pack(item))
            return
        self._items.append(item)
        self._bytes += self.form.size(item)
        if self._bytes > LIMIT:
            self._spill()

    def rows(self) -> Sequence[T]:
        """The items in their order: a tuple, or ``Stored``. Nothing can be appended after it."""
        if self._writer is None:
            return tuple(self._items)
        import datasets

        with self._told():
            self._writer.finalize()
            rows = datasets.Dataset.from_file(str(self._path))
        self._folder.cleanup()  # a mapped file stays readable without its name, and goes however the process ends
        return Stored(rows, self.form)

    @property
    def _path(self) -> Path:
        return Path(self._folder.name) / "rows.arrow"

    def _spill(self) -> None:
        """Moves what is in memory to a file, where the rest will go."""
        import datasets
        from datasets.arrow_writer import ArrowWriter

        print(
            f"{self.name}: more than {LIMIT / 1e6:.0f} MB, kept in a temporary file below {tempfile.gettempdir()}",
            file=sys.stderr,
        )
        features = {}
        for column, kind in self.form.columns.items():
            value = datasets.Value(kind.removesuffix("[]"))
            features[column] = datasets.Sequence(value) if kind.endswith("[]") else value
        with self._told():
            self._folder = tempfile.TemporaryDirectory(prefix="specauf-")
            self._writer = ArrowWriter(
                path=str(self._path), features=datasets.Features(features), writer_batch_size=WRITTEN
            )
            for item in self._items:
                self._writer.write(self.form.pack(item))
        self._items = []

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.name}: cannot write a temporary file below {tempfile.gettempdir()}: "
                f"{error.strerror or first_line(error)}; TMPDIR=FOLDER names another folder"
            ) from error


class Names:
    """Names that occurred, on disk where they are many."""

    def __init__(self) -> None:
        self._known = sqlite3.connect("")  # a private database that goes to a temporary file when its cache is full
        self._known.execute("pragma cache_size = -32000")
        self._known.execute("create table names (name blob primary key) without rowid")

    def add(self, name: str) -> bool:
        """True when ``name`` is new."""
        key = name.encode("utf-8", "surrogatepass")
        return self._known.execute("insert or ignore into names values (?)", (key,)).rowcount == 1

    def close(self) -> None:
        """Forgets them."""
        self._known.close()


def _conversation(row: Mapping[str, Any]) -> Conversation:
    name, source, messages = json.loads(row["conversation"])
    return Conversation(name, tuple(Message(role, content) for role, content in messages), source)


# As JSON: an id may hold what is not valid Unicode, which no Arrow string can.
CONVERSATIONS = Format(
    columns={"conversation": "binary"},
    pack=lambda c: {"conversation": json.dumps([c.id, c.source, [[m.role, m.content] for m in c.messages]]).encode()},
    unpack=_conversation,
    size=lambda c: 300 + sum(200 + len(m.content) for m in c.messages),
)

EXAMPLES = Format(
    columns={"id": "binary", "length": "int32", "tokens": "int32[]", "supervised": "bool[]"},
    pack=lambda e: {
        "id": e.id.encode("utf-8", "surrogatepass"),
        "length": len(e.tokens),
        "tokens": e.tokens,
        "supervised": e.supervised,
    },
    unpack=lambda row: Example(
        row["id"].decode("utf-8", "surrogatepass"), tuple(row["tokens"]), tuple(row["supervised"])
    ),
    size=lambda e: 300 + 44 * len(e.tokens),  # two pointers and an int for each
)
