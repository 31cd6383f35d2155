"""Training conversations: both public shapes, what is dropped and counted, bad input, split and subset."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from specauf_cli.config.schema import DataConfig
from specauf_cli.data import conversations as cv
from specauf_cli.data.rows import resolved_commit
from specauf_cli.errors import InputError
from specauf_cli.types import Conversation, Corpus, Message, Prompt, PromptSet

CONF = Path(__file__).parents[2] / "conf" / "data"
PAIR = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def config(name: str = "jsonl", **changes: Any) -> DataConfig:
    return replace(DataConfig(**yaml.safe_load((CONF / f"{name}.yaml").read_text())), **changes)


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def corpus(*prompts: str) -> Corpus:
    made = tuple(
        Conversation(f"c{i}", (Message("user", prompt), Message("assistant", "ok"))) for i, prompt in enumerate(prompts)
    )
    return Corpus("made", made, sha256="x")


def prompt_set(*turns: str) -> PromptSet:
    return PromptSet("b", "B", (Prompt("p", turns),), 1, "x", "jsonl")


@pytest.mark.parametrize(("role", "content"), [("from", "value"), ("role", "content")])
@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize("user", ["human", "user"])
@pytest.mark.parametrize("assistant", ["gpt", "assistant", "chatgpt", "bing", "bard"])
def test_every_public_shape_is_the_same_conversation(
    tmp_path: Path, role: str, content: str, key: str, user: str, assistant: str
) -> None:
    turns = [("system", "be brief"), (user, "hi"), (assistant, "hello"), (user, "bye"), (assistant, " so long\n")]
    path = write(tmp_path / "a.jsonl", {key: [{role: r, content: c} for r, c in turns]})
    (read,) = cv.load_jsonl(path).conversations
    assert [m.role for m in read.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.content for m in read.messages] == [c for _, c in turns]  # untouched, white space included
    assert (read.id, read.source) == ("a-1", "a")


def test_json_array_and_json_lines_read_the_same(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "source": "s", "conversations": PAIR} for i in range(3)]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    write(tmp_path / "b.jsonl", *rows, "")  # a blank line is no row
    array, lines = cv.load_jsonl(tmp_path / "a.json"), cv.load_jsonl(tmp_path / "b.jsonl")
    assert array.conversations == lines.conversations
    assert len(lines.conversations) == 3
    assert lines.sha256 == hashlib.sha256((tmp_path / "b.jsonl").read_bytes()).hexdigest()


def test_folder_is_read_in_order_and_hashed_by_content(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        for name in ("b.jsonl", "sub/c.json", "a.jsonl"):
            write(tmp_path / folder / name, {"id": "same", "conversations": PAIR})
        write(tmp_path / folder / "readme.txt", "not data")
    here, there = cv.load_jsonl(tmp_path / "here"), cv.load_jsonl(tmp_path / "there")
    assert [(c.id, c.source) for c in here.conversations] == [("same", "a"), ("same#2", "b"), ("same#3", "c")]
    assert here.sha256 == there.sha256
    write(tmp_path / "there/a.jsonl", {"id": "other", "conversations": PAIR})
    assert cv.load_jsonl(tmp_path / "there").sha256 != here.sha256


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("", "no turns"),
        ("s", "no turns"),
        ("u a u", "does not end with the assistant"),
        ("a u a", "does not start with the user"),
        ("u u a", "does not alternate"),
        ("u a a", "does not alternate"),
        ("u s a", "system turn not at the front"),
        ("s s u a", "system turn not at the front"),
        ("u E", "empty turn"),
        ("u U", "not valid Unicode"),
    ],
)
def test_unusable_conversations_are_dropped_and_counted(tmp_path: Path, roles: str, reason: str) -> None:
    full = {"s": ("system", "x"), "u": ("human", "x"), "a": ("gpt", "x"), "E": ("gpt", " \n"), "U": ("gpt", "\ud83d")}
    bad = {"conversations": [{"from": full[r][0], "value": full[r][1]} for r in roles.split()]}
    path = write(tmp_path / "a.jsonl", bad, {"conversations": PAIR}, bad)
    read = cv.load_jsonl(path)
    assert read.dropped == {reason: 2}
    assert len(read.conversations) == 1
    with pytest.raises(InputError, match=f"no conversation is left.*2 {reason}"):
        cv.load_jsonl(write(path, bad, bad))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"conversations": [', r"a\.jsonl, line 2: not valid JSON"),
        ("[1]", r"a\.jsonl, line 2: expected a JSON object, found a list"),
        ({"text": "hi"}, r"line 2: no 'conversations' or 'messages' \(it has: text\)"),
        ({"conversations": "hi"}, "line 2: the turns must be a list, found a string"),
        ({"conversations": ["hi"]}, "line 2, turn 1: expected a JSON object"),
        ({"conversations": [{"from": "human"}]}, "line 2, turn 1: no 'content' or 'value'"),
        ({"conversations": [{"value": "hi"}]}, "line 2, turn 1: no 'role' or 'from'"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "unknown role 'asistant'; valid: .*Did you mean 'assis"),
        ({"messages": [{"role": "user", "content": [1]}]}, "turn 1: the content must be a string, found a list"),
        ({"id": [1], "messages": PAIR}, "line 2: 'id' must be a string"),
        ("[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_what_is_not_understood_names_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"conversations": PAIR}, row)
    with pytest.raises(InputError, match=message) as caught:
        cv.load_jsonl(path)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_undecodable_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").write_text(" \n")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps({"conversations": PAIR}).encode() + b'\n{"id": "\xe9"}\n')
    (tmp_path / "broken.json").write_text('[{"conversations": []},\n{"a" 1}]')
    (tmp_path / "data.txt").write_text("x")
    for name, message in {
        "nowhere": "no such file or folder",
        "folder": "no .*jsonl or .*json file",
        "empty.jsonl": "is empty",
        "latin.jsonl": "line 2: not valid JSON .not UTF-8",
        "broken.json": "broken.json, line 2: not valid JSON",
        "data.txt": "unknown kind of file '.txt'; valid: .jsonl, .json",
    }.items():
        with pytest.raises(InputError, match=message):
            cv.load_jsonl(tmp_path / name)


def test_split_shares_no_prompt_is_exact_and_stable() -> None:
    whole = corpus(*[f"Prompt   {i % 30}" if i % 2 else f"prompt {i % 30}\n" for i in range(90)])
    train, held = cv.split_by_prompt(whole, 10, seed=1)
    keys = [{cv.prompt_key(c.messages[0].content) for c in side.conversations} for side in (train, held)]
    assert not keys[0] & keys[1]
    assert len(keys[1]) == len(held.conversations) == 10
    assert train.dropped == {"same prompt as a held-out conversation": 20}
    assert held.dropped == {}
    assert len(train.conversations) + len(held.conversations) + 20 == 90
    assert cv.split_by_prompt(whole, 10, seed=1) == (train, held)
    assert cv.split_by_prompt(whole, 4, seed=1)[1].conversations == held.conversations[:4]
    assert cv.split_by_prompt(whole, 10, seed=2)[1].conversations != held.conversations
    assert len({whole.sha256, train.sha256, held.sha256}) == 3
    assert cv.split_by_prompt(whole, 0, seed=1)[0].conversations == whole.conversations
    for heldout in (30, -1):
        with pytest.raises(InputError, match=r"data\.heldout"):
            cv.split_by_prompt(whole, heldout, seed=1)


def test_take_is_a_prefix_of_a_seeded_permutation() -> None:
    whole = corpus(*map(str, range(50)))
    everything = cv.take(whole, None, seed=3)
    assert sorted(c.id for c in everything.conversations) == sorted(c.id for c in whole.conversations)
    assert cv.take(whole, 7, seed=3).conversations == everything.conversations[:7]
    assert cv.take(whole, 7, seed=3).dropped == {"beyond data.limit": 43}
    assert cv.take(whole, 99, seed=3) == everything != cv.take(whole, None, seed=4)
    with pytest.raises(InputError, match=r"data\.limit"):
        cv.take(whole, 0, seed=3)


def test_benchmark_prompts_are_removed_from_any_user_turn() -> None:
    whole = corpus("keep", "Compute 1  + 1", "also\nkeep")
    second = Conversation("m", (*whole.conversations[0].messages, Message("user", "B"), Message("assistant", "x")))
    whole = replace(whole, conversations=(*whole.conversations, second))
    left = cv.remove_prompts(whole, [prompt_set("compute 1 + 1", "b")])
    assert [c.id for c in left.conversations] == ["c0", "c2"]
    assert left.dropped == {"in a benchmark": 2}
    assert cv.remove_prompts(whole, []) is whole
    assert cv.remove_prompts(whole, [prompt_set("ok")]).conversations == whole.conversations  # the assistant may say it
    with pytest.raises(InputError, match="all 3 conversations are in a benchmark"):
        cv.remove_prompts(corpus("a", "A", "a "), [prompt_set("a")])


def test_load_dispatches_and_names_what_is_missing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", *[{"conversations": [{"role": "user", "content": f"q{i}"}, PAIR[1]]} for i in range(20)]
    )
    train, held = cv.load(config(path=str(path), heldout=5, limit=8), exclude=[prompt_set("Q3")])
    assert (len(train.conversations), len(held.conversations)) == (8, 5)
    assert train.dropped == {"in a benchmark": 1, "beyond data.limit": 6}
    offline_train, offline_held = cv.load(config("offline", limit=12, heldout=6))
    assert (len(offline_train.conversations), len(offline_held.conversations)) == (12, 6)
    for bad, message in [
        (config(path=None), "data.path="),
        (config("sharegpt", hub_id=None), "data.hub_id="),
        (config("offline", limit=None), "data.limit"),
    ]:
        with pytest.raises(InputError, match=message):
            cv.load(bad)


@pytest.fixture
def hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, whatever was imported before: both libraries read the environment at import only."""
    import datasets
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("hub_offline")
def test_hub_rows_of_both_shapes_are_read_by_the_same_rules(tmp_path: Path) -> None:
    # Arrow gives every message all the fields of the file, null where its row had none
    rows = [
        {"id": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"conversations": PAIR},
        {"conversations": PAIR[:1]},
    ]
    write(tmp_path / "set" / "part.json", json.dumps(rows))
    read = cv.load_hub(str(tmp_path / "set"), revision=None, files="part.json")
    assert [(c.id, [m.role for m in c.messages]) for c in read.conversations] == [
        ("x", ["user", "assistant"]),
        ("set-1", ["user", "assistant"]),
    ]
    assert read.dropped == {"does not end with the assistant": 1}
    assert read.sha256 == cv.content_hash(read.conversations)


@pytest.mark.usefixtures("hub_offline")
def test_no_network_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"cannot load 'Aeala/.*data=jsonl data\.path=FILE_OR_FOLDER") as caught:
        cv.load(config("sharegpt"))
    assert "\n" not in str(caught.value)


def test_resolved_commit_is_read_from_the_cache_folder() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    assert resolved_commit([f"/cache/openai___gsm8k/main/0.0.0/{commit}/gsm8k-test.arrow"]) == commit
    assert resolved_commit(["/cache/json/default/0.0.0/f4e89e8750d5d5ffbef2c078bf0ddfed/x.arrow"]) is None


SHARED = Path(os.environ.get("SPECAUF_DATA", "")) / "train"


@pytest.mark.skipif(not os.environ.get("SPECAUF_DATA") or not SHARED.is_dir(), reason="SPECAUF_DATA is not set")
def test_real_conversations_load() -> None:
    path = min(SHARED.glob("*.jsonl"), key=lambda file: file.stat().st_size)
    read = cv.load_jsonl(path)
    assert len(read.conversations) + sum(read.dropped.values()) == len(path.read_bytes().splitlines())
