"""A run folder from elsewhere is data: whatever it asks for, opening it runs no code of its own and reads nothing
outside."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import specauf
from specauf_cli.config import compose
from specauf_cli.errors import InputError
from specauf_cli.store import signature, trust

Plant = Callable[..., Path]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A model folder whose code leaves a mark when it is run."""
    folder = tmp_path / "elsewhere" / "model"
    folder.mkdir(parents=True)
    kinds = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Tokenizer", None],
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": kinds}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": kinds, "tokenizer_class": "Tokenizer"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit(99)\n")
    return folder


@pytest.fixture
def plant(table: tuple[Path, str], tmp_path: Path) -> Plant:
    """A finished run as somebody else could hand it over, asking for more than its own settings."""

    def make(*words: str, sign: bool = False) -> Path:
        source = next(f.parent for f in sorted(table[0].glob("runs/dflash-auf-tiny-smoke-s0-*/records")))
        folder = shutil.copytree(source, tmp_path / "runs" / source.name)
        about = json.loads((folder / "run.json").read_text())
        about["overrides"] += words
        if "target=hf" in words:  # and everything else in the folder fits that
            chosen = [w for w in words if w.startswith("target")]
            about["config"]["target"] = compose.compose(["profile=smoke", *chosen]).resolved["target"]
        about["signature"] = signature.sign([about["run"], about["overrides"]]) if sign else about.get("signature")
        (folder / "run.json").write_text(json.dumps(about))
        return folder

    return make


OPENING = [
    ("eval",),
    ("eval", "--benchmarks", "offline_algebra"),
    ("eval", "--every-checkpoint"),
    ("audit",),
    ("doctor", "--run", "RUN"),
    ("doctor", "--dry-run", "--run", "RUN"),
    ("eval", "--backend", "vllm", "--base-url", "http://127.0.0.1:1", "--run", "RUN"),
]
"""Commands that open a run with the settings it was trained with."""

READING = [
    ("show",),
    ("ls",),
    ("compare", "RUN", "RUN"),
    ("export", "--out", "out"),
    ("export", "--format", "vllm", "--out", "out"),
    ("serve-command",),
    ("serve-command", "--backend", "vllm"),
    ("figures", "profile=smoke"),
    ("report", "profile=smoke"),
    ("train", "profile=smoke", "init=RUN", "trainer.steps=1", "trainer.batch_size=10000"),
]
"""Commands that read what a run says of itself, or its weights."""


@pytest.mark.parametrize("words", OPENING, ids=" ".join)
def test_code_of_a_model_is_never_run_for_a_run_folder(
    evil: Path, plant: Plant, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = plant("target=hf", f"target.path={evil}", "target.trust_remote_code=true")
    done = specauf(tmp_path, *(w.replace("RUN", folder.name) for w in words), check=False)
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 2
    assert "run.json asks for 'target.path=" in done.stderr
    assert "give target.path=... on the command line yourself" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", OPENING[:1] + OPENING[3:5], ids=" ".join)
def test_trust_is_given_on_the_command_line_alone(
    evil: Path, plant: Plant, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Even where this user typed it when the run was trained: the model's folder may have changed since."""
    folder = plant("target=hf", f"target.path={evil}", "target.trust_remote_code=true", sign=True)
    done = specauf(tmp_path, *(w.replace("RUN", folder.name) for w in words), check=False)
    assert "asks for 'target.trust_remote_code=true', which runs the code of a model's repository" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_a_run_opens_nothing(evil: Path, plant: Plant, tmp_path: Path, words: tuple[str, ...]) -> None:
    call = "builtins.exec" if words[0] == "train" else "os.system"
    folder = plant(
        "target=hf",
        f"target.path={evil}",
        "target.trust_remote_code=true",
        f"objective.base.credit={call}",
    )
    done = specauf(tmp_path, *(w.replace("RUN", folder.name) for w in words), check=False)
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


CODE = [
    "objective.base.credit=os.system",
    "objective.base={credit:os.system}",
    "++objective={base:{credit:os.system}}",
    "objective.final.credit=os.system",
    "backbone.kind=antigravity.fly",
    "+backbone={kind:antigravity.fly}",
    "objective.base._target_=os.system",
    "objective.base={_target_:os.system,_partial_:true}",
    "+objective.base._args_=[x]",
    "backbone.model._target_=antigravity.fly",
    "+anything.at.all={a:{b:{_target_:os.system}}}",
    "target.trust_remote_code=true",
    "target.trust_remote_code=1",
    "target.trust_remote_code='true'",
    "++target.trust_remote_code=yes",
    "+target={trust_remote_code:true}",
]


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("word", CODE)
def test_what_names_code_is_refused_by_name(plant: Plant, word: str, sign: bool) -> None:
    folder = plant(word, sign=sign)
    with pytest.raises(InputError, match="a run folder cannot ask for that") as caught:
        trust.overrides_of(folder)
    assert word in str(caught.value)


PLACES = [
    "target.path=/etc",
    "data.path=~/secrets",
    "benchmark_root=/var/lib",
    "data.path=../../x",
    "data.hub_id=file:///etc",
    "benchmark=[../../../tmp/x]",
    "backbone.title=${oc.env:HOME}",
    "objective.title='${oc.env:SECRET}'",
    "+x={a:[1,{b:/etc/passwd}]}",
]


@pytest.mark.parametrize("word", PLACES)
def test_places_outside_count_only_where_this_user_typed_them(plant: Plant, tmp_path: Path, word: str) -> None:
    folder = plant(word)
    with pytest.raises(InputError, match="a run folder cannot ask for that"):
        trust.overrides_of(folder)
    shutil.rmtree(folder)
    assert word in trust.overrides_of(plant(word, sign=True))


def test_an_own_run_is_opened_as_it_was_trained(plant: Plant, tmp_path: Path) -> None:
    folder = plant()
    about = json.loads((folder / "run.json").read_text())
    assert about["signature"]
    words = [o for o in about["overrides"] if not o.startswith("runs=")]
    assert trust.overrides_of(folder) == words
    inside = f"data.path={folder.parent}/x"
    shutil.rmtree(folder)
    assert trust.overrides_of(plant(inside))[-1] == inside


def test_the_command_line_stands_in_for_what_is_refused(plant: Plant) -> None:
    folder = plant("target.path=/etc", "target.trust_remote_code=true", "trainer.lr=0.1")
    given = ["target.path=/etc", "+target.trust_remote_code=false"]
    kept = trust.overrides_of(folder, given)
    assert "trainer.lr=0.1" in kept
    assert not any(w.startswith("target.") for w in kept)


def test_a_run_whose_words_were_altered_is_not_ones_own(plant: Plant) -> None:
    folder = plant("data.path=/tmp/a", sign=True)
    about = json.loads((folder / "run.json").read_text())
    about["overrides"][-1] = "data.path=/tmp/b"
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"data\.path=/tmp/b"):
        trust.overrides_of(folder)


def test_a_page_from_elsewhere_is_not_opened(table: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(table[0] / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "tables" / "smoke.json"
    tables: dict[str, Any] = json.loads(path.read_text())
    (tmp_path / "page.yaml").write_text("name: page\ntitle: ${oc.env:HOME}\n")
    tables["dflash"]["page"] = str(tmp_path / "page.yaml")
    path.write_text(json.dumps(tables))
    done = specauf(tmp_path, "report", "profile=smoke", check=False)
    assert "that was not written by you: make the table again" in done.stderr
    tables["dflash"] |= {"page": "table2", "records": ["../../secret.json"]}
    path.write_text(json.dumps(tables))
    assert "names a record outside runs/" in specauf(tmp_path, "report", "profile=smoke", check=False).stderr


def test_the_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert not signature.is_own(["a"], "0" * 64), "no key yet"
    first = signature.sign(["a"])
    assert signature.is_own(["a"], first)
    assert signature.sign(["a"]) == first
    assert not signature.is_own(["b"], first)
    assert not signature.is_own(["a"], None)
    key = tmp_path / "state" / "specauf" / "key"
    assert key.stat().st_mode & 0o077 == 0
    assert [p.name for p in key.parent.iterdir()] == ["key"]
    key.unlink()
    assert not signature.is_own(["a"], first)
    assert signature.sign(["a"]) != first


def test_without_a_place_for_the_key_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert signature.sign(["a"]) is None
    assert not signature.is_own(["a"], None)
    assert os.listdir(tmp_path) == ["file"]


def test_a_servers_command_line_trusts_code_only_where_the_user_says_so(plant: Plant, tmp_path: Path) -> None:
    plant("target=hf", "target.path=/models/x", "target.trust_remote_code=true")
    assert "run.json asks for 'target.path=/models/x'" in specauf(tmp_path, "serve-command", check=False).stderr
    done = specauf(tmp_path, "serve-command", "target.path=/models/y")
    assert "--model-path /models/y" in done.stdout
    assert "--trust-remote-code" not in done.stdout
    assert "give that here too if you trust the target's code" in done.stderr
    given = specauf(tmp_path, "serve-command", "target.path=/models/y", "target.trust_remote_code=true")
    assert "--trust-remote-code" in given.stdout
