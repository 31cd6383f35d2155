"""Target features: online, in memory and on disk hold the same numbers; the cache survives kills and is never trusted
blindly."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.trained import train_one
from specauf_cli.config import compose
from specauf_cli.config.schema import TrainerConfig
from specauf_cli.data.chat import encode
from specauf_cli.errors import InputError
from specauf_cli.models.blocks import collate
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.training import features as module
from specauf_cli.training.features import Disk, Features
from specauf_cli.types import Corpus, Example


@pytest.fixture(scope="module")
def examples(target: Target, small_corpus: Corpus) -> list[Example]:
    return encode(target.chat, small_corpus, max_length=256)[0][:60]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> TrainerConfig:
    monkeypatch.setattr(Disk, "SHARD", 200_000)  # several shards
    return compose.compose(["profile=smoke", "trainer.precision=fp32"]).trainer


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("with_last", [False, True])
def test_what_is_kept_is_what_is_computed_online(
    kind: str,
    precision: str,
    with_last: bool,
    trainer: TrainerConfig,
    target: Target,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    batch = collate(examples, [3, 1, 2], target.chat.pad_id)
    trainer = replace(trainer, precision=precision)
    computed = Features(target, examples, trainer, tmp_path, with_last=with_last).of(batch)
    read = Features(target, examples, replace(trainer, features=kind), tmp_path, with_last=with_last).of(batch)
    assert (computed[1] is not None) == with_last
    for online, kept in zip(computed, read, strict=True):
        if online is None or kept is None:
            assert online is kept
            continue
        assert kept.dtype == online.dtype
        assert kept.shape == online.shape
        tolerance = 1e-5 if precision == "fp32" else 2e-2
        at_most = tolerance * float(online.abs().max())
        for row, i in enumerate(batch.index):
            n = len(examples[i].tokens)
            assert torch.allclose(online[row, :n].float(), kept[row, :n].float(), rtol=tolerance, atol=at_most)
            assert not kept[row, n:].any()


def test_the_last_hidden_state_gives_the_targets_own_logits(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path
) -> None:
    """And the tapped features beside it are those that are computed alone, bit for bit."""
    batch = collate(examples, [3, 1, 2], target.chat.pad_id)
    features, last = Features(target, examples, trainer, tmp_path, with_last=True).of(batch)
    alone, _ = Features(target, examples, trainer, tmp_path).of(batch)
    assert torch.equal(features, alone)
    assert last is not None
    theirs = target.model(input_ids=batch.tokens, use_cache=False).logits[..., : target.chat.vocab]
    assert torch.allclose(target.head(last), theirs, atol=1e-5)


def test_an_interrupted_cache_is_continued(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = replace(trainer, features="disk")
    passes = 0
    real = Features._compute

    def counting(self: Features, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 3 and stop:
            raise KeyboardInterrupt
        return real(self, tokens)

    monkeypatch.setattr(Features, "_compute", counting)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        Features(target, examples, disk, tmp_path)
    made = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert made
    assert not list(tmp_path.rglob("*.tmp"))
    stop = False
    whole = Features(target, examples, disk, tmp_path)
    assert all(p.stat().st_mtime_ns == t for p, t in made.items()), "what was there is used"
    passes = 0
    again = Features(target, examples, disk, tmp_path)
    assert passes == 0
    batch = collate(examples, list(range(len(examples))), target.chat.pad_id)
    assert torch.equal(whole.of(batch)[0], again.of(batch)[0])


def test_other_data_another_target_or_precision_have_a_cache_of_their_own(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path
) -> None:
    disk = replace(trainer, features="disk")
    for some, settings in ((examples, disk), (examples[1:], disk), (examples, replace(disk, precision="bf16"))):
        Features(target, some, settings, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_shard_is_named(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path
) -> None:
    disk = replace(trainer, features="disk")
    Features(target, examples, disk, tmp_path)
    shard = sorted(tmp_path.rglob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    batch = collate(examples, list(range(len(examples))), target.chat.pad_id)
    with pytest.raises(InputError, match=f"{shard.name} is damaged"):
        Features(target, examples, disk, tmp_path).of(batch)
    shard.unlink()
    Features(target, examples, disk, tmp_path).of(batch)


def test_a_full_disk_is_said_before_anything_is_computed(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    monkeypatch.setattr(Features, "_compute", lambda *_: pytest.fail("computed"))
    with pytest.raises(InputError, match=r"trainer.features=disk needs .* GB are free"):
        Features(target, examples, replace(trainer, features="disk"), tmp_path)


def test_training_from_disk_reads_one_batch_ahead_and_learns_the_same(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, read = [], list[int]()
    real = Disk._read
    monkeypatch.setattr(Disk, "_read", lambda self, index: (read.append(len(index)), real(self, index))[1])
    for kind in ("online", "disk"):
        config = compose.compose(
            [
                "profile=smoke",
                "trainer.precision=fp32",
                "trainer.steps=5",
                "trainer.log_every=1",
                f"trainer.features={kind}",
            ]
        )
        features = Features(target, examples, config.trainer, tmp_path / "cache")
        train_one(config, target, examples, features, tmp_path / kind)
        losses.append([json.loads(x)["loss"] for x in (tmp_path / kind / "log.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    batch, micro = config.trainer.batch_size, config.trainer.micro_batch
    assert [n for n in read if n] == [batch, *[micro] * (batch // micro), *[batch] * 3]


def test_no_more_tokens_than_fit_go_through_the_target_at_once(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", 512)
    widths: list[int] = []
    real = Target.features
    monkeypatch.setattr(Target, "features", lambda self, t: (widths.append(t.numel()), real(self, t))[1])
    Features(target, examples, replace(trainer, features="memory"), tmp_path)
    assert max(widths) <= 512 + 32 * 64


def test_ranks_that_look_at_different_times_share_the_shards_alike(
    trainer: TrainerConfig, target: Target, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank comes when the first has written one of its own already."""
    disk = replace(trainer, features="disk")
    monkeypatch.setattr(Disk, "SHARD", 20_000)
    Features(target, examples, disk, tmp_path)
    whole = {p.name[:5]: p for p in tmp_path.rglob("*.safetensors")}
    assert len(whole) > 4
    late = [p for n, p in whole.items() if n != "00000"]
    for path in late:
        path.unlink()
    monkeypatch.setattr(ranks, "RANK", 1)
    monkeypatch.setattr(ranks, "WORLD", 2)
    monkeypatch.setattr(ranks, "wait", lambda: None)
    Features(target, examples, disk, tmp_path)
    made = sorted(int(p.name[:5]) for p in tmp_path.rglob("*.safetensors"))
    assert made == [0, *range(1, len(whole), 2)]
