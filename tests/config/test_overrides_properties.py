"""Words of the command line: anything is an override or one line that says that it is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.drawn import outcome
from specauf_cli.config import compose

PIECES = st.sampled_from(
    [
        *("seed", "trainer.steps", "runs", "data.path", "+", "~", "=", "=", "@", ",", "[", "]", "{", "}", "(", ")"),
        *("${", "'", '"', "\\", ":", "null", "1e400", "0x", "nan", "choice(1,2)", "range(", "sort(", "a b", "\n", "é"),
    ]
)
WORDS = st.text(max_size=12) | st.lists(PIECES, max_size=6).map("".join)


@given(words=st.lists(WORDS, max_size=2))
def test_any_words_are_overrides_or_one_line(words: list[str]) -> None:
    overrides, refusal = outcome(lambda: compose.parsed(words))
    if overrides is None:
        assert "\n" not in refusal
        return
    assert len(overrides) == len(words)
    assert all(isinstance(key, str) for key, _ in overrides)


@given(value=st.integers() | st.booleans() | st.none(), key=st.sampled_from(["seed", "trainer.steps", "a.b_c"]))
def test_a_plain_value_is_read_as_it_is_written(key: str, value: int | bool | None) -> None:
    written = "null" if value is None else str(value).lower()
    assert compose.parsed([f"{key}={written}"]) == [(key, value)]


PATHS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Zl", "Zp"]), max_size=16)


@given(
    path=PATHS.filter(
        lambda path: path == path.strip(" '\"") and not path.startswith("~") and "${" not in path and path != "null"
    )
)
def test_the_name_of_a_folder_is_taken_as_it_is_typed(path: str) -> None:
    assert compose.parsed([f"runs={path}"]) == [("runs", path)]
