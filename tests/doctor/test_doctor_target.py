"""Checks of the target, each against a subject in which exactly that thing is broken: layers, head, rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.findings import Break, Patch, found, only, weights_of, with_chat, wrong
from specauf_cli.doctor.subject import FAIL, WARN
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target


def off_by_one(monkeypatch: Patch, view: str) -> None:
    real = getattr(Target, view)

    def shifted(self: Target, *rest: Any, **more: Any) -> Any:
        other = copy.copy(self)
        other.taps = tuple(t + 1 for t in self.taps)
        return real(other, *rest, **more)

    monkeypatch.setattr(Target, view, shifted)


@pytest.mark.parametrize(("view", "word"), [("features", "training"), ("forward", "decoding")])
def test_taps_off_by_one(
    healthy: Break, make_target: Callable[..., Target], monkeypatch: Patch, view: str, word: str
) -> None:
    off_by_one(monkeypatch, view)
    only(
        healthy(target=make_target(taps=(0, 1))), "layers", f"in {word}, the feature of tap 0 is the output of layer 1"
    )


def test_the_last_layer_tapped(healthy: Break, target: Target) -> None:
    broken = copy.copy(target)
    broken.taps = (0, 1, 3)
    assert "the last of 4" in wrong(healthy(target=broken))["layers"]


def with_other_head(target: Target) -> Target:
    """The target as it would be loaded with a head of its own."""
    model = copy.deepcopy(target.model)
    model.lm_head.weight = nn.Parameter(torch.randn(model.lm_head.weight.shape))
    return Target(model, target.chat, target.config, target.fingerprint)


def test_a_head_that_is_not_tied_although_the_target_says_so(healthy: Break, target: Target) -> None:
    broken = with_other_head(target)
    only(healthy(target=broken), "head", "says tie_word_embeddings")


def test_a_head_that_would_be_trained(healthy: Break, target: Target) -> None:
    broken = weights_of(target)
    broken.model.model.norm.weight.requires_grad_(True)
    only(healthy(target=broken), "head", "model.norm.weight of the target would be trained")


def test_a_head_that_no_file_holds(healthy: Break, target: Target, tmp_path: Path) -> None:
    broken = with_other_head(target)
    broken.model.config.tie_word_embeddings = False
    broken.config = replace(target.config, path=str(tmp_path / "target"))
    broken.model.save_pretrained(tmp_path / "target")
    assert wrong(healthy(target=broken)) == {}
    path = tmp_path / "target" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "lm_head" not in k}, path, metadata={"format": "pt"})
    only(healthy(target=broken), "head", "no file of the target holds lm_head.weight")


def test_a_drafter_with_an_embedding_of_its_own(healthy: Break, monkeypatch: Patch) -> None:
    real = DFlash.__init__

    def init(self: DFlash, config: Any, *rest: Any) -> None:
        real(self, config, *rest)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    monkeypatch.setattr(DFlash, "__init__", init)
    said = wrong(healthy())
    assert set(said) == {"head", "round trip"}, "it is exported with it, and that is refused"
    assert "embed_tokens.weight of its own" in said["head"]


@pytest.mark.parametrize(("factor", "word"), [(0.0, "norm 0;"), (100.0, "the median row"), (0.01, "the median row")])
def test_a_mask_row_that_is_zero_or_an_outlier(healthy: Break, target: Target, factor: float, word: str) -> None:
    broken = weights_of(target)
    broken._embedding.weight[target.chat.mask_id] *= factor
    said = only(healthy(target=broken), "mask row", "'<|mask|>' (id 3)", word, "fix: another target.mask_token")
    assert said.startswith(WARN if factor else FAIL)


def test_a_tokenizer_longer_than_the_head(healthy: Break, target: Target) -> None:
    broken = with_chat(target, lambda t: t.add_tokens([f"<extra{i}>" for i in range(9)]))
    only(healthy(target=broken), "vocabulary", "the tokenizer has 329 tokens, the target 320 rows")


def test_padded_rows_are_fine_when_they_are_cut_off_and_only_then(healthy: Break, target: Target) -> None:
    model = copy.deepcopy(target.model)
    model.resize_token_embeddings(384)
    padded = Target(model, copy.copy(target.chat), target.config, target.fingerprint)
    said = found(healthy(target=padded))
    assert said["vocabulary"].found == "320 tokens, 384 rows, 64 of them padding that is cut off"
    padded.chat.vocab = 384
    only(healthy(target=padded), "vocabulary", "384 logits for 320 tokens")
