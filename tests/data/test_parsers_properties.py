"""Files of conversations and prompts: what is written is read again, and anything else is one line about the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.drawn import json_values, outcome
from specauf_cli.config.schema import BenchmarkConfig
from specauf_cli.data import benchmarks, conversations
from specauf_cli.data.rows import is_unicode, json_rows
from specauf_cli.types import Prompt

CONFIG = BenchmarkConfig(
    name="drawn",
    title="Drawn",
    column="gsm8k",
    source="hub",
    family=None,
    hub_id="owner/drawn",
    subset=None,
    split="test",
    revision="main",
    turns=("question",),
    template="{turn}",
    file="drawn.jsonl",
    limit=100,
    seed=0,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
ROLE_KEYS = st.sampled_from([("role", "content"), ("from", "value")])
# Rows that look nearly right: the right keys, with anything behind them.
ROLES = st.sampled_from(["user", "human", "assistant", "gpt", "system", "usr", ""]) | json_values
CONTENTS = TEXT | st.sampled_from(["", " ", "\ud83d"]) | json_values
TURN = st.fixed_dictionaries({}, optional={"role": ROLES, "from": ROLES, "content": CONTENTS, "value": CONTENTS})
CONVERSATION = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(TURN | json_values, max_size=4) | json_values,
        "conversations": st.lists(TURN | json_values, max_size=4) | json_values,
        "id": json_values,
        "source": json_values,
    },
)
PROMPT = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT | json_values,
        "turns": st.lists(CONTENTS, max_size=3) | json_values,
        "reference": json_values,
        "category": json_values,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@given(rows=st.lists(st.dictionaries(st.text(max_size=6), json_values, max_size=4), min_size=1, max_size=4))
def test_rows_are_read_as_they_were_written_one_a_line_or_as_one_array(folder: Path, rows: list[object]) -> None:
    lines = write(folder / "rows.jsonl", rows)
    array = folder / "rows.json"
    array.write_text(json.dumps(rows, indent=1))
    for path in (lines, array):
        numbers, _, read = zip(*json_rows(path), strict=True)
        assert numbers == tuple(range(1, len(rows) + 1))
        assert json.dumps(read) == json.dumps(rows)  # as text: not-a-number is not equal to itself


@given(content=st.binary(max_size=60) | st.lists(json_values).map(json.dumps).map(str.encode), array=st.booleans())
def test_any_bytes_are_rows_or_one_line_with_the_place(folder: Path, content: bytes, array: bool) -> None:
    path = folder / ("any.json" if array else "any.jsonl")
    path.write_bytes(content)
    rows, refusal = outcome(lambda: list(json_rows(path)))
    if rows is None:
        assert str(path) in refusal
        assert "\n" not in refusal
        return
    assert all(where.startswith(str(path)) and isinstance(row, dict) for _, where, row in rows)


@given(
    talks=st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), min_size=1, max_size=4),
    system=st.none() | TEXT,
    keys=ROLE_KEYS,
)
def test_conversations_are_read_as_they_were_written(
    folder: Path, talks: list[list[tuple[str, str]]], system: str | None, keys: tuple[str, str]
) -> None:
    expected, rows = [], list[object]()
    for talk in talks:
        turns = [("system", system)] if system is not None else []
        for question, answer in talk:
            turns += [("user", question), ("assistant", answer)]
        expected.append(turns)
        rows.append({"messages": [dict(zip(keys, turn, strict=True)) for turn in turns]})
    corpus = conversations.load_jsonl(write(folder / "talks.jsonl", rows))
    assert [[(m.role, m.content) for m in c.messages] for c in corpus.conversations] == expected
    assert len({c.id for c in corpus.conversations}) == len(talks)
    assert not corpus.dropped


@given(rows=st.lists(CONVERSATION | json_values, min_size=1, max_size=3))
def test_any_row_is_kept_counted_or_one_line_with_the_place(folder: Path, rows: list[object]) -> None:
    path = write(folder / "near.jsonl", rows)
    corpus, refusal = outcome(lambda: conversations.load_jsonl(path))
    if corpus is None:
        assert str(path) in refusal
        return
    assert len(corpus.conversations) + sum(corpus.dropped.values()) == len(rows)
    for conversation in corpus.conversations:
        roles = [m.role for m in conversation.messages if m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m.content.strip() and is_unicode(m.content) for m in conversation.messages)


@given(turns=st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=4), limit=st.integers(1, 5))
def test_prompts_are_read_as_they_were_written_and_put_into_the_template(
    folder: Path, turns: list[list[str]], limit: int
) -> None:
    rows: list[object] = [{"id": f"p{i}", "turns": some} for i, some in enumerate(turns)]
    path = write(folder / "drawn.jsonl", rows)
    assert benchmarks.file_prompts(path, name="drawn") == tuple(
        Prompt(f"p{i}", tuple(some)) for i, some in enumerate(turns)
    )
    loaded = benchmarks.load(replace(CONFIG, template="Q: {turn} {x}", limit=limit), root=folder)
    assert loaded.total == len(turns)
    assert len(loaded.prompts) == min(limit, len(turns))
    for prompt in loaded.prompts:
        assert prompt.turns == tuple(f"Q: {turn} {{x}}" for turn in turns[int(prompt.id[1:])])


@given(rows=st.lists(PROMPT | json_values, min_size=1, max_size=3))
def test_any_row_is_a_prompt_or_one_line_with_the_place(folder: Path, rows: list[object]) -> None:
    path = write(folder / "near_prompts.jsonl", rows)
    prompts, refusal = outcome(lambda: benchmarks.file_prompts(path, name="drawn"))
    if prompts is None:
        assert str(path) in refusal
        return
    assert len({p.id for p in prompts}) == len(prompts) == len(rows)
    assert all(turn.strip() and is_unicode(turn) for prompt in prompts for turn in prompt.turns)


@given(
    row=st.dictionaries(st.sampled_from(["question", "tests", "note"]), CONTENTS, max_size=3),
    turns=st.lists(
        st.sampled_from(
            ["question", "{question}", "{question}[ {tests}]", "[{note}] {question}", "note", "{", "[]{x}"]
        ),
        min_size=1,
        max_size=2,
    ),
)
def test_any_row_of_the_hub_fills_the_turns_or_is_one_line_with_the_place(
    row: dict[str, object], turns: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "hub_rows", lambda *_, **__: ([row], "c0ffee"))
        result, refusal = outcome(lambda: benchmarks.hub_prompts(replace(CONFIG, turns=tuple(turns))))
    if result is None:
        assert refusal.startswith("owner/drawn, row 0")
        return
    ((prompt,), _) = result
    assert prompt.turns
    assert all(turn.strip() and is_unicode(turn) for turn in prompt.turns)
