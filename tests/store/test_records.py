"""Atomic files, run identity, provenance without private paths."""

import errno
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import benchmark, record
from specauf_cli.config import compose
from specauf_cli.errors import InputError
from specauf_cli.store import files, layout, provenance, records
from specauf_cli.types import Trace


def test_atomic_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    files.write_json(path, {"n": 1})

    def fail_half_way() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert files.read_json(path) == {"n": 1}
    assert os.listdir(path.parent) == ["x.json"]


def test_no_space_left_is_one_line_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"n": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        files.write_json(path, {"n": 2})
    assert "\n" not in str(caught.value)
    assert files.read_json(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    with files.atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
        assert not list(tmp_path.glob("*/a")), "a search for whole folders does not find it"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def replace_it() -> None:
        with files.atomic_folder(path) as temporary:
            (temporary / "b").write_text("2")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*x: No space left on device"):
            replace_it()
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "a"]
    replace_it()
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "b"]


def test_of_two_private_files_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "own" / "key"
    files.create_private(path, b"first")
    files.create_private(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o077 == 0
    assert os.listdir(path.parent) == ["key"]


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{\n "a": 1,\n "b" 2\n}')
    with pytest.raises(InputError, match=r"x\.json:3"):
        files.read_json(path)


def test_pretty_is_json_and_keeps_lists_of_numbers_on_one_line() -> None:
    value = {"traces": [{"accepted": list(range(60)), "prompt_id": "é"}, {"accepted": [], "prompt_id": "b"}], "x": None}
    text = files.pretty(value)
    assert json.loads(text) == value
    assert len(text.splitlines()) < 12


def run_id(*overrides: str, target: str = "t", data: str = "d") -> str:
    return records.run_id(compose.compose(["profile=smoke", *overrides]), target=target, data=data)


def test_run_id_follows_what_determines_the_weights_and_nothing_else() -> None:
    base = run_id()
    assert base == run_id("threads=1", "device=cpu", "runs=elsewhere", "evaluation.max_new_tokens=9", "benchmark=all")
    changed = [
        run_id("seed=1"),
        run_id("objective=decay"),
        run_id("trainer.steps=25"),
        run_id("backbone.block_size=8", "backbone.proposals=7"),
        run_id("objective=decay", "objective.base.gamma=4"),
        run_id(target="other"),
        run_id(data="other"),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_commands_hide_paths() -> None:
    words = ["train", "data_root=/home/me/data", "data.path=/home/me/x.jsonl", "runs=/tmp/r", "seed=1"]
    assert provenance.command_line(words) == "specauf train data_root=DIR data.path=PATH runs=RUNS seed=1"
    added = ["train", "++data.path=/home/me/x.jsonl", "+runs=/tmp/r", "+init=/home/me/run", "+target.path=/home/me/q"]
    assert provenance.command_line(added) == "specauf train ++data.path=PATH +runs=RUNS +init=RUN +target.path=DIR"


def test_an_answer_of_one_token_has_no_round_and_is_no_damage(tmp_path: Path) -> None:
    """The pass over the prompt gave the end of turn: nothing was drafted, and no definition of tau counts it."""
    short = Trace("p", 0, (), 15, 1, ended=True)
    result = benchmark("gsm8k", [[1], [2]])
    whole = record("auf", [replace(result, traces=(*result.traces, short))])
    path = records.save_record(whole, tmp_path)
    assert records.load_record(path) == whole
    path.write_text(path.read_text().replace('"tokens": 1,', '"tokens": 2,'))
    with pytest.raises(InputError, match=r"benchmarks\.0\.traces: impossible rounds of p; delete it and measure again"):
        records.load_record(path)


COMMITTED = sorted((Path(__file__).parents[2] / "results" / "records").rglob("*.json"))


def test_committed_records_are_written_as_they_were_read(tmp_path: Path) -> None:
    assert len(COMMITTED) > 100
    for path in COMMITTED:
        assert records.save_record(records.load_record(path), tmp_path).read_bytes() == path.read_bytes(), path


def test_keys_of_another_version_survive(tmp_path: Path) -> None:
    path = records.save_record(record("auf", [benchmark("gsm8k", [[1]])]), tmp_path)
    raw = json.loads(path.read_text())
    raw["training"]["code"]["began"] = {"commit": "old", "dirty": False}
    raw["target"]["taps"] = [1, 2]
    raw["training"]["data"]["examples"] = 3
    path.write_text(json.dumps(raw))
    loaded = records.load_record(path)
    assert loaded.training.code.began == records.CodeState(commit="old", dirty=False)
    assert json.loads(records.save_record(loaded, tmp_path).read_text()) == raw


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("seed",), True, "seed: Input should be a valid integer"),
        (("training",), {}, "training.last: Field required"),
        (("training", "code", "dirty"), "no", "training.code.dirty: Input should be a valid boolean"),
        (("training", "data", "examples"), "x", "training.data.examples: Input should be a valid integer"),
        (("heldout", "id_valid"), [1], "heldout: sums for other numbers of examples"),
        (("heldout", "valid"), [-1], "heldout.valid.0: Input should be greater than or equal to 0"),
        (("benchmarks",), [], "it measured nothing"),
        (("benchmarks", 0, "traces"), [], "gsm8k: no requests"),
        (("benchmarks", 0, "audit", "requests"), 1.5, "benchmarks.0.audit.requests: Input should be a valid integer"),
        (("benchmarks", 0, "traces", 0, "accepted"), [16], "benchmarks.0.traces: impossible rounds of gsm8k-000"),
        (("config", "profile"), {"name": "x"}, "config.profile.text is missing"),
    ],
)
def test_what_no_evaluation_can_have_written_is_named_by_its_key(
    tmp_path: Path, keys: tuple[str | int, ...], value: object, says: str
) -> None:
    path = records.save_record(record("auf", [benchmark("gsm8k", [[1]])]), tmp_path)
    raw: Any = json.loads(path.read_text())
    inner = raw
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=re.escape(f"is not a complete run record: {says}")) as caught:
        records.load_record(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_environment_names_no_machine() -> None:
    import getpass
    import socket

    text = repr(provenance.environment("cpu", 2)) + repr(provenance.code_state())
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}/" not in text


def test_changes_of_the_code_are_told_apart(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=tmp_path, check=True)

    def changes() -> str:
        return provenance._changes(tmp_path, ["code"])

    (tmp_path / "code").mkdir()
    old, new = tmp_path / "code" / "old.py", tmp_path / "code" / "new.py"
    old.write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    none = changes()
    (tmp_path / "elsewhere.txt").write_text("x")
    assert changes() == none
    old.write_text("a = 2\n")
    one = changes()
    new.write_text("b = 1\n")
    two = changes()
    new.write_text("b = 2\n")
    three = changes()
    assert len({none, one, two, three}) == 4
    new.write_text("b = 1\n")
    assert changes() == two


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ({"dirty": True, "changes": "a"}, {"dirty": True, "changes": "a"}, ""),
        ({"dirty": True, "changes": "a"}, {"dirty": True, "changes": "b"}, "the code is another one now"),
        ({"dirty": False}, {"dirty": True, "changes": "b"}, "the code is another one now"),
        ({"dirty": True}, {"dirty": True, "changes": "b"}, "its name does not cover the code"),
        ({"dirty": False}, {"dirty": False}, ""),
    ],
)
def test_a_finished_run_says_whether_the_code_is_another_one(
    monkeypatch: pytest.MonkeyPatch, then: dict[str, Any], now: dict[str, Any], says: str
) -> None:
    commit = {"version": "1", "commit": "c"}
    monkeypatch.setattr(layout, "code_state", lambda: {**commit, **now})
    said = layout.other_code({**commit, **then})
    assert says in said
    assert bool(said) == bool(says)


def test_foreign_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(InputError, match="not a run record"):
        records.load_record(path)
    path.write_text('{"schema": 1, "benchmarks": []}')
    with pytest.raises(InputError, match="not a complete run record"):
        records.load_record(path)
