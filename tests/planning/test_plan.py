"""The plan: counts against what is really built, hand-worked work, and every command line that cannot work."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import specauf
from helpers.drafters import KNOBS
from helpers.findings import changed
from helpers.hub import publish
from specauf_cli.config.compose import compose as compose_anew
from specauf_cli.data.chat import Chat
from specauf_cli.errors import InputError
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models import target as targets
from specauf_cli.models.target import Target
from specauf_cli.planning import calibration, plan, text
from specauf_cli.planning.plan import Lengths, Plan, make_plan

compose = functools.cache(compose_anew)
SHAREGPT = Lengths(68_000, 1300, 3072, "stated")


def planned(*overrides: str, lengths: Lengths = SHAREGPT, settings: dict[str, Any] | None = None) -> Plan:
    """The plan on a GPU. ``settings`` are replaced behind composing, which takes longer than all the rest."""
    config = changed(compose(overrides), settings or {})
    return make_plan(config, sizes.of(config.target), lengths, on_gpu=True)


@pytest.mark.parametrize("backbone", list(KNOBS))
def test_parameters_are_those_of_the_module(chat: Chat, backbone: str) -> None:
    config = compose(("profile=smoke", f"backbone={backbone}", "target.taps=[0,1]"))
    assert config.target.pretrain is not None
    target = Target(targets.create(config.target.pretrain, chat), chat, config.target, "x")
    known = replace(sizes.of(config.target), vocab_size=chat.vocab)
    counted = make_plan(config, known, Lengths(100, 50, 60, "counted"))
    drafter = checkpoint.create(target, config.backbone)
    assert sum(counted.drafter.values()) == sum(p.numel() for p in drafter.parameters())
    assert counted.target == pytest.approx(sum(p.numel() for p in target.model.parameters()), rel=0.02)
    grown = sum(x.nbytes for x in drafter.state_dict().values())
    assert counted.disk["drafter"] == grown


def test_the_paper_s_drafter_has_a_billion_weights() -> None:
    counted = planned("profile=paper")
    assert sum(counted.drafter.values()) == pytest.approx(1.05e9, rel=0.01)
    assert counted.target == pytest.approx(8.19e9, rel=0.01)
    assert counted.steps == 6 * (68_000 // 32)


def test_sharded_layers_are_divided_by_the_devices_and_the_rest_is_not() -> None:
    whole = planned("profile=paper", "target=qwen3_32b").memory
    config = compose(("profile=paper", "target=qwen3_32b", "trainer.shard=both"))
    known = sizes.of(config.target)
    one, eight = (make_plan(config, known, SHAREGPT, on_gpu=True, devices=n).memory for n in (1, 8))
    layer = sizes.layer_parameters(known)
    assert whole["target"] - eight["target"] == pytest.approx(2 * layer * (known.layers * 7 / 8 - 1))
    assert eight["target"] > 2 * 2 * known.vocab_size * known.hidden_size, "embedding and head are whole"
    drafter = "drafter, gradients, optimiser"
    assert whole[drafter] / eight[drafter] == pytest.approx(2.8, rel=0.2)
    assert (one["target"], one["activations"]) == (whole["target"], eight["activations"])


def test_a_training_that_is_too_large_for_one_card_of_several_may_be_sharded(tmp_path: Path) -> None:
    words = ["plan", "profile=paper", "target=qwen3_32b", "--gpu", "h100", "--devices", "8"]
    assert "shard layers over the cards: trainer.shard=both" in specauf(tmp_path, *words).stdout
    assert "too large" not in specauf(tmp_path, *words, "trainer.shard=both", "trainer.micro_batch=1").stdout


def test_answers_that_are_made_first_are_said_not_to_be_counted() -> None:
    assert not any("made first" in x for x in text.lines(planned("profile=paper")))
    assert any("made first, are not counted" in x for x in text.lines(planned("profile=paper", "data.regenerate=100")))


def test_work_of_one_block_by_hand() -> None:
    """One sequence of 100 tokens, one block of 16, full head: every product once forward, then backward."""
    counted = planned(
        "target=qwen3_0_6b",
        "objective=decay",
        "trainer.batch_size=1",
        "trainer.micro_batch=1",
        "trainer.anchors=1",
        "backbone.layers=1",
        "backbone.attention=split",
        "trainer.head=full",
        lengths=Lengths(10, 84, 84, "counted"),
    )
    layer = 1024 * 2048 * 2 + 2 * 1024 * 1024 + 3 * 1024 * 3072
    assert counted.work["target features"] == 26 * 100 * (2 * layer + 2 * 2048 * 100)
    fused, keys = 4 * 100 * 5 * 1024**2, 3 * 100 * 4 * 1024 * 1024
    assert counted.work["drafter"] == fused + keys + 3 * 16 * (2 * layer + 4 * 2048 * 116)
    assert counted.work["head"] == 15 * 2 * 2 * 1024 * 151_936


def test_heads_are_told_apart() -> None:
    auf, decay, domino = (
        planned("profile=paper"),
        planned("profile=paper", "objective=decay"),
        planned("profile=paper", "backbone=domino"),
    )
    assert (auf.head, decay.head, domino.head) == ("pruned", "chunked", "chunked")
    assert set(auf.heads) == {"full", "chunked", "pruned"}
    assert set(decay.heads) == set(domino.heads) == {"full", "chunked"}
    assert auf.heads["pruned"][0] < 0.35 * auf.heads["full"][0]
    assert auf.heads["chunked"][1] < 0.2 * auf.heads["full"][1]


def test_what_takes_more_is_counted_as_more() -> None:
    base, larger = planned("profile=single_gpu"), planned("profile=single_gpu", "target=qwen3_8b")

    def but(key: str, value: Any) -> Plan:
        return planned("profile=single_gpu", settings={key: value})

    more = [but("trainer.anchors", 1024), but("backbone.layers", 6), but("trainer.batch_size", 64), larger]
    assert all(p.per_step > base.per_step for p in more)
    more = [but("trainer.micro_batch", 4), but("trainer.precision", "fp32"), but("backbone.attention", "split")]
    more += [but("target.dtype", "fp32"), larger]
    assert all(sum(p.memory.values()) > sum(base.memory.values()) for p in more)
    assert but("trainer.features", "disk").disk["features"] > 1e12
    assert but("trainer.snapshot_every", 1000).disk["snapshots"] == 12 * base.disk["drafter"]
    assert sum(base.memory.values()) < 80e9  # what the profile promises


def test_hours_are_work_over_peak() -> None:
    counted = planned("profile=paper")
    one = plan.hours_on(counted, "h200", 1, 0.5)
    assert one == pytest.approx(counted.steps * counted.per_step / (989e12 * 0.5) / 3600)
    assert plan.hours_on(counted, "H200", 8, 0.5) == pytest.approx(one / 8)
    for wrong, says in (
        (("h20", 1, 0.4), r"unknown --gpu 'h20'; valid: .*Did you mean 'h200'"),
        (("h200", 1, 1.5), r"--utilisation 1\.5 must be"),
        (("h200", 3, 0.4), r"--devices 3 cannot share 32 micro-batches"),
        (("h200", 0, 0.4), r"--devices 0 cannot share"),
    ):
        with pytest.raises(InputError, match=says):
            plan.hours_on(counted, *wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="10 examples are fewer than"):
        planned("profile=paper", lengths=replace(SHAREGPT, examples=10))


@pytest.mark.parametrize(
    ("value", "expected"), [(0.001, "4 s"), (0.5, "30 minutes"), (30, "30.0 hours"), (480, "20 days")]
)
def test_durations(value: float, expected: str) -> None:
    assert text.duration(value) == expected


@pytest.mark.parametrize("backbone", list(KNOBS))
def test_the_paper_is_planned_without_network(tmp_path: Path, backbone: str) -> None:
    words = ["plan", "profile=paper", f"backbone={backbone}", "--gpu", "h200", "--devices", "8"]
    out = specauf(tmp_path, *words, "--utilisation", "0.3").stdout
    for part in (
        "trainable",
        "tapped",
        "FLOP a step",
        "of logits",
        "memory",
        "disk",
        "features are not stored",
        "0.3 utilisation assumed",
    ):
        assert part in out
    assert "too large" not in out
    assert list(tmp_path.iterdir()) == []
    small = specauf(tmp_path, *words[:-4], "--gpu", "rtx4090").stdout
    assert ("too large" in small) == (backbone != "recurrent"), "it fits beside the target: 137 M weights, no layers"


def test_this_machine_is_timed_with_random_weights_and_nothing_is_left(tmp_path: Path) -> None:
    out = specauf(tmp_path, "plan", "profile=smoke").stdout
    assert "measured: " in out
    assert "for the target" in out
    assert list(tmp_path.iterdir()) == []


def test_a_local_target_is_timed_by_its_own_sizes(tmp_path: Path, chat: Chat) -> None:
    publish(tmp_path / "model", chat, "llama", tied=True, padding=3)
    words = ["profile=smoke", "target=hf", "target.path=model", "target.taps=3", "data.limit=60", "data.heldout=6"]
    out = specauf(tmp_path, "plan", *words, "backbone=domino").stdout
    assert "layers 1, 2, 3 tapped" in out
    assert "measured: " in out
    assert "for the target" not in out


def test_what_is_too_large_to_be_timed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "fits", lambda *_: False)
    assert "not measured (too large for this machine)" in specauf(tmp_path, "plan", "profile=single_gpu").stdout
    assert calibration.peak("cpu", "fp32") > 1e8
    for words, says in (
        (("--utilisation", "0"), "--utilisation 0.0 must be above 0"),
        (("--utilisation", "nan"), "--utilisation nan must be above 0"),
        (("--devices", "2"), "--devices 2: only with --gpu"),
    ):
        assert says in specauf(tmp_path, "plan", "profile=single_gpu", *words, check=False).stderr


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    out = specauf(tmp_path, "plan", "profile=paper", "data.known=null", check=False)
    assert out.returncode == 2
    assert "give data.known.examples" in out.stderr
    out = specauf(tmp_path, "plan", "profile=smoke", "target=hf", "target.path=nowhere", check=False)
    assert out.returncode == 2
    assert "the sizes of target 'nowhere' cannot be read" in out.stderr
    assert out.stderr.count("\n") == 1


def test_batches_of_every_width_are_timed() -> None:
    order = calibration.Order([10 * i for i in range(1, 101)], 4, seed=0)
    chosen = calibration._spread(order, 3, 5)
    assert len(chosen) == len(set(chosen)) == 6
    assert sum(i % 5 == 0 for i in chosen) == 3
    assert torch.tensor([max(order.lengths[k] for k in order.batch(i)) for i in chosen]).float().std() > 100


def test_a_training_on_the_targets_own_answers_is_as_long_as_there_are_answers() -> None:
    config = compose(("profile=single_gpu", "data.regenerate=5120"))
    assert plan.estimated(config, None).examples == 5120
    assert plan.estimated(compose(("profile=single_gpu",)), None).examples > 60_000
