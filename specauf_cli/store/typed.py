"""Files that hold one typed record: written whole, and read back with one line for whatever is not right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from specauf_cli.errors import InputError
from specauf_cli.store.files import read_json, write_json
from specauf_cli.store.records import reason_of

T = TypeVar("T")


@dataclass(frozen=True)
class RecordFile(Generic[T]):
    """A kind of record: its type, the command that writes it, its schema, and a key that no other kind has.

    ``hint``: what to do about one that is not complete.
    """

    adapter: TypeAdapter[T]
    command: str
    schema: int
    key: str
    hint: str = ""

    def plain(self, record: T) -> dict[str, Any]:
        """A record as plain values."""
        values: dict[str, Any] = self.adapter.dump_python(record, mode="json")
        return values

    def save(self, record: T, path: Path) -> None:
        """Writes a record, all or nothing."""
        write_json(path, self.plain(record))

    def load(self, path: Path) -> T:
        """Errors: InputError for a file that is no record of this kind and schema."""
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("schema") != self.schema or self.key not in raw:
            raise InputError(f"{path} is not a record of {self.command}, schema {self.schema}")
        try:
            return self.adapter.validate_python(raw)
        except ValidationError as error:
            reason = reason_of(error)
            raise InputError(f"{path} is not a complete record of {self.command}: {reason}{self.hint}") from error
