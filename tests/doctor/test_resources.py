"""Checks of disk, memory and settings, each against a subject in which exactly that thing is broken."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.findings import Break, Patch, found, only, wrong
from specauf_cli.config import compose
from specauf_cli.doctor.subject import FAIL, OUT, WARN, Subject
from specauf_cli.planning.text import size
from specauf_cli.runtime import machine


def test_a_full_disk(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert only(healthy(), "resources", "0.001 MB free", "runs=FOLDER").startswith(FAIL)


def test_a_disk_too_small_for_the_snapshots(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    said = only(
        healthy(settings={"trainer.snapshot_every": 1, "trainer.steps": 2000}), "resources", "most of it: snapshots"
    )
    assert said.startswith(WARN)


def test_too_little_memory(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda _: 1000)
    assert only(healthy(), "resources", "lower trainer.micro_batch").startswith(WARN)


def test_free_memory_is_known_here() -> None:
    assert 2**24 < machine.free_memory("cpu") < 2**50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target.taps": (0, 3)}, "taps the last layer"),
        ({"data.source": "jsonl", "data.path": "/nowhere"}, "data.path=/nowhere: there is no such file"),
        ({"data.source": "jsonl"}, "names no file"),
        ({"benchmark_root": "/nowhere"}, "benchmark_root=/nowhere: there is no such"),
        ({"target.path": "/nowhere"}, "target.path=/nowhere: there is no such"),
        ({"trainer.batch_size": 64}, "24 examples are fewer than trainer.batch_size=64"),
        ({"target.pretrain": None}, "neither a path nor a recipe"),
    ],
)
def test_settings_that_lead_nowhere(healthy: Break, settings: dict[str, Any], words: str) -> None:
    said = wrong(healthy(settings=settings))
    assert words in said["settings"]
    assert "fix: " in said["settings"]
    assert "resources" not in said


def test_resources_are_what_is_planned(healthy: Break) -> None:
    of = healthy()
    assert f"disk: about {size(sum(of.plan().disk.values()))} needed" in found(of)["resources"].found
    assert of.plan().lengths.examples == len(of.data()[0].conversations)


def test_a_target_of_the_hub_is_counted_without_network(healthy: Break) -> None:
    stated, unknown = (
        Subject(
            replace(healthy().config, target=compose.compose(words).target), dry=True, parts={"data": healthy().data()}
        )
        for words in (["target=qwen3_0_6b"], ["target=hf", "target.name=ORG/NAME"])
    )
    said = found(stated)
    assert said["resources"].verdict in ("ok", WARN)
    assert "needed" in said["resources"].found
    assert "from the hub: target Qwen/Qwen3-0.6B" in said["settings"].found
    said = found(unknown)
    assert (said["settings"].verdict, said["resources"].verdict) == ("ok", OUT)
    assert "the sizes of target 'ORG/NAME' cannot be read" in said["resources"].found
