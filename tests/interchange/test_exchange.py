"""Runs out and in by the command line: export, its model card, import, measuring and fine-tuning what came in."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.commands import specauf
from helpers.hub import edit
from specauf_cli.errors import InputError
from specauf_cli.interchange import formats
from specauf_cli.interchange.card import card
from specauf_cli.store import files, records

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.fixture(scope="module")
def out(table: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the smoke table's target and AUF run, exported to ``out/hf``; and the run's name."""
    folder = tmp_path_factory.mktemp("exchange")
    full = [p for p in table[0].glob("runs/dflash-auf-tiny-*/records/*.json") if is_full(json.loads(p.read_text()))]
    record = min(full, key=lambda p: p.stat().st_mtime)  # the table's own; other tests measure in its folder too
    run = record.parent.parent
    for name in ("targets", "trajectories", run.name):  # other tests use the table's folder too
        shutil.copytree(table[0] / "runs" / name, folder / "runs" / name)
    for other in (folder / "runs" / run.name / "records").glob("*.json"):
        if other.name != record.name:
            other.unlink()
    assert specauf(folder, "export", "--run", run.name, "--out", "out/hf").stdout == "out/hf\n"
    return folder, run.name


def is_full(record: dict[str, Any]) -> bool:
    """Measured with the smoke profile's own settings on all of its benchmarks."""
    settings = record["config"]["evaluation"]
    return len(record["benchmarks"]) == 12 and (settings["mode"], settings["max_new_tokens"]) == ("replay", 16)


@pytest.fixture(scope="module")
def imported(out: tuple[Path, str]) -> Path:
    folder, _ = out
    done = specauf(folder, "import", "out/hf", "profile=smoke")
    assert "taps layers 0, 1, 2 of 0..3 (decoder layers counted from 0" in done.stderr
    return folder / done.stdout.strip()


def taus(record: dict[str, Any]) -> dict[tuple[str, float], Any]:
    return {(b["benchmark"], b["temperature"]): b["traces"] for b in record["benchmarks"]}


def test_the_model_card_has_what_was_measured_and_how_it_was_made(out: tuple[Path, str]) -> None:
    folder, run = out
    card = (folder / "out" / "hf" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = json.loads((folder / "runs" / run / "run.json").read_text())
    assert yaml.safe_load(front) == {
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", "dflash", "specauf"],
    }
    assert text.count("| 0 | 2 | 1.") == text.count("| 1 | 2 | 1.") == 6, "six benchmarks at two temperatures"
    assert "completion tokens / verification rounds" in text
    for said in (run, about["command"], "tiny Qwen3", "AUF", files.file_sha256(folder / "out/hf/model.safetensors")):
        assert said in text
    assert str(folder) not in card


@pytest.mark.parametrize(
    ("path", "base", "said"),
    [("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"), ("/home/me/x", None, "a local folder")],
)
def test_the_model_card_names_a_target_of_the_hub_and_no_folder(
    out: tuple[Path, str], path: str, base: str | None, said: str
) -> None:
    folder, run = out
    about, config = (json.loads((folder / "runs" / run / n).read_text()) for n in ("run.json", "drafter/config.json"))
    about["config"]["target"]["path"] = path
    text = card(about, config, [], layout="hf", dtype="fp32")
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == base
    assert f"- target: tiny Qwen3, {said}, weights" in text
    assert "/home/me" not in text


def test_a_run_that_was_not_measured_says_so(out: tuple[Path, str], tmp_path: Path) -> None:
    folder, run = out
    shutil.copytree(folder / "runs" / run, tmp_path / "runs" / run)
    shutil.rmtree(tmp_path / "runs" / run / "records")
    specauf(tmp_path, "export", "--out", "x", "--dtype", "bf16", "--format", "vllm", "--verifier", "ORG/NAME")
    assert "Not measured." in (tmp_path / "x" / "README.md").read_text()
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "ORG/NAME",
        "architectures": ["Qwen3ForCausalLM"],
    }


def test_the_target_trained_here_is_named_for_vllm(out: tuple[Path, str], tmp_path: Path) -> None:
    folder, run = out
    specauf(folder, "export", "--run", run, "--format", "vllm", "--out", str(tmp_path / "x"))
    named = json.loads((tmp_path / "x" / "config.json").read_text())["speculators_config"]["verifier"]["name_or_path"]
    assert Path(named).is_absolute(), "vLLM is started somewhere else"
    assert (Path(named) / "model.safetensors").is_file()
    relative = os.path.relpath(named, folder)
    specauf(folder, "export", "--run", run, "--format", "vllm", "--out", str(tmp_path / "y"), "--verifier", relative)
    again = json.loads((tmp_path / "y" / "config.json").read_text())["speculators_config"]["verifier"]["name_or_path"]
    assert again == named


def test_nothing_is_overwritten_and_nothing_is_left_half(
    out: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = out
    again = specauf(folder, "export", "--run", run, "--out", "out/hf", check=False)
    assert again.returncode == 2
    assert "exists and is not an empty folder; nothing is overwritten" in again.stderr
    (folder / "out" / "empty").mkdir()
    specauf(folder, "export", "--run", run, "--out", "out/empty")

    def fail(*_: Any, **__: Any) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(formats, "write_json", fail)
    before = sorted((folder / "out").iterdir())
    assert "no space left" in specauf(folder, "export", "--run", run, "--out", "out/new", check=False).stderr
    assert sorted((folder / "out").iterdir()) == before


def test_an_imported_run_is_measured_like_the_one_it_came_from(out: tuple[Path, str], imported: Path) -> None:
    folder, run = out
    weights = "drafter/model.safetensors"
    assert (imported / weights).read_bytes() == (folder / "runs" / run / weights).read_bytes()
    specauf(folder, "eval", "--run", imported.name)
    (record,) = (json.loads(p.read_text()) for p in (imported / "records").glob("*.json"))
    (original,) = (json.loads(p.read_text()) for p in (folder / "runs" / run / "records").glob("*.json"))
    assert taus(record) == taus(original)
    assert record["heldout"] == original["heldout"]
    assert (record["objective"], record["training"]["data"]["name"]) == ("imported", "unknown, trained elsewhere")
    assert record["training"]["imported"]["source"] == "hf"
    assert str(folder) not in json.dumps(record)
    shown = specauf(folder, "show", imported.name).stdout
    assert "imported, seed 0" in shown
    assert "finished, imported from hf" in shown


def test_imported_runs_are_listed_measured_or_not(out: tuple[Path, str], imported: Path, tmp_path: Path) -> None:
    folder, run = out
    listed = specauf(folder, "ls").stdout.splitlines()
    (line,) = (x for x in listed if x.startswith(imported.name))
    assert line.startswith(f"{imported.name}  imported from hf  ")
    assert "imported" not in next(x for x in listed if x.startswith(run))
    shutil.copytree(imported, tmp_path / "runs" / imported.name)
    shutil.rmtree(tmp_path / "runs" / imported.name / "records", ignore_errors=True)
    assert specauf(tmp_path, "ls").stdout == f"{imported.name}  imported from hf  not measured\n"


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
def test_the_export_that_serve_command_prints_is_one_that_works(out: tuple[Path, str], backend: str) -> None:
    folder, run = out
    export, serve = specauf(folder, "serve-command", "--run", run, "--backend", backend).stdout.splitlines()
    words = shlex.split(export)
    assert words[:2] == ["specauf", "export"]
    written = folder / specauf(folder, *words[1:]).stdout.strip()
    assert (written / "model.safetensors").is_file()
    again = specauf(folder, "serve-command", "--run", run, "--backend", backend).stdout
    assert again == f"{serve}\n", "what is there is not exported again"
    assert str(written.relative_to(folder)) in serve
    away = specauf(
        written, "serve-command", "--run", run, f"runs={folder / 'runs'}", "--drafter", ".", "--backend", backend
    )
    assert str(folder / "runs" / "targets") in away.stdout


def test_medusa_heads_go_out_and_come_back(out: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(out[0] / "runs" / "targets", tmp_path / "runs" / "targets")
    words = ("train", "profile=smoke", "backbone=medusa", "objective=auf", "target.taps=last", "trainer.steps=2")
    run = Path(specauf(tmp_path, *words).stdout.strip()).name
    export, serve = specauf(tmp_path, "serve-command", "--run", run, "--backend", "vllm").stdout.splitlines()
    written = tmp_path / specauf(tmp_path, *shlex.split(export)[1:]).stdout.strip()
    speculative = json.loads(shlex.split(serve)[shlex.split(serve).index("--speculative-config") + 1])
    assert speculative == {"method": "medusa", "model": str(written), "num_speculative_tokens": 15}
    assert "Its `lm_head.weight` is a copy of the target's." in (written / "README.md").read_text()
    came = specauf(tmp_path, "import", str(written), "profile=smoke")
    assert "lm_head.weight: the target's own, bit for bit, so left out" in came.stderr
    assert "medusa, block size 16; taps the target's last hidden state" in came.stderr
    weights = "drafter/model.safetensors"
    assert (tmp_path / came.stdout.strip() / weights).read_bytes() == (tmp_path / "runs" / run / weights).read_bytes()
    served = shlex.split(serve)  # vllm serve TARGET ...
    target = shutil.copytree(tmp_path / served[served.index("serve") + 1], tmp_path / "target")
    specauf(tmp_path, "export", "--run", run, "--format", "vllm", "--out", "again", "target.path=target")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()
    edit(target, lambda c: c.update(rms_norm_eps=1e-5))
    for more, says in (
        ((), f"--format hf: {run} is a Medusa drafter, which vLLM reads"),
        (("target.path=target",), "target.path=target: only --format vllm needs the target"),
        (("--format", "vllm", "--verifier", "a/b"), "--verifier a/b: the layout of Medusa heads names no target"),
        (("--format", "vllm", "target.path=target"), f"run {run} was trained for target "),
    ):
        done = specauf(tmp_path, "export", "--run", run, "--out", "other", *more, check=False)
        assert done.returncode == 2
        assert says in done.stderr
        assert not (tmp_path / "other").exists()


def test_the_name_of_an_imported_run_covers_its_weights(out: tuple[Path, str], imported: Path, tmp_path: Path) -> None:
    folder, _ = out
    specauf(folder, "export", "--run", imported.name, "--format", "vllm", "--out", str(tmp_path / "same"))
    again = specauf(folder, "import", str(tmp_path / "same"), "profile=smoke")
    assert folder / again.stdout.strip() == imported, "another layout, the same drafter"
    assert "imported already" in again.stderr
    shutil.copytree(folder / "out" / "hf", tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    save_file(tensors | {"norm.weight": tensors["norm.weight"] + 1}, tmp_path / "other" / "model.safetensors")
    other = specauf(folder, "import", str(tmp_path / "other"), "profile=smoke").stdout.strip()
    assert folder / other != imported
    shutil.rmtree(folder / other)


def test_what_the_hub_gave_is_named_by_its_commit(out: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = out
    snapshot = folder / "hub" / "snapshots" / "0123abc"
    shutil.copytree(folder / "out" / "hf", snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    made = folder / specauf(folder, "import", "ORG/NAME", "profile=smoke", "seed=1").stdout.strip()
    about = json.loads((made / "run.json").read_text())
    assert (about["imported"]["source"], about["imported"]["commit"]) == ("ORG/NAME", "0123abc")
    assert about["command"] == "specauf import ORG/NAME profile=smoke seed=1"


def test_an_imported_run_is_fine_tuned_under_a_name_of_its_own(out: tuple[Path, str], imported: Path) -> None:
    folder, run = out
    said = specauf(folder, "import", "out/hf", "profile=smoke").stderr.splitlines()
    command = next(line for line in said if line.startswith("fine-tune it: specauf "))
    command = shlex.split(command)[3:]
    still = ["trainer.lr=1e-30", "trainer.steps=2"]  # a step so small that it changes no weight
    tuned = folder / specauf(folder, *command, *still).stdout.strip()
    assert tuned.name.startswith("dflash-auf-")
    assert tuned.name != run
    ours, theirs = (load_file(f / "drafter" / "model.safetensors") for f in (tuned, imported))
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
    about = json.loads((tuned / "run.json").read_text())
    assert about["inputs"]["init"] == files.file_sha256(imported / "drafter" / "model.safetensors")
    assert f"init={imported.name}" in about["command"]
    fresh = specauf(folder, "train", "profile=smoke", "objective=auf", *still).stdout.strip()
    assert folder / fresh != tuned, "the same settings from random weights are another run"
    scored = specauf(folder, "eval", "--run", tuned.name, "--benchmarks", "offline_chat", "evaluation.max_new_tokens=8")
    assert "Chat (offline)" in scored.stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("import", "out/hf", "profile=smoke", "backbone.layers=2"), "the checkpoint decides this"),
        (("import", "nowhere", "profile=smoke"), "'nowhere' is neither a folder nor a hub id"),
        (("import", "out/hf", "profile=smok"), "Did you mean 'smoke'?"),
        (("import", "profile=smoke"), "specauf import PATH_OR_HUB_ID"),
        (("import", "out/hf"), "its hidden_size is 32, the target's 128"),
        (("export", "--out", "x", "--format", "vlm"), "--format 'vlm' is none of hf, vllm. Did you mean 'vllm'?"),
        (("export", "--out", "x", "--dtype", "fp16"), "--dtype 'fp16' is none of fp32, bf16"),
        (("export", "--out", "x", "--verifier", "a/b"), "only --format vllm names its target"),
        (
            ("export", "--out", "x", "--format", "vllm", "--verifier", "no/such/place"),
            "--verifier 'no/such/place' is neither",
        ),
        (
            ("export", "--out", "x", "--format", "vllm", "--verifier", ""),
            "--verifier '' is neither a folder with config.json",
        ),
        (("export", "--out", "x", "--run", "nosuch"), "no run 'nosuch'"),
        (("export", "--out", "x", "--run", ""), "no run ''"),
        (("train", "profile=smoke", "init=nosuch"), "no run 'nosuch'"),
        (("train", "profile=smoke", "trainer.steps=0"), "trainer.steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(
    out: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    folder, _ = out
    if words == ("import", "out/hf"):  # the target of the default profile would be trained first
        words = ("import", "out/hf", "profile=smoke", "target.pretrain.hidden_size=128", "target.pretrain.steps=1")
    done = specauf(folder, *words, check=False)
    assert done.returncode == 2
    assert problem in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("specauf: ")]) == 1


def test_a_drafter_that_does_not_fit_starts_no_run(out: tuple[Path, str], imported: Path) -> None:
    folder, _ = out
    before = {p.name for p in (folder / "runs").iterdir()}
    words = ("train", "profile=smoke", f"init={imported.name}", "backbone.block_size=8", "backbone.proposals=7")
    assert "its block size is 16, here it is 8" in specauf(folder, *words, check=False).stderr
    new = {p.name for p in (folder / "runs").iterdir()} - before
    assert not any((folder / "runs" / name / "run.json").exists() for name in new)


def test_a_name_without_given_weights_is_what_it_always_was() -> None:
    from specauf_cli.config import compose

    config = compose.compose(["profile=smoke"])
    assert "init" not in config.resolved
    assert records.run_id(config, target="t", data="d") == records.run_id(config, target="t", data="d", init=None)
    assert records.run_id(config, target="t", data="d") != records.run_id(config, target="t", data="d", init="w")


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("drafter/config.json", []),
        ("drafter/config.json", ["dflash_config"]),
        ("drafter/config.json", ["specauf", "weights"]),
        ("drafter/config.json", ["rope_theta"]),
        ("run.json", ["config", "target", "title"]),
        ("run.json", ["config", "data", "source"]),
    ],
)
def test_a_damaged_run_is_not_exported(out: tuple[Path, str], tmp_path: Path, file: str, keys: list[str]) -> None:
    source = next(f.parent for f in (out[0] / "runs").glob("*/finished.json"))
    folder = shutil.copytree(source, tmp_path / "runs" / source.name)
    content = json.loads((folder / file).read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part.pop(keys[-1]) if keys else None
    (folder / file).write_text(json.dumps(content if keys else []))
    words = ("--format", "vllm", "--verifier", "a/b") if "rope_theta" in keys else ()
    done = specauf(tmp_path, "export", "--out", "x", *words, check=False)
    assert done.returncode == 2
    assert f"{file.split('/')[-1]}" in done.stderr
    assert "is damaged; move runs/" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"num_target_layers": 36},
            "was not made for target tiny: its num_target_layers is 36, the target's 4; give its profile",
        ),
        ({"taps": [0, 1, 3]}, "taps layer 3 of 0..3; target_layer_ids count decoder layers from 0"),
    ],
)
def test_a_checkpoint_of_another_target_is_refused_by_what_its_file_says(
    out: tuple[Path, str], tmp_path: Path, change: dict[str, object], says: str
) -> None:
    """Not by settings that came from it, which cannot be given."""
    folder, _ = out
    shutil.copytree(folder / "out" / "hf", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    if "taps" in change:
        config["dflash_config"]["target_layer_ids"] = change["taps"]
    else:
        config |= change
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    done = specauf(folder, "import", str(tmp_path / "other"), "profile=smoke", check=False)
    assert done.returncode == 2
    assert says in done.stderr
