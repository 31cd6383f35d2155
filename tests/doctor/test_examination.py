"""The doctor: a healthy subject, exit codes, parts that cannot be opened, a dry run without network."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.commands import specauf
from helpers.findings import BACKBONES, Break, Patch, found, only, weights_of
from helpers.hub import publish
from specauf_cli.config import compose
from specauf_cli.data.chat import Chat
from specauf_cli.doctor import examination, subject
from specauf_cli.doctor.subject import FAIL, OUT, WARN, Finding, Subject
from specauf_cli.models.target import Target


@pytest.mark.parametrize("name", BACKBONES)
def test_a_healthy_subject_passes_every_check(healthy: Break, name: str) -> None:
    said = found(healthy(name))
    assert list(said) == list(examination.CHECKS)
    assert {n: f.found for n, f in said.items() if f.verdict != "ok"} == {}
    assert "<|im_start|>user\\n" in said["first prompt"].shown[0]
    assert said["first prompt"].shown[1].startswith("algebra, algebra-prompt-000000, ")


def test_a_part_that_cannot_be_opened_fails_once_and_leaves_the_others_out(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    config = compose.compose(["profile=smoke", f"target.path={tmp_path / 't'}", f"runs={tmp_path}"])
    said = found(Subject(config))
    assert [n for n, f in said.items() if f.verdict == FAIL] == ["target"]
    assert "cannot be loaded" in said["target"].found
    assert [n for n, f in said.items() if f.verdict == OUT] == ["resources", *list(examination.CHECKS)[6:]]
    assert all("\n" not in f.found for f in said.values())


def test_a_zero_mask_row_stops_the_target_with_its_reason(target: Target, tmp_path: Path) -> None:
    broken = weights_of(target)
    broken._embedding.weight[target.chat.mask_id] = 0
    broken.model.save_pretrained(tmp_path / "t")
    target.chat.save(tmp_path / "t")
    config = compose.compose(["profile=smoke", f"target.path={tmp_path / 't'}", f"runs={tmp_path}"])
    assert "is all zero" in found(Subject(config))["target"].found


def test_a_check_that_breaks_off_is_a_failed_one(healthy: Break, monkeypatch: Patch) -> None:
    def broken(_: Subject) -> Finding:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(examination.CHECKS, "leak", broken)
    only(healthy(), "leak", "the check broke off: RuntimeError: two")


def test_exit_codes_and_one_line_per_check(tmp_path: Path, monkeypatch: Patch) -> None:
    done = specauf(tmp_path, "doctor", "profile=smoke")
    lines = [x for x in done.stdout.splitlines() if not x.startswith(" ")]
    assert [x.split()[0] for x in lines[:-1]] == ["ok"] * len(examination.CHECKS)
    assert "random weights, since it is not trained yet" in done.stdout
    assert lines[-1] == f"{len(examination.CHECKS)} checks: {len(examination.CHECKS)} ok"
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    failed = specauf(tmp_path, "doctor", "profile=smoke", "--dry-run", check=False)
    assert failed.returncode == 1
    assert "1 failed" in failed.stdout
    assert specauf(tmp_path, "doctor", "profil=smoke", check=False).returncode == 2
    assert "no run" in specauf(tmp_path, "doctor", "--run", "x", check=False).stderr


def test_a_trained_run_is_checked_with_its_own_target(table: tuple[Path, str]) -> None:
    folder, _ = table
    run = next(f.parent.name for f in folder.glob("runs/dflash-decay-tiny-*/finished.json"))
    printed = specauf(folder, "doctor", "--run", run).stdout
    assert f"{len(examination.CHECKS)} checks: {len(examination.CHECKS)} ok" in printed
    assert "settings fit the target" in printed
    assert "fingerprint" in printed


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_published_target_in_either_precision(tmp_path: Path, chat: Chat, name: str, dtype: str) -> None:
    """Taps are a number and the mask token is a free row; untied and padded, as the large ones are."""
    publish(tmp_path / "model", chat, "qwen3" if name == "dflash" else "llama", tied=False, padding=8)
    words = [
        "target=hf",
        "target.path=model",
        "target.taps=3",
        f"target.dtype={dtype}",
        "data.limit=60",
        "data.heldout=6",
    ]
    done = specauf(tmp_path, "doctor", "profile=smoke", f"backbone={name}", f"trainer.precision={dtype}", *words)
    assert f"{len(examination.CHECKS)} checks: {len(examination.CHECKS)} ok" in done.stdout
    assert f"{'float32' if dtype == 'fp32' else 'bfloat16'}, fingerprint" in done.stdout
    assert "taps 1, 2, 3 of 6 layers" in done.stdout


def test_dry_run_needs_no_network_and_names_what_it_leaves_out(tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subject, "load", refuse)
    words = ["target.path=Some-Org/Some-Model-8B", "data=sharegpt", "benchmark=all", "trainer.steps=10"]
    printed = specauf(tmp_path, "doctor", "--dry-run", *words).stdout
    assert "from the hub: target Some-Org/Some-Model-8B, data " in printed
    left = printed.splitlines()[-2]
    assert all(n in left for n in ("resources", "target", "overlap", "leak", "round trip"))
    offline_ = specauf(tmp_path, "doctor", "--dry-run", "profile=smoke").stdout
    assert "overlap        none of" in offline_


def test_findings_are_counted() -> None:
    some: Iterable[Finding] = [Finding("ok", ""), Finding(FAIL, ""), Finding(WARN, ""), Finding(OUT, "")]
    assert examination.summary(some) == "4 checks: 1 ok, 1 warnings, 1 failed, 1 left out"


def test_a_file_in_place_of_the_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = specauf(tmp_path, "doctor", "profile=smoke", "runs=file", "--dry-run", check=False)
    assert done.returncode == 1
    assert "FAIL  settings       runs=file is a file; runs need a folder; fix: runs=FOLDER" in done.stdout


def test_the_benchmarks_of_a_run_may_be_others_than_those_it_was_cleaned_of() -> None:
    own, other = (compose.compose(["profile=smoke", f"benchmark=offline_{n}"]) for n in ("chat", "algebra"))
    assert [raw.name for raw, _ in Subject(own).prompts()] == ["offline_chat"]
    assert [raw.name for raw, _ in Subject(own, asked=other).prompts()] == ["offline_algebra"]
