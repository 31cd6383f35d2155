"""The Domino backbone: teacher forcing equals drafting, the prefix rule, public tensors, DFlash inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from specauf_cli.config import names
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.errors import InputError
from specauf_cli.models import checkpoint
from specauf_cli.models.blocks import previous_tokens
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target

MakeDrafter = Callable[..., DFlash]
G, R = 6, 5
ANCHORS = [[3, 9, 14], [0, 5, 20]]


def domino(prefix: int = 1, **knobs: Any) -> dict[str, Any]:
    """What makes a backbone's configuration Domino's."""
    own = {"gru_hidden_dim": G, "emb_dim": R, "pure_draft_prefix_len": prefix}
    return {"name": "domino", "kind": "domino", "knobs": own | knobs}


@pytest.fixture
def make_domino(make_drafter: MakeDrafter) -> MakeDrafter:
    def make(seed: int = 0, prefix: int = 1, **changes: Any) -> DFlash:
        return make_drafter(seed, **domino(prefix), **changes)

    return make


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(4, 300, (2, 32), generator=torch.Generator().manual_seed(0))


def hidden_of(drafter: DFlash, target: Target, tokens: Tensor, anchors: Tensor) -> Tensor:
    context = drafter.context(target.features(tokens))
    return drafter.hidden(target, context, tokens.gather(1, anchors), anchors)


def by_definition(drafter: Any, target: Target, hidden: Tensor, previous: list[int], slot: int) -> Tensor:
    """Final logits of one slot, written out: the gated recurrence over ``previous``, then the low-rank correction."""
    w_in, w_state = drafter.prefix_gru.weight_ih_l0, drafter.prefix_gru.weight_hh_l0
    state = torch.zeros(G)
    for token in previous[: slot + 1]:
        r_in, z_in, n_in = (w_in @ target.embed(torch.tensor(token))).chunk(3)
        r_state, z_state, n_state = (w_state @ state).chunk(3)
        reset, update = torch.sigmoid(r_in + r_state), torch.sigmoid(z_in + z_state)
        state = (1 - update) * torch.tanh(n_in + reset * n_state) + update * state
    inner = F.silu(drafter.embed_proj[0].weight @ torch.cat([hidden, state]))
    return target.head(hidden) + (drafter.embed_proj[2].weight @ inner)[: target.chat.vocab]


@pytest.mark.parametrize("proposals", [7, 8])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_teacher_forced_logits_are_the_drafting_logits_when_the_tokens_agree(
    target: Target, make_domino: MakeDrafter, tokens: Tensor, prefix: int, proposals: int
) -> None:
    drafter, anchors = make_domino(prefix=prefix, proposals=proposals), torch.tensor(ANCHORS)
    with torch.no_grad():
        context = drafter.context(target.features(tokens))
        drafted = drafter.draft(target, context, tokens.gather(1, anchors), anchors)
        assert drafted.shape == (2, 3, proposals)
        gold = torch.cat([tokens.gather(1, anchors)[:, :, None], drafted], dim=2)[:, :, :proposals]
        hidden = hidden_of(drafter, target, tokens, anchors)[:, :, :proposals]
        found = drafter.logits(target, hidden.flatten(0, 1), gold.flatten(0, 1))
        assert torch.equal(found["final"].argmax(dim=-1).view(drafted.shape), drafted)
        assert not torch.equal(found["base"].argmax(dim=-1).view(drafted.shape), drafted), "the correction must matter"
        for block in range(6):
            for slot in range(proposals):
                row = hidden.flatten(0, 1)[block, slot]
                expected = by_definition(drafter, target, row, gold.flatten(0, 1)[block].tolist(), slot)
                expected = expected if slot >= prefix else target.head(row)
                assert torch.allclose(found["final"][block, slot], expected, rtol=1e-4, atol=1e-3)


def test_the_first_slot_uses_base_logits_only(target: Target, make_domino: MakeDrafter, tokens: Tensor) -> None:
    drafter, anchors = make_domino(), torch.tensor(ANCHORS)
    hidden = hidden_of(drafter, target, tokens, anchors).flatten(0, 1)
    found = drafter.logits(target, hidden, previous_tokens(tokens, anchors, 8).flatten(0, 1))
    assert torch.equal(found["base"][:, 0], found["final"][:, 0])
    assert not torch.isclose(found["base"][:, 1:], found["final"][:, 1:]).all(dim=-1).any()
    assert torch.equal(found["base"], target.head(hidden))


def test_a_later_token_never_reaches_an_earlier_slot(target: Target, make_domino: MakeDrafter, tokens: Tensor) -> None:
    drafter, anchors = make_domino(), torch.tensor(ANCHORS)
    hidden = hidden_of(drafter, target, tokens, anchors).flatten(0, 1).detach()
    previous = previous_tokens(tokens, anchors, 8).flatten(0, 1)
    reference = drafter.logits(target, hidden, previous)["final"]
    for slot in range(8):
        changed = previous.clone()
        changed[:, slot] = (changed[:, slot] + 1) % 300
        differs = (drafter.logits(target, hidden, changed)["final"] != reference).any(dim=-1).any(dim=0)
        assert not differs[:slot].any()
        assert differs[max(slot, 1) :].all()


def test_previous_tokens_are_the_anchor_and_the_tokens_behind_it(tokens: Tensor) -> None:
    found = previous_tokens(tokens, torch.tensor([[3], [28]]), 8)
    assert found[0, 0].tolist() == tokens[0, 3:11].tolist()
    assert found[1, 0].tolist() == [*tokens[1, 28:].tolist(), *[int(tokens[1, 31])] * 4]


def test_slots_begin_at_the_anchor_and_the_backbone_is_dflash(
    target: Target, make_drafter: MakeDrafter, make_domino: MakeDrafter, tokens: Tensor
) -> None:
    anchors = torch.tensor(ANCHORS)
    plain, corrected = make_drafter(4), make_domino(4)
    assert (plain.slots, corrected.slots) == (7, 8)
    own, known = corrected.state_dict(), plain.state_dict()
    assert all(torch.equal(own[k], known[k]) for k in known), "same seed, same backbone weights"
    a, b = (hidden_of(d, target, tokens, anchors) for d in (plain, corrected))
    assert torch.equal(a, b[:, :, 1:])


def test_tensors_and_configuration_are_the_public_ones(
    target: Target, make_domino: MakeDrafter, backbone: BackboneConfig, tmp_path: Path
) -> None:
    drafter = make_domino(5)
    checkpoint.save(drafter, target, tmp_path, run="a")
    shapes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "model.safetensors").items()}
    d, v = target.hidden_size, target.model.config.vocab_size
    assert {k: s for k, s in shapes.items() if k.startswith(("prefix_gru", "embed_proj"))} == {
        "prefix_gru.weight_ih_l0": (3 * G, d),
        "prefix_gru.weight_hh_l0": (3 * G, G),
        "embed_proj.0.weight": (R, d + G),
        "embed_proj.2.weight": (v, R),
    }
    assert len(shapes) == 3 + 11 * 2 + 4
    stored = checkpoint.public_config(drafter, target)
    assert stored["architectures"] == ["DominoDraftModel"]
    assert stored["emb_dim"] == R
    assert stored["dflash_config"] == {
        "mask_token_id": target.chat.mask_id,
        "target_layer_ids": [0, 1, 2],
        "projector_type": "domino",
        "shift_label": True,
        "pure_draft_prefix_len": 1,
        "emb_dim": R,
        "gru_hidden_dim": G,
    }
    two = replace(backbone, **domino())
    loaded = checkpoint.load(tmp_path, target, two)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), drafter.parameters(), strict=True))
    with pytest.raises(InputError, match="its architecture is"):
        checkpoint.load(tmp_path, target, backbone)
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(tmp_path, target, replace(backbone, **domino(emb_dim=R + 1)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"proposals": 9}, "proposals=9 is out of range; valid: 1..8"),
        (domino(gru_hidden_dim=0), "gru_hidden_dim=0 is out of range"),
        (domino(emb_dim=1.5), "emb_dim=1.5 is not valid; expected a whole number"),
        (domino(prefix=9), "pure_draft_prefix_len=9 is out of range; valid: 0..8"),
    ],
)
def test_sizes_that_cannot_work_are_refused(backbone: BackboneConfig, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        names.backbone(replace(backbone, **{**domino(), **changes}))
