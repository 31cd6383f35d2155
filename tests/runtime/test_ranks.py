"""Two ranks do what one does: the same anchors and losses, and either continues what the other began."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.trained import together, train_one
from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.data.chat import encode
from specauf_cli.errors import InputError
from specauf_cli.models.target import Target
from specauf_cli.objectives.terms import is_soft
from specauf_cli.runtime import ranks, sharding
from specauf_cli.training import drafter as training
from specauf_cli.training.features import Features
from specauf_cli.types import Corpus, Example

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def examples(target: Target, small_corpus: Corpus) -> list[Example]:
    return encode(target.chat, small_corpus, max_length=128)[0]


def config(*overrides: str) -> Config:
    small = [
        "trainer.steps=12",
        "trainer.log_every=1",
        "trainer.batch_size=8",
        "trainer.micro_batch=2",
        "trainer.max_length=128",
    ]
    return compose.compose(["profile=smoke", *small, *overrides])


def train(wanted: Config, target: Target, examples: Sequence[Example], folder: Path) -> None:
    features = Features(target, examples, wanted.trainer, Path(), with_last=is_soft(wanted.objective))
    train_one(wanted, target, examples, features, folder, "x")


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=auf",),
        ("backbone=domino", "objective=s_auf_decay"),
        ("backbone=medusa", "objective=auf"),
        ("backbone=recurrent", "objective=auf"),
        ("objective=l2r",),
        ("objective=dspark",),
    ],
    ids=str,
)
def test_two_ranks_give_the_losses_of_one(
    target: Target, examples: list[Example], tmp_path: Path, overrides: Sequence[str]
) -> None:
    wanted = config(*overrides)
    train(wanted, target, examples, tmp_path / "one")
    assert together(lambda: train(wanted, target, examples, tmp_path / "two"), tmp_path / "store") == [0, 0]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx({**a, "tokens_per_second": b["tokens_per_second"]}, rel=1e-5, abs=1e-6)
    weights = [load_file(tmp_path / n / "drafter/model.safetensors") for n in ("one", "two")]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_ranks_continues(
    target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    wanted = config()
    train(wanted, target, examples, tmp_path / "whole")
    call = training.Step.__call__

    def stopped(self: training.Step, step: int) -> object:
        if step == 5 and ranks.RANK == ranks.WORLD - 1:  # only one rank is told
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(training.Step, "__call__", stopped)
        ended = together(lambda: train(wanted, target, examples, tmp_path / "run"), tmp_path / "a", first)
        assert ended == [130] * first, "every rank stops when one is told to"
    assert [x["step"] for x in log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert together(lambda: train(wanted, target, examples, tmp_path / "run"), tmp_path / "b", 3 - first) == [0] * (
        3 - first
    )
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "run"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("shard", "overrides"),
    [
        ("target", ("objective=auf",)),
        ("drafter", ("objective=auf",)),
        ("both", ("backbone=domino", "objective=s_auf_decay", "trainer.labels=target")),
        ("both", ("backbone=dspark", "objective=dspark_confidence", "trainer.clip=0.05")),
    ],
    ids=str,
)
def test_sharded_layers_give_the_numbers_of_one_rank(
    target: Target, examples: list[Example], tmp_path: Path, shard: str, overrides: Sequence[str]
) -> None:
    wanted = config(*overrides, "trainer.save_every=5")
    train(wanted, target, examples, tmp_path / "one")
    sharded = config(*overrides, "trainer.save_every=5", f"trainer.shard={shard}")

    def half() -> None:
        if shard != "drafter":
            sharding.shard(target._layers, "cpu")  # of this process's copy
        train(sharded, target, examples, tmp_path / "two")

    assert together(half, tmp_path / "store") == [0, 0]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx({**a, "tokens_per_second": b["tokens_per_second"]}, rel=1e-5, abs=1e-6)
    weights = [load_file(tmp_path / n / "drafter/model.safetensors") for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-4, name


@pytest.mark.parametrize(("first", "then"), [("drafter", "none"), ("none", "drafter")])
def test_a_sharded_run_is_continued_whole_and_the_other_way_round(
    target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    train(config(), target, examples, tmp_path / "whole")
    call = training.Step.__call__

    def stopped(self: training.Step, step: int) -> object:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(training.Step, "__call__", stopped)
        begin = config(f"trainer.shard={first}")
        assert together(lambda: train(begin, target, examples, tmp_path / "run"), tmp_path / "a") == [130, 130]
    end = config(f"trainer.shard={then}")
    assert together(lambda: train(end, target, examples, tmp_path / "run"), tmp_path / "b") == [0, 0]
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "run"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_ranks_that_cannot_share_a_batch(
    target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "WORLD", 3)
    with pytest.raises(InputError, match="3 ranks cannot share 4 micro-batches"):
        train(config(), target, examples, tmp_path)
