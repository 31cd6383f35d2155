"""The cache of trajectories: read back equal, and generated anew when it is stale or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.trajectories import Generated
from specauf_cli.models.target import Target
from specauf_cli.types import Prompt, PromptSet

MakeTarget = Callable[..., Target]


PROMPTS = (
    Prompt("p0", ("Tell me a story.",)),
    Prompt("p1", ("What is 2 + 3?",)),
    Prompt("p2", ("Name a color.", "And another one?")),
)

SET = PromptSet("toy", "Toy", PROMPTS, 3, "content", "made")


class Cache:
    """``trajectories.get`` on one folder, counting how often the target really generated."""

    def __init__(self, folder: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.target, self.generated = folder, target, 0
        original = trajectories.generate

        def counted(*arguments: Any, **settings: Any) -> Generated:
            self.generated += 1
            return original(*arguments, **settings)

        monkeypatch.setattr(trajectories, "generate", counted)

    def __call__(self, *, target: Target | None = None, prompts: PromptSet = SET, **changes: Any) -> Generated:
        settings = {"temperature": 0.0, "seed": 0, "max_new_tokens": 8, "tail": 4, "batch_size": 4, **changes}
        return trajectories.get(target or self.target, prompts, cache=self.folder, **settings)

    def file(self) -> Path:
        (path,) = self.folder.glob("*.json")
        return path


@pytest.fixture
def cache(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path / "trajectories", target, monkeypatch)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trajectories_are_generated_once_and_read_back_equal(cache: Cache, temperature: float) -> None:
    first = cache(temperature=temperature)
    assert cache(temperature=temperature) == first
    assert cache(temperature=temperature, batch_size=1) == first
    assert cache.generated == 1
    assert isinstance(first.trajectories[0].tokens, tuple)


def test_at_temperature_zero_the_seed_is_no_part_of_the_identity(cache: Cache) -> None:
    assert cache(seed=1) == cache(seed=2)
    assert cache.generated == 1
    assert cache(seed=1, temperature=1.0) != cache(seed=2, temperature=1.0)
    assert cache.generated == 3


def test_another_target_prompt_set_or_setting_is_generated_anew(cache: Cache, make_target: MakeTarget) -> None:
    cache()
    changes: list[dict[str, Any]] = [
        {"max_new_tokens": 9},
        {"tail": 5},
        {"temperature": 1.0},
        {"prompts": replace(SET, sha256="other")},
        {"target": make_target(fingerprint="other")},
    ]
    for count, change in enumerate(changes, start=2):
        cache(**change)
        assert cache.generated == count
    cache()
    assert cache.generated == 1 + len(changes)


def test_answers_that_end_elsewhere_are_generated_anew(cache: Cache, make_target: MakeTarget) -> None:
    cache()
    other = make_target()
    other.chat.stop_ids = other.chat.stop_ids | {5}
    cache(target=other)
    assert cache.generated == 2


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def _another_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "truncated": ("json", lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])),
    "empty": ("json", lambda path: path.write_text("")),
    "another kind of JSON": ("json", lambda path: path.write_text("[]")),
    "no text": ("json", lambda path: path.write_bytes(b"\xff" + path.read_bytes())),
    "a length": ("json", lambda path: _edit(path, lambda stored: stored["requests"][0].__setitem__(4, 1))),
    "a row": ("json", lambda path: _edit(path, lambda stored: stored["requests"].pop())),
    "stale": ("json", lambda path: _edit(path, lambda stored: stored["identity"].update(target="another"))),
    "no hash": ("json", lambda path: _edit(path, lambda stored: stored.pop("sha256"))),
    "a token": ("safetensors", _another_byte),
    "truncated tokens": ("safetensors", lambda path: path.write_bytes(path.read_bytes()[:-5])),
    "no tokens": ("safetensors", lambda path: path.unlink()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_stale_or_damaged_file_is_generated_anew(cache: Cache, kind: str) -> None:
    suffix, damage = DAMAGE[kind]
    first = cache()
    content = {p.name: p.read_bytes() for p in cache.folder.iterdir()}
    damage(cache.file().with_suffix(f".{suffix}"))
    assert cache() == first
    assert cache.generated == 2
    assert {p.name: p.read_bytes() for p in cache.folder.iterdir()} == content
    assert cache() == first
    assert cache.generated == 2
