"""Checks of disk, memory and settings, each against a subject in which exactly that thing is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from findings import BACKBONES, Break, Patch, only, wrong
from specauf_cli import compose
from specauf_cli.checks import room
from specauf_cli.checks.subject import FAIL, WARN, Subject


def test_a_full_disk(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert only(healthy(), "room", "0 MiB free", "runs=FOLDER").startswith(FAIL)


def test_a_disk_too_small_for_the_snapshots(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    said = only(healthy(settings={"trainer.snapshot_every": 1, "trainer.steps": 2000}), "room", "most of it: snapshots")
    assert said.startswith(WARN)


def test_too_little_memory(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: 1000)
    assert only(healthy(), "room", "lower trainer.micro_batch").startswith(WARN)


def test_free_memory_is_known_here() -> None:
    free = room.free_memory("cpu")
    assert free is None or 2**24 < free < 2**50


def test_estimated_sizes_are_those_of_the_models() -> None:
    for name in BACKBONES:
        config = compose.compose(["profile=smoke", f"backbone={name}"])
        of = Subject(config)
        sizes = room.sizes_of(config)
        assert sizes is not None
        if of.target().chat.vocab == sizes.vocab:
            real = sum(p.numel() for p in of.target().model.parameters())
            assert sizes.target == pytest.approx(real, rel=0.02)
        assert sizes.drafter(config) == pytest.approx(sum(p.numel() for p in of.drafter().parameters()), rel=0.03)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target.taps": (0, 3)}, "taps the last layer"),
        ({"data.source": "jsonl", "data.path": "/nowhere"}, "data.path=/nowhere: there is no such file"),
        ({"data.source": "jsonl"}, "names no file"),
        ({"benchmark_root": "/nowhere"}, "benchmark_root=/nowhere: there is no such"),
        ({"target.path": "/nowhere"}, "target.path=/nowhere: there is no such"),
        ({"trainer.max_length": 4096}, "beyond the target's 1024 positions"),
        ({"target.pretrain": None}, "neither a path nor a recipe"),
    ],
)
def test_settings_that_lead_nowhere(healthy: Break, settings: dict[str, Any], words: str) -> None:
    said = wrong(healthy(settings=settings))
    assert words in said["settings"]
    assert "fix: " in said["settings"]
    assert "room" not in said


def test_a_folder_of_sizes_is_read(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = compose.compose(["profile=smoke", f"target.path={tmp_path}"])
    read = room.sizes_of(config)
    assert read is not None
    assert (read.layers, read.kv_heads, read.head_dim, read.tied) == (6, 2, 4, False)
