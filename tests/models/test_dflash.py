"""The backbone: nothing leaks, blocks are strangers, and training sees what decoding sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._functorch.config as functorch
from torch import Tensor

from helpers.sequences import ANCHORS, close
from specauf_cli.models.attention import _compiled_flex
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target

MakeTarget = Callable[..., Target]
MakeDrafter = Callable[..., DFlash]

both_attentions = pytest.mark.parametrize("attention", ["dense", "split"])


@pytest.fixture
def anchors() -> Tensor:
    return torch.tensor([ANCHORS, ANCHORS[::-1]])


def hidden(drafter: DFlash, target: Target, features: Tensor, tokens: Tensor, anchors: Tensor) -> Tensor:
    return drafter.hidden(target, drafter.context(features), tokens.gather(1, anchors), anchors)


def by_definition(drafter: DFlash, target: Target, features: Tensor, anchor_token: int, anchor: int) -> Tensor:
    """One block from its definition, head by head: [context before the anchor ; the block] is attended by the block."""
    weights, sizes = drafter.state_dict(), drafter.config
    width, dim = drafter.backbone.block_size, sizes.head_dim
    group = sizes.num_attention_heads // sizes.num_key_value_heads

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + sizes.rms_norm_eps).sqrt() * weights[f"{name}.weight"]

    def rotated(x: Tensor, first: int) -> Tensor:
        frequency = 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.arange(first, first + len(x))[:, None] * frequency
        one, two = x[:, : dim // 2], x[:, dim // 2 :]
        return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], dim=1)

    context = normed(features[:anchor] @ weights["fc.weight"].T, "hidden_norm")
    tokens = torch.tensor([anchor_token] + [target.chat.mask_id] * (width - 1))
    x = target.model.get_input_embeddings().weight[tokens]
    for i in range(drafter.backbone.layers):
        layer = f"layers.{i}"
        block = normed(x, f"{layer}.input_layernorm")
        q, k, v = (
            part @ weights[f"{layer}.self_attn.{name}_proj.weight"].T
            for name, part in (("q", block), ("k", torch.cat([context, block])), ("v", torch.cat([context, block])))
        )
        heads = []
        for h in range(sizes.num_attention_heads):
            own, shared = slice(h * dim, (h + 1) * dim), slice(h // group * dim, (h // group + 1) * dim)
            query = rotated(normed(q[:, own], f"{layer}.self_attn.q_norm"), anchor)
            key = rotated(normed(k[:, shared], f"{layer}.self_attn.k_norm"), 0)
            heads.append((query @ key.T / dim**0.5).softmax(dim=-1) @ v[:, shared])
        x = x + torch.cat(heads, dim=1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        y = normed(x, f"{layer}.post_attention_layernorm")
        gate, up, down = (weights[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(y @ gate.T) * (y @ up.T)) @ down.T
    return normed(x, "norm")[1:]


@pytest.mark.parametrize("attention", ["dense", "split", "flex"])
@torch.no_grad()
def test_a_block_is_what_its_definition_says(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor, attention: str
) -> None:
    drafter = make_drafter(attention=attention)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in drafter.parameters():  # norms of all ones would hide which norm is applied where
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    features = target.features(tokens)
    found = hidden(drafter, target, features, tokens, anchors)
    for row in range(2):
        for block, anchor in enumerate(anchors[row].tolist()):
            expected = by_definition(drafter, target, features[row], int(tokens[row, anchor]), anchor)
            assert close(found[row, block], expected)


@both_attentions
def test_no_gradient_reaches_target_features_at_or_after_the_anchor(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor, attention: str
) -> None:
    drafter = make_drafter(attention=attention)
    features = target.features(tokens).requires_grad_()
    found = hidden(drafter, target, features, tokens, anchors)
    weights = torch.randn(found.shape[2:], generator=torch.Generator().manual_seed(1))
    for row in range(2):
        for block, anchor in enumerate(anchors[row].tolist()):
            (gradient,) = torch.autograd.grad((found[row, block] * weights).sum(), features, retain_graph=True)
            size = gradient[row].abs().amax(dim=1)
            assert not size[anchor:].any(), "the block sees its anchor's features or later ones"
            assert (size[:anchor] > 0).all(), "the block does not see all of its context"
            assert not gradient[1 - row].any(), "the block sees another sequence"


@both_attentions
def test_tokens_after_the_anchor_change_nothing(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor, attention: str
) -> None:
    drafter = make_drafter(attention=attention)
    reference = hidden(drafter, target, target.features(tokens), tokens, anchors)
    for row in range(2):
        for block, anchor in enumerate(anchors[row].tolist()):
            other = tokens.clone()
            other[row, anchor + 1 :] = 5
            found = hidden(drafter, target, target.features(other), other, anchors)
            assert torch.allclose(found[row, block], reference[row, block], atol=1e-5)
            if anchor > 0:
                other[row, anchor - 1] = (other[row, anchor - 1] + 1) % target.chat.vocab
                found = hidden(drafter, target, target.features(other), other, anchors)
                assert not torch.allclose(found[row, block], reference[row, block], atol=1e-3)


@both_attentions
def test_overlapping_blocks_do_not_see_each_other(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, attention: str
) -> None:
    drafter = make_drafter(attention=attention)
    context = drafter.context(target.features(tokens))
    anchors = torch.tensor([[9, 10, 13]] * 2)
    given = tokens.gather(1, anchors)
    before = drafter.hidden(target, context, given, anchors)
    for block in range(3):
        changed = given.clone()
        changed[:, block] = (changed[:, block] + 1) % target.chat.vocab
        difference = (drafter.hidden(target, context, changed, anchors) - before).abs().amax(dim=(0, 2, 3))
        assert difference[block] > 1e-3
        assert difference[torch.arange(3) != block].max() <= 1e-6


@both_attentions
def test_a_block_is_the_same_alone_and_among_others(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor, attention: str
) -> None:
    drafter = make_drafter(attention=attention)
    features = target.features(tokens)
    together = hidden(drafter, target, features, tokens, anchors)
    for block in range(anchors.shape[1]):
        alone = hidden(drafter, target, features, tokens, anchors[:, block : block + 1])
        assert torch.allclose(alone[:, 0], together[:, block], atol=1e-5)


@pytest.mark.gpu
def test_flex_attention_equals_dense_attention(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor
) -> None:
    results = []
    for attention in ("dense", "flex"):
        drafter, features = make_drafter(attention=attention).cuda(), target.features(tokens).cuda().requires_grad_()
        embedded = Embedded(target.embed)
        context = drafter.context(features)
        anchor_tokens = tokens.gather(1, anchors).cuda()
        found = drafter.hidden(embedded, context, anchor_tokens, anchors.cuda())  # type: ignore[arg-type]
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).cuda()).sum().backward()
        assert features.grad is not None
        results.append([found.detach(), features.grad, *(p.grad for p in drafter.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for dense, flex in zip(*results, strict=True):
        assert (dense - flex).abs().max() <= 1e-4 * dense.abs().max()


class Embedded:
    """The one thing of a target on the CPU that a drafter on a GPU needs to draft blocks."""

    def __init__(self, embed: Callable[[Tensor], Tensor]) -> None:
        self._embed = embed

    def embed(self, tokens: Tensor) -> Tensor:
        return self._embed(tokens.cpu()).cuda()


def test_attention_by_itself_is_chosen_by_device_precision_and_use(make_drafter: MakeDrafter) -> None:
    drafter, hidden = make_drafter(attention="auto"), torch.zeros(1)
    assert [drafter.attention(hidden, n) for n in (1, 8)] == ["split", "split"]
    with torch.no_grad():
        assert [drafter.attention(hidden, n) for n in (1, 8)] == ["split", "dense"]
        assert drafter.attention(hidden.bfloat16(), 8) == "split"
        with torch.autocast("cpu", torch.bfloat16):
            assert drafter.attention(hidden, 8) == "split"


def test_split_attention_equals_dense_attention(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor
) -> None:
    results = []
    for attention in ("dense", "split"):
        drafter = make_drafter(attention=attention)
        features = target.features(tokens).requires_grad_()
        found = hidden(drafter, target, features, tokens, anchors)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        assert features.grad is not None
        gradients = [p.grad for p in drafter.parameters() if p.grad is not None]
        results.append([found.detach(), features.grad, *gradients])
    assert len(results[0]) == len(results[1]) == 2 + len(list(make_drafter().parameters()))
    for dense, split in zip(*results, strict=True):
        assert close(split, dense)


def test_the_slots_of_a_block_are_not_causal(target: Target, make_drafter: MakeDrafter, tokens: Tensor) -> None:
    """A slot hears of the block's end: with a longer block, the same slot changes."""
    anchors = torch.tensor([[9]] * 2)
    short, long = make_drafter(block_size=4, proposals=3), make_drafter(block_size=8)
    features = target.features(tokens)
    first = hidden(short, target, features, tokens, anchors)
    second = hidden(long, target, features, tokens, anchors)
    assert (first.shape[2], second.shape[2]) == (3, 7)
    assert not torch.allclose(first, second[:, :, :3], atol=1e-3)


@both_attentions
@pytest.mark.parametrize("pieces", [(10,), (4, 6), (1, 1, 7, 1)])
def test_training_sees_what_decoding_sees(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, attention: str, pieces: tuple[int, ...]
) -> None:
    """The context of decoding grows in pieces and ends right before the anchor; that of training is the sequence."""
    drafter = make_drafter(attention=attention)
    anchor = sum(pieces)
    anchors = torch.tensor([[anchor]] * 2)
    training = hidden(drafter, target, target.features(tokens), tokens, anchors)
    context, cache, start = None, target.new_cache(), 0
    for size in pieces:
        _, features = target.forward(tokens[:, start : start + size], cache)
        more = drafter.context(features, start=start)
        context = more if context is None else context.extend(more)
        start += size
    assert context is not None
    assert context.length == anchor
    decoding = drafter.hidden(target, context, tokens[:, anchor : anchor + 1], anchors)
    assert torch.allclose(decoding, training, atol=1e-5)


def test_positions_are_absolute(target: Target, make_drafter: MakeDrafter, tokens: Tensor) -> None:
    """The same context further away from the same block, or a block further away from its context, is another one."""
    drafter = make_drafter()
    features = target.features(tokens)[:, :10]
    context, given = drafter.context(features), tokens[:, 10:11]
    at = torch.tensor([[10]] * 2)
    reference = drafter.hidden(target, context, given, at)
    moved = drafter.hidden(target, context, given, at + 3)
    assert not torch.allclose(moved, reference, atol=1e-3)
    again = drafter.hidden(target, drafter.context(features, start=3), given, at + 3)
    assert not torch.allclose(again, moved, atol=1e-3)
    # rotary positions are relative: moved together, context and block stay what they were
    assert close(again, reference)


def test_drafts_are_the_argmax_of_the_logits_cut_to_the_proposals(
    target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor
) -> None:
    drafter = make_drafter(proposals=5)
    context = drafter.context(target.features(tokens))
    found = drafter.hidden(target, context, tokens.gather(1, anchors), anchors)
    assert found.shape == (2, len(ANCHORS), drafter.slots, target.hidden_size)
    unused = torch.zeros(2 * len(ANCHORS), 7, dtype=torch.long)
    logits = drafter.logits(target, found.flatten(0, 1), unused)["base"].view(2, len(ANCHORS), 7, -1)
    drafts = drafter.draft(target, context, tokens.gather(1, anchors), anchors)
    assert torch.equal(drafts, logits.argmax(dim=-1)[:, :, :5])


def test_a_backbone_that_drafts_in_its_own_way_must_do_so_slot_by_slot_too() -> None:
    with pytest.raises(TypeError, match="Own defines draft, so it must define slot_by_slot too"):
        type("Own", (DFlash,), {"draft": lambda *_: None})


def test_compiled_flex_keeps_what_a_second_branch_goes_back_through() -> None:
    """Domino's base branch keeps the graph for the final one; a compiled backward pass must not give its buffers
    away."""
    _compiled_flex()
    assert functorch.donated_buffer is False


def test_logits_of_its_own_are_more_than_the_rows_of_the_head() -> None:
    assert DFlash.row_wise()
    assert type("Slots", (DFlash,), {"hidden": lambda *_: None}).row_wise()
    assert not type("Own", (DFlash,), {"logits": lambda *_: {}}).row_wise()


def test_initialise_depends_on_the_seed_only(make_drafter: MakeDrafter) -> None:
    torch.manual_seed(1)
    first = make_drafter(3).state_dict()
    torch.manual_seed(2)
    same, other = make_drafter(3).state_dict(), make_drafter(4).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name])
        if tensor.dim() > 1:
            assert not torch.equal(tensor, other[name])
            assert tensor.std().item() == pytest.approx(0.3, rel=0.15)
            assert abs(tensor.mean().item()) < 0.05
        else:
            assert tensor.eq(1).all()


def test_tensor_names_are_the_public_ones(target: Target, make_drafter: MakeDrafter) -> None:
    drafter = make_drafter(layers=5)
    names = {"fc.weight", "hidden_norm.weight", "norm.weight"}
    for i in range(5):
        names |= {f"layers.{i}.self_attn.{x}_proj.weight" for x in "qkvo"}
        names |= {f"layers.{i}.self_attn.{x}_norm.weight" for x in "qk"}
        names |= {f"layers.{i}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        names |= {f"layers.{i}.{x}_layernorm.weight" for x in ("input", "post_attention")}
    state = drafter.state_dict()
    assert set(state) == names
    assert len(state) == 58
    assert state["fc.weight"].shape == (32, 3 * 32)
    assert {id(p) for p in drafter.parameters()}.isdisjoint(id(p) for p in target.model.parameters())


def test_the_target_is_frozen(target: Target, make_drafter: MakeDrafter, tokens: Tensor, anchors: Tensor) -> None:
    drafter = make_drafter()
    found = hidden(drafter, target, target.features(tokens), tokens, anchors)
    target.head(found).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in target.model.parameters())
    assert all(p.grad is not None for p in drafter.parameters())
