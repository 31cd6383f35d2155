"""SIGKILL at any moment: the run continues and ends with the weights and the log of one that was never disturbed."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from specauf_cli import compose
from specauf_cli.data.chat import encode
from specauf_cli.models.target import Target
from specauf_cli.schema import Corpus, Example
from specauf_cli.settings import Config
from specauf_cli.training.features import Features
from trained import train_one


@pytest.fixture(scope="module")
def examples(target: Target, small_corpus: Corpus) -> list[Example]:
    return encode(target.chat, small_corpus, max_length=128)[0]


def config() -> Config:
    """Three micro-batches a step, several epochs, a checkpoint at every other step."""
    return compose.compose(
        [
            "profile=smoke", "objective=auf_decay", "trainer.steps=12", "trainer.log_every=4", "trainer.save_every=2",
            "trainer.batch_size=12", "trainer.micro_batch=4", "trainer.max_length=128", "trainer.snapshot_every=5",
        ]
    )  # fmt: skip


def train(wanted: Config, target: Target, examples: Sequence[Example], folder: Path) -> None:
    features = Features(target, examples, wanted.trainer, Path())
    train_one(wanted, target, examples, features, folder, "x")


def files(folder: Path) -> dict[str, object]:
    """Everything a run leaves behind, without what tells the time."""
    found: dict[str, object] = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*.safetensors"))
        if "checkpoints" not in p.parts
    }
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    return found | {"log": [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines]}


def killed(wanted: Config, target: Target, examples: Sequence[Example], folder: Path, after: float) -> bool:
    """Trains in a child process that is killed after so many seconds; True when it was not done by then."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(wanted, target, examples, folder)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the child failed by itself"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_twenty_kills_at_random_moments_change_nothing(target: Target, examples: list[Example], tmp_path: Path) -> None:
    wanted = config()
    begin = time.monotonic()
    train(wanted, target, examples, tmp_path / "whole")
    whole = time.monotonic() - begin
    draw, kills, ended = random.Random(0), 0, 0
    while kills < 20:
        folder = tmp_path / f"killed-{ended}"
        while killed(wanted, target, examples, folder, draw.uniform(0.02, 0.5) * whole):
            kills += 1
        assert files(folder) == files(tmp_path / "whole")
        ended += 1
