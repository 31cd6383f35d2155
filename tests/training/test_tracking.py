"""Weights & Biases beside the log: offline it writes its own files, and whatever fails in it, training goes on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.trained import train_one
from specauf_cli.config import compose
from specauf_cli.config.schema import TrackingConfig
from specauf_cli.data.chat import encode
from specauf_cli.models.target import Target
from specauf_cli.training.features import Features
from specauf_cli.training.tracking import sink
from specauf_cli.types import Corpus


def trained(target: Target, corpus: Corpus, folder: Path, *overrides: str) -> list[dict[str, float]]:
    config = compose.compose(["profile=smoke", "trainer.steps=6", "trainer.log_every=2", *overrides])
    examples = encode(target.chat, corpus, max_length=256)[0]
    features = Features(target, examples, config.trainer, Path())
    train_one(config, target, examples, features, folder, folder.name)
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def test_offline_run_holds_the_log_under_the_runs_name(target: Target, small_corpus: Corpus, tmp_path: Path) -> None:
    lines = trained(target, small_corpus, tmp_path / "one", "tracking=wandb", "tracking.mode=offline")
    assert lines == trained(target, small_corpus, tmp_path / "two"), "tracking changes nothing"
    (kept,) = (tmp_path / "one" / "wandb").glob("offline-run-*-one/run-one.wandb")
    assert b"accept_length" in kept.read_bytes()
    assert not (tmp_path / "two" / "wandb").exists()


@pytest.mark.parametrize("when", ["init", "second line", "finish"])
def test_a_failing_wandb_does_not_stop_the_training(
    target: Target,
    small_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    import wandb

    seen: list[dict[str, float]] = []

    def log(line: dict[str, float], step: int) -> None:
        assert line["step"] == step
        if when == "second line" and seen:
            raise ConnectionError("the network is gone")
        seen.append(line)

    def finish() -> None:
        raise ConnectionError("too late")

    def init(**_: Any) -> SimpleNamespace:
        if when == "init":
            raise wandb.errors.CommError("no such host")
        return SimpleNamespace(log=log, finish=finish)

    monkeypatch.setattr(wandb, "init", init)
    assert len(trained(target, small_corpus, tmp_path / "run", "tracking=wandb")) == 3
    assert len(seen) == {"init": 0, "second line": 1, "finish": 3}[when]
    said = capsys.readouterr().err
    assert said.count("training goes on without it") == (when != "finish")


def test_nothing_is_imported_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # an import would fail
    with sink(TrackingConfig("none", None, None), tmp_path, {}) as log:
        log({"step": 1})
