"""Corpora larger than memory: the same conversations, examples and weights, in memory that does not grow."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import tempfile
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.trained import train_one
from specauf_cli.config import compose
from specauf_cli.config.schema import DataConfig
from specauf_cli.data import chat as chats
from specauf_cli.data import conversations as cv
from specauf_cli.data import spool
from specauf_cli.data.chat import Chat, encode
from specauf_cli.data.spool import CONVERSATIONS, EXAMPLES, Names, Spool, Stored, lengths, select
from specauf_cli.errors import InputError, Interrupted
from specauf_cli.models.target import Target
from specauf_cli.store import layout
from specauf_cli.training.features import Features
from specauf_cli.types import Conversation, Example, Message, Prompt, PromptSet

CONF = Path(__file__).parents[2] / "conf" / "data"
JSONL = DataConfig(**yaml.safe_load((CONF / "jsonl.yaml").read_text()))
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
NAME = st.text(max_size=4)  # an id may hold half a surrogate pair
TALKS = st.builds(Conversation, NAME, st.lists(st.builds(Message, TEXT, TEXT), max_size=3).map(tuple), NAME)
DRAWN = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes to a file, in groups that end in the middle of it."""
    monkeypatch.setattr(spool, "LIMIT", 0)
    monkeypatch.setattr(spool, "WRITTEN", 7)
    monkeypatch.setattr(spool, "READ", 6)
    monkeypatch.setattr(chats, "READ", 3)


def stored(items: Sequence[Any], form: Any) -> Stored[Any]:
    spooled = Spool(form, "drawn")
    for item in items:
        spooled.append(item)
    rows = spooled.rows()
    assert isinstance(rows, Stored)
    return rows


def check_same(rows: Stored[Any], items: Sequence[Any], order: Sequence[int]) -> None:
    assert len(rows) == len(items)
    assert [rows[i] for i in range(len(items))] == list(rows) == list(items)
    assert rows[-1] == items[-1]
    assert list(rows[1:3]) == list(items[1:3])
    assert list(select(rows, order)) == [items[i] for i in order]
    assert list(select(select(rows, order), order)) == [items[order[i]] for i in order]
    with pytest.raises(IndexError):
        rows[len(items)]


@settings(max_examples=15)
@given(items=st.lists(TALKS, min_size=1, max_size=20), data=st.data())
def test_stored_conversations_are_the_same(items: list[Conversation], data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "LIMIT", 700)
        patch.setattr(spool, "WRITTEN", 4)
        patch.setattr(spool, "READ", 3)
        long = Message("user", "x" * 700)
        items = [replace(c, messages=(long,)) if i == len(items) // 2 else c for i, c in enumerate(items)]
        check_same(stored(items, CONVERSATIONS), items, data.draw(st.permutations(range(len(items)))))


@settings(max_examples=15)
@given(items=st.lists(st.tuples(NAME, DRAWN), min_size=1, max_size=20), data=st.data())
def test_stored_examples_are_the_same(items: list[Any], data: st.DataObject) -> None:
    examples = [Example(name, tuple(t for t, _ in both), tuple(s for _, s in both)) for name, both in items]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "LIMIT", 0)
        patch.setattr(spool, "WRITTEN", 4)
        patch.setattr(spool, "READ", 3)
        rows = stored(examples, EXAMPLES)
        check_same(rows, examples, data.draw(st.permutations(range(len(items)))))
        assert list(lengths(rows)) == list(lengths(examples)) == [len(e.tokens) for e in examples]


def test_the_file_is_gone_once_it_is_mapped_and_when_reading_fails(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    talk = Conversation("c", (Message("user", "Hi"), Message("assistant", "Hello.")))
    rows = stored([talk] * 30, CONVERSATIONS)
    assert f"drawn: more than 0 MB, kept in a temporary file below {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert list(rows) == [talk] * 30
    unfinished = Spool(CONVERSATIONS, "drawn")
    unfinished.append(talk)
    assert list(tmp_path.glob("specauf-*/rows.arrow"))
    del unfinished
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"drawn: cannot write a temporary file below .*none: .*TMPDIR=FOLDER"):
        stored([talk], CONVERSATIONS)


@given(names=st.lists(st.text("ab#2\ud83d", max_size=3), max_size=30))
def test_names_are_new_once(names: list[str]) -> None:
    with closing(Names()) as known:
        assert [known.add(n) for n in names] == [n not in names[:i] for i, n in enumerate(names)]


@given(prompts=st.lists(st.sampled_from("abcdefgh"), max_size=25), count=st.integers(1, 9), seed=st.integers(0, 3))
def test_the_first_prompts_by_hash_are_those_of_a_full_sort(prompts: list[str], count: int, seed: int) -> None:
    talks = [Conversation("", (Message("user", p), Message("assistant", "ok"))) for p in prompts]
    by_hash = sorted(set(prompts), key=lambda p: hashlib.sha256(f"{seed}\n{p}".encode()).digest())[:count]
    first = cv._first_by_hash(talks, count, seed)
    assert [prompts[i] for _, i in sorted(first.items())] == by_hash
    assert sorted(first.values()) == sorted(prompts.index(p) for p in by_hash)


def file_of(path: Path, count: int, *, words: int = 20) -> Path:
    """Conversations of which some share an id, a prompt, or a prompt with a benchmark, and some are dropped."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            turns = [("user", f"Question {i % (count // 2)}"), ("assistant", f"The answer is {i} " * words)]
            turns += [("user", "Why?"), ("assistant", "It follows.")] if i % 3 == 0 else []
            turns = turns[:-1] if i % 11 == 0 else turns
            row = {"messages": [{"role": r, "content": c} for r, c in turns]}
            file.write(json.dumps(row | ({"id": f"c{i % 50}"} if i % 2 else {})) + "\n")
    return path


def test_a_corpus_from_a_file_is_the_one_in_memory(
    tmp_path: Path, target: Target, request: pytest.FixtureRequest
) -> None:
    config = replace(JSONL, path=str(file_of(tmp_path / "talk.jsonl", 150)), heldout=9, seed=4)
    benchmark = [PromptSet("b", "B", (Prompt("p", ("question 7",)),), 1, "x", "jsonl")]

    def everything() -> tuple[Any, ...]:
        train, heldout = cv.load(config, exclude=benchmark)
        examples, counts = encode(target.chat, train, max_length=60)
        assert isinstance(train.conversations, Stored) == isinstance(examples, Stored) == (spool.LIMIT == 0)
        corpora = [(c.name, c.sha256, c.dropped, list(c.conversations)) for c in (train, heldout)]
        return corpora, list(examples), list(counts.items())

    in_memory = everything()
    assert {"in a benchmark", "same prompt as a held-out conversation", "does not end with the assistant"} <= set(
        in_memory[0][0][2]
    )
    assert any("#2" in c.id for c in in_memory[0][0][3])
    request.getfixturevalue("small")
    assert everything() == in_memory


@pytest.mark.parametrize("features", ["online", "disk"])
def test_training_from_a_file_is_bitwise_that_from_memory_and_resumes(
    features: str, tmp_path: Path, target: Target, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = cv.load_jsonl(file_of(tmp_path / "talk.jsonl", 80, words=5))
    config = compose.compose(
        ["profile=smoke", "trainer.steps=12", "trainer.save_every=5", f"trainer.features={features}"]
    )

    def trained(name: str, stop_at: int | None = None) -> bytes:
        examples, _ = encode(target.chat, corpus, max_length=128)
        assert isinstance(examples, Stored) == (spool.LIMIT == 0)
        source = Features(target, examples, config.trainer, tmp_path / "features")
        read, calls = source.of, 0

        def stopping(batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return read(batch)

        source.of = stopping  # type: ignore[method-assign]
        if stop_at is not None:
            with pytest.raises(Interrupted):
                train_one(config, target, examples, source, tmp_path / name, "x")
            return b""
        train_one(config, target, examples, source, tmp_path / name, "x")
        return (layout.drafter_of(tmp_path / name) / "model.safetensors").read_bytes()

    in_memory = trained("memory")
    shards = sorted(p.name for p in (tmp_path / "features").rglob("*.safetensors"))
    request.getfixturevalue("small")
    assert trained("file") == in_memory
    trained("cut", stop_at=8)
    assert trained("cut") == in_memory
    assert sorted(p.name for p in (tmp_path / "features").rglob("*.safetensors")) == shards  # found again by content


def test_memory_does_not_grow_with_the_file(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 300 to 1500 conversations of 600 bytes or more: what is held beside the file is numbers for each."""
    monkeypatch.setattr(spool, "LIMIT", 100_000)
    monkeypatch.setattr(spool, "WRITTEN", 50)
    monkeypatch.setattr(spool, "READ", 49)
    monkeypatch.setattr(chats, "READ", 50)
    peaks = []
    for count in (300, 300, 1500):  # the first one imports and fills caches
        config = replace(JSONL, path=str(file_of(tmp_path / f"{count}.jsonl", count, words=30)), heldout=9, seed=4)
        tracemalloc.start()
        train, _ = cv.load(config)
        examples, _ = encode(chat, train, max_length=400)
        held = lengths(examples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(held) == len(examples) > 0.8 * count
    assert Path(config.path or "").stat().st_size > 1500 * 600
    assert (peaks[2] - peaks[1]) / 1200 < 200  # in memory it would be 10,000
