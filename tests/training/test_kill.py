"""SIGKILL at any moment: the run continues and ends with the weights and the log of one that was never disturbed."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.trained import train_one
from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.data.chat import encode
from specauf_cli.models.target import Target
from specauf_cli.objectives.terms import is_soft
from specauf_cli.store import layout
from specauf_cli.training import drafter, state
from specauf_cli.training.features import Features
from specauf_cli.types import Corpus, Example


@pytest.fixture(scope="module")
def examples(target: Target, small_corpus: Corpus) -> list[Example]:
    return encode(target.chat, small_corpus, max_length=128)[0]


def config() -> Config:
    """Three micro-batches a step, several epochs, a checkpoint at every other step."""
    return compose.compose(
        [
            "profile=smoke",
            "objective=auf_decay",
            "trainer.steps=12",
            "trainer.log_every=4",
            "trainer.save_every=2",
            "trainer.batch_size=12",
            "trainer.micro_batch=4",
            "trainer.max_length=128",
            "trainer.snapshot_every=5",
        ]
    )


def train(wanted: Config, target: Target, examples: Sequence[Example], folder: Path) -> None:
    features = Features(target, examples, wanted.trainer, Path(), with_last=is_soft(wanted.objective))
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


def killed(
    wanted: Config,
    target: Target,
    examples: Sequence[Example],
    folder: Path,
    after: float,
    prepare: Callable[[], None] = lambda: None,
) -> bool:
    """Trains in a child process that is killed after so many seconds; True when it was not done by then.

    ``prepare`` is called in the child only.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            prepare()
            train(wanted, target, examples, folder)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return True
            assert status == 0, "the child failed by itself"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.fixture(scope="module")
def whole(target: Target, examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never disturbed, and in ``seconds`` how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    train(config(), target, examples, folder)
    (folder / "seconds").write_text(str(time.monotonic() - begin))
    return folder


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_at_random_moments_change_nothing(
    whole: Path, target: Target, examples: list[Example], tmp_path: Path
) -> None:
    wanted, took = config(), float((whole / "seconds").read_text())
    draw, kills, ended = random.Random(0), 0, 0
    while kills < 12:
        folder = tmp_path / f"killed-{ended}"
        while killed(wanted, target, examples, folder, draw.uniform(0.02, 0.5) * took):
            kills += 1
        assert files(folder) == files(whole)
        ended += 1


def die_at(owner: Any, name: str, call: int, *, half: bool = False) -> None:
    """From now on, the ``call``-th call of ``owner.name`` kills this process; ``half``: after writing half of its
    file."""
    real, calls = getattr(owner, name), 0

    def doomed(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            if half:
                real(*arguments, **more)
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(owner, name, doomed)


@pytest.mark.parametrize(
    ("where", "prepare"),
    [
        ("between the micro-batches of a step", lambda: die_at(drafter.Step, "_accumulate", 14)),
        ("before any checkpoint", lambda: die_at(drafter.Step, "_accumulate", 2)),
        ("half of a checkpoint's weights written", lambda: die_at(state, "save_file", 5, half=True)),
        ("half of the optimiser's state written", lambda: die_at(state, "save_file", 6, half=True)),
        ("a checkpoint written but not yet in its place", lambda: die_at(os, "replace", 3)),
        ("old checkpoints about to be cleared away", lambda: die_at(layout, "checkpoint_steps", 3)),
    ],
    ids=lambda x: x.replace(" ", "-") if isinstance(x, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_the_worst_moments_changes_nothing(
    where: str, prepare: Callable[[], None], whole: Path, target: Target, examples: list[Example], tmp_path: Path
) -> None:
    assert killed(config(), target, examples, tmp_path, 60, prepare), f"it was never {where}"
    assert not (tmp_path / "drafter").exists()
    train(config(), target, examples, tmp_path)
    assert files(tmp_path) == files(whole)
