"""Checks of the drafter, each against a subject in which exactly that thing is broken: what reaches a block, labels,
files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.drafters import every_exported, every_layered
from helpers.findings import BACKBONES, Break, Patch, found, only, wrong
from specauf_cli.doctor.subject import Subject
from specauf_cli.evaluation import replay
from specauf_cli.interchange import formats
from specauf_cli.models import blocks, checkpoint
from specauf_cli.models.attention import BlockAttention
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.domino import Domino
from specauf_cli.models.heads import Heads
from specauf_cli.models.target import Target
from specauf_cli.store.files import read_json, write_json


def shifted_view(by: int) -> Callable[..., Tensor]:
    """BlockAttention.forward whose blocks see ``by`` context positions more (fewer, if negative)."""
    real = BlockAttention.forward

    def forward(self: BlockAttention, hidden: Tensor, context: Any, view: Any) -> Tensor:
        seen = view.visible.sum(dim=-1, keepdim=True) + by
        visible = torch.arange(view.visible.shape[-1]) < seen
        return real(self, hidden, context, view._replace(visible=visible))

    return forward


@every_layered
@pytest.mark.parametrize("attention", ["dense", "split"])
def test_a_leak_of_one_position(healthy: Break, monkeypatch: Patch, name: str, attention: str) -> None:
    monkeypatch.setattr(BlockAttention, "forward", shifted_view(1))
    only(
        healthy(name, settings={"backbone.attention": attention}),
        "leak",
        "anchor + 0 reaches the block, 1 do",
        "fix",
    )


@pytest.mark.parametrize("name", ["medusa", "recurrent"])
@pytest.mark.parametrize(("by", "says"), [(1, "reaches the block"), (-1, "right before the anchor does not reach")])
def test_heads_that_read_another_position(healthy: Break, monkeypatch: Patch, name: str, by: int, says: str) -> None:
    real = Heads.before
    monkeypatch.setattr(Heads, "before", lambda self, context, anchors: real(self, context, anchors + by))
    only(healthy(name), "leak", says)


def test_a_block_that_misses_the_state_before_its_anchor(healthy: Break, monkeypatch: Patch) -> None:
    monkeypatch.setattr(BlockAttention, "forward", shifted_view(-1))
    only(healthy(), "leak", "right before the anchor does not reach")


def test_a_branch_that_reads_the_token_it_is_to_predict(healthy: Break, monkeypatch: Patch) -> None:
    real = Domino.logits

    def logits(self: Domino, target: Target, hidden: Tensor, previous: Tensor) -> dict[str, Tensor]:
        return real(self, target, hidden, previous.roll(-1, dims=1))

    monkeypatch.setattr(Domino, "logits", logits)
    assert "reads the token that slot" in wrong(healthy("domino"))["leak"]


def test_a_target_that_sees_ahead(healthy: Break, target: Target, monkeypatch: Patch) -> None:
    real = Target.features
    monkeypatch.setattr(Target, "features", lambda self, tokens: real(self, tokens) + tokens.sum())
    assert "not causal" in wrong(healthy())["leak"]


@pytest.mark.parametrize("name", BACKBONES)
def test_labels_shifted_by_one(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = blocks.labels_and_mask
    shifted = lambda tokens, *rest: real(tokens.roll(-1, dims=1), *rest)  # noqa: E731
    monkeypatch.setattr(blocks, "labels_and_mask", shifted)
    only(
        healthy(name),
        "labels",
        "the label of slot 0 is not the token at anchor + 1, it is the token at anchor + 2",
    )


def test_a_mask_that_goes_on_behind_the_turn(healthy: Break, monkeypatch: Patch) -> None:
    real = blocks.labels_and_mask

    def longer(tokens: Tensor, supervised: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return real(tokens, torch.ones_like(supervised), *rest)

    monkeypatch.setattr(blocks, "labels_and_mask", longer)
    only(healthy(), "labels", "is supervised, its token is not")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_replay_that_compares_other_tokens_than_the_labels(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = replay.accepted_slotwise
    monkeypatch.setattr(replay, "accepted_slotwise", lambda *one: real(*one[:2], one[2].roll(1, dims=-1)))
    only(healthy(name), "labels", "proposals accepted")


@pytest.mark.parametrize(("name", "kind"), [("dflash", DFlash), ("domino", Domino)])
def test_drafts_from_another_slot_than_the_trained_one(
    healthy: Break, monkeypatch: Patch, name: str, kind: Any
) -> None:
    real = kind.draft
    monkeypatch.setattr(kind, "draft", lambda self, *rest: real(self, *rest).roll(1, dims=-1))
    only(healthy(name, settings={"backbone.init_std": 0.3}), "labels", "drafts another token than its training logits")


@pytest.mark.parametrize(("name", "kind"), [("dflash", DFlash), ("domino", Domino)])
def test_slot_by_slot_drafts_other_tokens_than_the_trained_ones(
    healthy: Break, monkeypatch: Patch, name: str, kind: Any
) -> None:
    real = kind.slot_by_slot

    def shifted(self: Any, *block: Any) -> Any:
        propose = real(self, *block)
        return lambda slot, rows, before: propose(slot, rows, before) + 1

    monkeypatch.setattr(kind, "slot_by_slot", shifted)
    only(healthy(name, settings={"backbone.init_std": 0.3}), "labels", "drafts another token than its training logits")


@pytest.fixture
def make_run(healthy: Break, target: Target, tmp_path: Path) -> Callable[..., Subject]:
    """A subject whose drafter lies in a run's folder, after ``change`` of its configuration."""

    def make(name: str = "dflash", change: Callable[[dict[str, Any]], object] = lambda _: None) -> Subject:
        drafter = healthy(name).drafter()
        folder = tmp_path / "run"
        checkpoint.save(drafter, target, folder / "drafter", run="run")
        stored = read_json(folder / "drafter" / "config.json")
        change(stored)
        write_json(folder / "drafter" / "config.json", stored)
        return healthy(name, folder=folder)

    return make


@pytest.mark.parametrize("name", BACKBONES)
def test_a_drafter_that_belongs_to_its_target(make_run: Callable[..., Subject], name: str) -> None:
    said = found(make_run(name))
    assert {n: f.found for n, f in said.items() if f.verdict != "ok"} == {}
    assert "settings fit the target" in said["drafter"].found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(vocab_size=999), "vocab_size is 999, here it is 320"),
        (lambda c: c.update(hidden_size=64), "hidden_size is 64, here it is 32"),
        (lambda c: c.update(block_size=16), "block_size is 16, here it is 8"),
        (lambda c: c.update(num_target_layers=36), "num_target_layers is 36, here it is 4"),
        (lambda c: c["dflash_config"].update(mask_token_id=7), "dflash_config.mask_token_id is 7, here it is 3"),
        (lambda c: c["dflash_config"].update(pure_draft_prefix_len=3), "pure_draft_prefix_len is 3, here it is 1"),
        (lambda c: c["specauf"].update(target_fingerprint="x"), "specauf.target_fingerprint is 'x', here it is 'test'"),
        (lambda c: c["specauf"].update(weights="x"), "altered or damaged"),
    ],
)
def test_a_drafter_of_another_make(make_run: Callable[..., Subject], change: Any, words: str) -> None:
    only(make_run("domino", change), "drafter", words, "fix: ")


@pytest.mark.parametrize(
    ("by", "words"), [(1, "as SGLang and vLLM do internally"), (-1, "one lower"), (5, "are not the taps")]
)
def test_layer_ids_counted_in_another_way(make_run: Callable[..., Subject], by: int, words: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["dflash_config"]["target_layer_ids"] = [i + by for i in (0, 1, 2)]

    only(make_run("dflash", change), "layers", words)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_save_that_loses_a_bit(healthy: Break, monkeypatch: Patch, name: str) -> None:
    real = checkpoint.save

    def lossy(drafter: DFlash, *rest: Any, **more: Any) -> None:
        worse = copy.deepcopy(drafter)
        with torch.no_grad():
            worse.fc.weight.view(torch.int32)[3, 4] ^= 1
        real(worse, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", lossy)
    only(healthy(name), "round trip", "checkpoint: fc.weight comes back changed")


@every_exported
def test_an_export_that_rounds(
    healthy: Break, target_of: Callable[[str], Target], monkeypatch: Patch, name: str
) -> None:
    real = formats.write
    monkeypatch.setattr(formats, "write", lambda *places, **how: real(*places, **how | {"dtype": "bf16"}))
    only(healthy(name, target=target_of(name)), "round trip", "export and import: ", " comes back changed")


@pytest.mark.parametrize(("taps", "trips"), [("last", "checkpoint, export and import"), ((0, 1, 2), "checkpoint")])
def test_heads_are_exported_where_a_layout_has_them(
    healthy: Break, make_target: Callable[..., Target], taps: Any, trips: str
) -> None:
    assert f"drafts are equal ({trips})" in found(healthy("medusa", target=make_target(taps=taps)))["round trip"].found


def test_an_import_that_forgets_a_knob(healthy: Break, monkeypatch: Patch) -> None:
    real = formats.drafter

    def forgets(*args: Any) -> tuple[DFlash, list[str]]:
        made, copies = real(*args)
        made.mask_id += 1
        return made, copies

    monkeypatch.setattr(formats, "drafter", forgets)
    only(healthy(settings={"backbone.init_std": 0.3}), "round trip", "export and import: the same weights draft other")
