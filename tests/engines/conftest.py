"""Fakes of servers that know the target's own answers, and a place to ask them from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.drafters import of
from helpers.engines import (
    CHOSEN,
    DRAFTER,
    SETTINGS,
    TOKENS,
    FakeSGLang,
    FakeVLLM,
    Known,
)
from specauf_cli.config import compose
from specauf_cli.config.compose import with_benchmarks
from specauf_cli.data.chat import Chat
from specauf_cli.engines import client, measure
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.models.target import Target

__all__ = ["of"]


@pytest.fixture(scope="module")
def known(target: Target) -> Known:
    """The target's own answers to the prompts that the commands here ask, per temperature and benchmark; chat has two
    turns."""
    chosen = load_benchmarks(with_benchmarks(compose.compose(SETTINGS), CHOSEN))
    assert max(len(p.turns) for s in chosen for p in s.prompts) > 1
    return {
        t: {
            s.name: list(
                trajectories.generate(
                    target, s.prompts, temperature=t, seed=0, max_new_tokens=TOKENS, tail=16, batch_size=32
                ).trajectories
            )
            for s in chosen
        }
        for t in (0.0, 1.0)
    }


@pytest.fixture
def folder(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to work in, with the target's tokenizer under ``model``."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(measure, "SETTLE", 0.3)
    chat.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)  # what lies there is a folder and no model of the hub
    return tmp_path


@pytest.fixture
def sglang(chat: Chat, known: Known, folder: Path) -> FakeSGLang:
    return FakeSGLang(chat, {t: [x for r in found.values() for x in r] for t, found in known.items()}, "model", DRAFTER)


@pytest.fixture
def make_vllm(chat: Chat, known: Known, folder: Path) -> Callable[[bool], FakeVLLM]:
    flat = {t: [x for r in found.values() for x in r] for t, found in known.items()}
    return lambda per_request: FakeVLLM(chat, flat, "model", DRAFTER, per_request=per_request)


@pytest.fixture
def make_run(folder: Path) -> Callable[..., str]:
    """A finished run's folder, for commands that read only what it says of itself."""

    def make(*overrides: str) -> str:
        words = ["profile=smoke", "target.path=model", *overrides]
        config = compose.compose([*words, "runs=runs"])
        name = f"{config.backbone.name}-{config.objective.name}-x"
        place = folder / "runs" / name
        (place / "drafter").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (place / "drafter" / file).write_text("{}")
        about = {
            "run": name,
            "overrides": words,
            "config": config.resolved,
            "inputs": {"target": "f" * 40},
            "data": {"name": "offline"},
            "code": {"commit": None, "dirty": None},
            "command": "specauf train",
        }
        (place / "run.json").write_text(json.dumps(about))
        done = {"last": {"step": 1}, "seconds": 1.0, "peak_memory_mib": 1.0}
        (place / "finished.json").write_text(json.dumps(done))
        return name

    return make


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment must not be asked for a server on this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
