"""Heads without draft layers: what they read, and that the anchor's own state is not among it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.drafters import KNOBS
from helpers.sequences import close
from specauf_cli.models.heads import Heads, Medusa, Recurrent
from specauf_cli.models.target import Target

MakeDrafter = Callable[..., Any]
MakeTarget = Callable[..., Target]
kinds = pytest.mark.parametrize("kind", ["medusa", "recurrent"])


def hidden_of(drafter: Heads, target: Target, tokens: Tensor, anchors: Tensor) -> Tensor:
    context = drafter.context(target.features(tokens))
    return drafter.hidden(target, context, tokens.gather(1, anchors), anchors)


@torch.no_grad()
def test_medusa_by_definition(make_target: MakeTarget, make_drafter: MakeDrafter, tokens: Tensor) -> None:
    target = make_target(taps="last")
    drafter = make_drafter(2, of=target, kind="medusa", name="medusa")
    assert isinstance(drafter, Medusa)
    anchors = torch.tensor([[3, 9], [1, 12]])
    states = target.model.model(tokens).last_hidden_state
    found = hidden_of(drafter, target, tokens, anchors)
    for b in range(2):
        for a in range(2):
            state = states[b, anchors[b, a] - 1]
            for k, head in enumerate(drafter.blocks):
                expected = state + F.silu(head.layers[0].weight @ state)  # type: ignore[index,operator]
                assert close(found[b, a, k], expected)


@torch.no_grad()
def test_recurrent_by_definition(make_target: MakeTarget, make_drafter: MakeDrafter, tokens: Tensor) -> None:
    target = make_target(taps="last")
    drafter = make_drafter(2, of=target, kind="recurrent", name="recurrent", knobs=KNOBS["recurrent"])
    assert isinstance(drafter, Recurrent)
    hidden = hidden_of(drafter, target, tokens, torch.tensor([[3], [9]])).flatten(0, 1)
    previous = tokens[:, : drafter.slots]
    found = drafter.logits(target, hidden, previous)["base"]
    for n in range(2):
        state = torch.zeros(1, 6)
        for k in range(drafter.slots):
            weights = drafter.prefix_gru.weight_ih_l0, drafter.prefix_gru.weight_hh_l0
            state = torch.gru_cell(target.embed(previous[n, k])[None], state, *weights)
            inner = F.silu(drafter.mix[0].weight @ torch.cat([hidden[n, k], state[0]]))
            expected = target.head(hidden[n, k] + drafter.mix[2].weight @ inner)
            torch.testing.assert_close(found[n, k], expected, rtol=1e-4, atol=1e-4)


@kinds
@torch.no_grad()
def test_the_last_state_is_the_models_own_in_every_pass(make_target: MakeTarget, tokens: Tensor, kind: str) -> None:
    target = make_target(taps="last")
    states = target.model.model(tokens).last_hidden_state
    assert target.taps == (3,)
    assert close(target.features(tokens), states)
    assert close(target.forward(tokens, target.new_cache())[1], states)
    assert close(target.features_and_last(tokens), torch.cat([states, states], dim=-1))


@kinds
@torch.no_grad()
def test_nothing_at_or_after_the_anchor_is_read(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, kind: str
) -> None:
    drafter = make_drafter(kind=kind, name=kind, knobs=KNOBS[kind])
    anchors = torch.tensor([[0, 9], [0, 9]])
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 300
    before, after = (hidden_of(drafter, target, x, anchors) for x in (tokens, changed))
    assert torch.equal(before, after)
    first = hidden_of(drafter, target, (tokens + 1) % 300, anchors)[:, 0]
    assert torch.equal(first, before[:, 0]), "before the first token there is no state"
    assert not torch.equal(hidden_of(drafter, target, (tokens + 1) % 300, anchors)[:, 1], before[:, 1])
