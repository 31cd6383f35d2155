"""Nothing that a record holds becomes a tag, a link, a table cell or a command to the terminal."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from specauf_cli.reporting import escape

EVIL = "a<script>alert(1)</script>](javascript:alert(1))|`$x\n# b\x1b[31m"


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


@pytest.mark.parametrize("made", [escape.cell(EVIL), escape.code(EVIL), escape.link(EVIL, escape.path(EVIL))])
def test_markdown_holds_no_tag_no_foreign_link_and_one_cell(made: str) -> None:
    table = f"| h |\n| --- |\n| {made} |\n"
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(table)
    assert set(_Tags(page).tags) <= {"table", "thead", "tbody", "tr", "th", "td", "a"}
    assert page.count("<td>") == 1
    assert 'href="javascript' not in page


def test_html_and_terminal_text_is_inert() -> None:
    assert _Tags(escape.markup(EVIL)).tags == []
    assert escape.markup("'\"") == "&#x27;&quot;"
    assert escape.plain("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert escape.lines(["\na\nb"]) == ["\na\\nb"]
    assert escape.drawn("_$x$") == r" _\$x\$"
