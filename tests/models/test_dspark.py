"""DSpark: its logits and confidence by definition, and what its heads may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.drafters import KNOBS
from helpers.sequences import ANCHORS
from specauf_cli.config import names
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.errors import InputError
from specauf_cli.models.blocks import previous_tokens
from specauf_cli.models.dflash import NOTHING
from specauf_cli.models.dspark import DSpark
from specauf_cli.models.target import Target

MakeDrafter = Callable[..., DSpark]


@pytest.fixture(params=["vanilla", "gated"])
def dspark(make_drafter: MakeDrafter, request: pytest.FixtureRequest) -> DSpark:
    knobs = {"markov_rank": 5, "markov_head_type": request.param}
    return make_drafter(3, name="dspark", kind="dspark", knobs=knobs, proposals=8)


def block(drafter: DSpark, target: Target, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, hidden states [N, K, D] and the tokens before the slots [N, K]."""
    anchors = torch.tensor([ANCHORS[:3]] * 2)
    hidden = drafter.hidden(target, drafter.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
    return anchors, hidden.flatten(0, 1), previous_tokens(tokens, anchors, drafter.slots).flatten(0, 1)


@torch.no_grad()
def test_the_bias_and_the_confidence_by_definition(dspark: DSpark, target: Target, tokens: Tensor) -> None:
    _, hidden, previous = block(dspark, target, tokens)
    found, markov = dspark.logits(target, hidden, previous), dspark.markov_head
    assert torch.equal(found["base"], target.head(hidden))
    sure = dspark.confidence(hidden, previous)
    w1, w2, proj = markov.markov_w1.weight, markov.markov_w2.weight, dspark.confidence_head.proj
    for n in range(len(hidden)):
        for k in range(dspark.slots):
            row = w1[previous[n, k]]
            seen = torch.cat([hidden[n, k], row])
            if markov.gate_proj is not None:
                gated = torch.sigmoid(markov.gate_proj.weight @ seen + markov.gate_proj.bias) * row
            else:
                gated = row
            expected = target.head(hidden[n, k]) + (w2 @ gated)[: target.chat.vocab]
            torch.testing.assert_close(found["final"][n, k], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(sure[n, k], (proj.weight @ seen + proj.bias)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_drafts_are_the_trained_logits_when_the_tokens_agree(dspark: DSpark, target: Target, tokens: Tensor) -> None:
    anchors, hidden, _ = block(dspark, target, tokens)
    context = dspark.context(target.features(tokens))
    drafted = dspark.draft(target, context, tokens.gather(1, anchors), anchors).flatten(0, 1)
    previous = torch.cat([tokens.gather(1, anchors).flatten()[:, None], drafted], dim=1)[:, :-1]
    assert torch.equal(dspark.logits(target, hidden, previous)["final"].argmax(dim=-1), drafted)


@torch.no_grad()
def test_what_is_not_sure_enough_is_not_proposed_nor_what_follows(
    dspark: DSpark, target: Target, tokens: Tensor
) -> None:
    anchors, hidden, _ = block(dspark, target, tokens)
    context, first = dspark.context(target.features(tokens)), tokens.gather(1, anchors)
    whole = dspark.draft(target, context, first, anchors).flatten(0, 1)
    previous = torch.cat([first.flatten()[:, None], whole], dim=1)[:, :-1]
    chances = torch.sigmoid(dspark.confidence(hidden, previous))
    dspark.least_confidence = float(chances.median())
    cut = dspark.draft(target, context, first, anchors).flatten(0, 1)
    kept = (chances >= dspark.least_confidence).long().cumprod(dim=1).bool()
    assert torch.equal(cut, torch.where(kept, whole, NOTHING))
    assert 0 < int(kept.sum()) < kept.numel()


@torch.no_grad()
def test_biases_begin_at_zero_and_the_rest_is_dflash(
    dspark: DSpark, make_drafter: Callable[..., Any], tokens: Tensor
) -> None:
    assert not any(bool(p.any()) for n, p in dspark.named_parameters() if n.endswith(".bias"))
    plain = make_drafter(3)
    assert all(torch.equal(p, dspark.state_dict()[n]) for n, p in plain.state_dict().items())


def test_wrong_knobs_are_named(backbone: BackboneConfig) -> None:
    def with_knobs(**changes: Any) -> BackboneConfig:
        return replace(backbone, kind="dspark", knobs={**KNOBS["dspark"], **changes})

    with pytest.raises(InputError, match=r"markov_head_type='gatd' is none of vanilla, gated\. Did you mean 'gated'"):
        names.backbone(with_knobs(markov_head_type="gatd"))
    with pytest.raises(InputError, match="markov_rank=0 is out of range"):
        names.backbone(with_knobs(markov_rank=0))
