"""Text from records, run folders and yaml files, made harmless where it is shown: terminal, Markdown, HTML, drawings.

A record may come from anybody: nothing in it may become a tag, a link, a table cell, a formula or a terminal command.
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import quote

DIRECTIONS = {*map(chr, (0x200E, 0x200F)), *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Characters that turn the direction of writing: what is read is then not what is stored."""
SPECIAL = re.compile(r"[\\`*\[\]<|&~]")
"""What Markdown reads as more than itself inside a line; an underscore inside a word is only itself."""


def plain(text: object) -> str:
    """``text`` in one line for a terminal: control characters and line ends are shown as escapes (``\\x1b``)."""
    return "".join(_visible(c) for c in str(text))


def lines(text: Sequence[str]) -> list[str]:
    """``plain`` of every line; an empty line before it, written as its first character, stays."""
    return [("\n" if line.startswith("\n") else "") + plain(line.removeprefix("\n")) for line in text]


def cell(text: object) -> str:
    """``text`` as words of a Markdown line or table cell; it is shown as it is, white space as single spaces."""
    return SPECIAL.sub(r"\\\g<0>", plain(" ".join(str(text).split())))


def code(text: object) -> str:
    """``text`` as a Markdown code span; as words where a span could not hold it in a table (a backtick, a pipe)."""
    shown = plain(" ".join(str(text).split()))
    return cell(text) if not shown or set(shown) & {"`", "|"} else f"`{shown}`"


def link(label: object, address: str) -> str:
    """A Markdown link. ``address`` is made by ``path``, never taken from data."""
    return f"[{cell(label)}]({address})"


def path(*parts: str) -> str:
    """A relative address; every part is one name, percent-encoded, so that none can start a scheme or climb."""
    return "/".join(quote(p, safe="") for p in parts)


def markup(text: object) -> str:
    """``text`` as the content of an HTML element or of a quoted attribute."""
    return html.escape(plain(text), quote=True)


def drawn(text: object) -> str:
    """``text`` for matplotlib: a dollar sign starts no formula, a leading underscore does not hide it in a legend."""
    shown = plain(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") or character in DIRECTIONS
    return character.encode("unicode_escape", "surrogatepass").decode() if hidden else character
