"""Rendered parts of pages written by hand: only what is between the marks changes, and a missing mark is said."""

from pathlib import Path

import pytest

from specauf_cli.errors import InputError
from specauf_cli.reporting.marks import fill, fill_page

PAGE = "above\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\nbelow\n"


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    fill_page(path, {"b": ["2", r"\1"], "a": []})
    assert path.read_text() == "above\n<!-- a -->\n<!-- end -->\nbetween\n<!-- b -->\n2\n\\1\n<!-- end -->\nbelow\n"


@pytest.mark.parametrize(
    ("text", "times"), [("no mark", 0), ("<!-- a -->\nnever ends", 0), (PAGE.replace("<!-- b -->", "<!-- a -->"), 2)]
)
def test_a_part_needs_its_marks_once(text: str, times: int) -> None:
    with pytest.raises(
        InputError, match=rf"page\.md needs <!-- a --> and <!-- end --> once, and has them {times} time"
    ):
        fill(text, {"a": []}, Path("page.md"))
