"""Rendered parts of pages that are otherwise written by hand: between ``<!-- key -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from specauf_cli.errors import InputError
from specauf_cli.store.files import write_text


def fill(text: str, parts: Mapping[str, Sequence[str]], page: Path) -> str:
    """``text`` of ``page`` with the lines of every part between its marks. Errors: InputError unless each is marked
    once."""
    for key, lines in parts.items():
        marks = list(re.finditer(rf"<!-- {re.escape(key)} -->\n(.*?)<!-- end -->", text, re.DOTALL))
        if len(marks) != 1:
            raise InputError(f"{page} needs <!-- {key} --> and <!-- end --> once, and has them {len(marks)} times")
        text = text[: marks[0].start(1)] + "".join(f"{line}\n" for line in lines) + text[marks[0].end(1) :]
    return text


def fill_page(page: Path, parts: Mapping[str, Sequence[str]]) -> None:
    """Writes ``parts`` into ``page``, unless they are there already. Errors: as ``fill``."""
    text = page.read_text("utf-8")
    if (rendered := fill(text, parts, page)) != text:
        write_text(page, rendered)
