"""The DFlash backbone (arXiv 2602.06036): a few Qwen3 layers that draft a whole block in one parallel pass.

The drafter uses the target's embedding and head, both frozen. Each layer projects the fused target features with the
same k_proj and v_proj as the block and lets every block attend over [features strictly before its anchor ; itself].
Tensor names are those of the public checkpoints.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.models.attention import DraftLayer, View, block_mask, products
from specauf_cli.models.operations import RMSNorm, product_dtype
from specauf_cli.models.target import Target
from specauf_cli.runtime import sharding

SlotBySlot = Callable[[int, Tensor, Tensor], Tensor]
"""``(slot, blocks [M], token before it [M])`` to the greedy proposals ``[M]`` of that slot. Slots are requested in
order; a block that is left out of one slot is left out of all later ones."""


NOTHING = -1
"""In the place of a token: a drafter that is not sure enough proposes no token there, nor after it. No token of a
target equals it, so it is never accepted."""


class PublicKeys(NamedTuple):
    """Keys of a public ``config.json`` that only this kind of drafter has: ``inside`` its ``dflash_config`` and
    ``beside`` it."""

    inside: dict[str, Any]
    beside: dict[str, Any]


class Context(NamedTuple):
    """Keys and values of the context, one pair per layer, each ``[B, Hkv, T, Dh]``, rotary positions applied."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        """T, the number of context positions held."""
        return self.keys[0].shape[2] if self.keys else 0

    def rows(self, index: Int[Tensor, "M"]) -> "Context":
        """The context of some of the sequences."""
        return Context([k[index] for k in self.keys], [v[index] for v in self.values])

    def extend(self, more: "Context") -> "Context":
        """This context followed by ``more`` (the next positions of the same sequences)."""
        return Context(
            [torch.cat([a, b], dim=2) for a, b in zip(self.keys, more.keys, strict=True)],
            [torch.cat([a, b], dim=2) for a, b in zip(self.values, more.values, strict=True)],
        )


class DFlash(nn.Module):
    """Drafter of block size B: slot k (0-based) predicts the (k+1)-th token after the anchor, K = B - 1 slots."""

    branches: tuple[str, ...] = ("base",)
    """Sets of logits, each with its own credit; drafts come from the last one."""
    first = 1
    """Block position of slot 0; position 0 holds the anchor, which DFlash does not predict from."""
    architecture = "DFlashDraftModel"
    layered = True
    """Whether it has draft layers, ``backbone.layers`` of them."""
    base_is_head = True
    """Whether the base branch's logits are the target's head applied to ``hidden``."""
    least_confidence = 0.0
    """A slot with less confidence proposes nothing (``evaluation.confidence``)."""

    def __init__(self, config: Qwen3Config, backbone: BackboneConfig, features: int, mask_id: int) -> None:
        """``config``: sizes of one draft layer; ``features``: tapped layers; ``mask_id``: the target's mask token."""
        super().__init__()
        self.config, self.backbone, self.mask_id = config, backbone, mask_id
        self.fc = nn.Linear(features * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers: Any = nn.ModuleList([DraftLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = Qwen3RotaryEmbedding(config)

    @property
    def slots(self) -> int:
        """K, the number of supervised slots of a training block."""
        return self.backbone.block_size - self.first

    def public(self, taps: Sequence[int]) -> PublicKeys:
        """Keys of its public configuration beyond those that every drafter has; ``taps``: the tapped layers."""
        return PublicKeys({}, {})

    @classmethod
    def extra_work(cls, width: int, vocabulary: int, knobs: dict[str, Any]) -> float:
        """Operations for one slot beyond draft layers and the target's head, one way: ``specauf plan`` counts with
        it."""
        return 0.0

    def initialise(self, seed: int) -> None:
        """Seeded weights: matrices normal with ``backbone.init_std``, norms one. The same for every objective."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            with torch.no_grad():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * self.backbone.init_std)
                else:
                    parameter.fill_(1.0)

    def shard(self, device: str) -> None:
        """Spreads the draft layers over the ranks, without what ``context`` reads before a layer's turn."""
        attentions = [layer.self_attn for layer in self.layers]
        keep = [part.weight for a in attentions for part in (a.k_proj, a.v_proj, a.k_norm)]
        sharding.shard(self.layers, device, keep=keep)

    def context(self, features: Float[Tensor, "B T F"], start: int = 0) -> Context:
        """Context keys and values of target features at absolute positions ``start`` .. ``start`` + T - 1."""
        if not torch.is_autocast_enabled(features.device.type):  # autocast would cast them before the product
            features = features.to(self.fc.weight.dtype)
        projected = self.fc(features)
        fused = self.hidden_norm(projected, product_dtype(projected))
        positions = torch.arange(start, start + features.shape[1], device=features.device)[None]
        rotary = self.rotary(self.norm.weight, positions)
        attentions = [layer.self_attn for layer in self.layers]
        joined = products(fused, *(matrix for a in attentions for matrix in (a.k_proj, a.v_proj)))
        pairs = [
            a.context(keys, values, rotary)
            for a, keys, values in zip(attentions, joined[::2], joined[1::2], strict=True)
        ]
        return Context([k for k, _ in pairs], [v for _, v in pairs])

    def hidden(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> Float[Tensor, "B A K D"]:
        """Final hidden state of every slot; block positions before slot 0 are dropped.

        ``context`` may extend beyond an anchor (training, replay) or end right before it (live decoding): positions at
        or after the anchor are masked in both cases, so the results agree.
        """
        batch, blocks = anchors.shape
        width = self.backbone.block_size
        tokens = anchor_tokens.new_full((batch, blocks, width), self.mask_id)
        tokens[:, :, 0] = anchor_tokens
        # The residual stream has the precision of the drafter, not of the target: fp32 in training.
        hidden: Tensor = target.embed(tokens.flatten(1)).to(self.norm.weight.dtype)
        positions = (anchors[:, :, None] + torch.arange(width, device=anchors.device)).flatten(1)
        rotary = self.rotary(hidden, positions)
        visible = torch.arange(context.length, device=anchors.device) < anchors[:, :, None]
        attention = self.attention(hidden, blocks)
        mask = block_mask(anchors, context.length, width) if attention == "flex" else None
        view = View(rotary, visible, attention, mask)
        for layer, key, value in zip(self.layers, context.keys, context.values, strict=True):
            hidden = layer(hidden, (key, value), view)
        hidden = self.norm(hidden)
        return hidden.view(batch, blocks, width, -1)[:, :, self.first :]

    def attention(self, hidden: Tensor, blocks: int) -> str:
        """Which attention to use for ``blocks`` blocks per sequence; ``auto`` takes the fastest that was measured.

        Many blocks: flex on a GPU; else split in training and in low precision, dense in fp32 without gradients. One
        block per sequence (drafting): split, since dense would copy the whole context for each.
        """
        if self.backbone.attention != "auto":
            return self.backbone.attention
        if blocks == 1:
            return "split"
        low = hidden.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(hidden.device.type)
        return "flex" if hidden.is_cuda else "split" if low or torch.is_grad_enabled() else "dense"

    def logits(
        self, target: Target, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]
    ) -> dict[str, Float[Tensor, "N K V"]]:
        """Logits of each branch through the target's frozen head.

        ``previous[n, k]`` is the token right before the one that slot k predicts (the anchor's for k = 0). DFlash
        ignores it, since its slots do not see each other's tokens.
        """
        return {"base": target.head(hidden)}

    def confidence(self, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]) -> Float[Tensor, "N K"] | None:
        """Logits of the chance that the target accepts each slot's token; None without a confidence head."""
        return None

    @classmethod
    def confident(cls) -> bool:
        """Whether it estimates its chances, so that ``least_confidence`` may be above 0."""
        return cls.confidence is not DFlash.confidence

    @classmethod
    def row_wise(cls) -> bool:
        """Whether a slot's logits are the target's head applied to its own hidden state: false if ``logits`` is
        overridden."""
        return cls.logits is DFlash.logits

    def draft(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> Int[Tensor, "B A P"]:
        """The greedy proposals of every block, P = ``backbone.proposals``: one token per slot, all from one pass."""
        hidden = self.hidden(target, context, anchor_tokens, anchors)[:, :, : self.backbone.proposals]
        return target.head(hidden).argmax(dim=-1)

    def draft_in_turn(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> Int[Tensor, "B A P"]:
        """``draft`` of a backbone whose slots are given the tokens before them: ``slot_by_slot``, with those drafted so
        far."""
        propose = self.slot_by_slot(target, context, anchor_tokens, anchors)
        everyone = torch.arange(anchors.numel(), device=anchors.device)
        token, drafted = anchor_tokens.flatten(), list[Tensor]()
        for slot in range(self.backbone.proposals):
            token = propose(slot, everyone, token)
            drafted.append(token)
        return torch.stack(drafted, dim=1).view(*anchors.shape, -1)

    def slot_by_slot(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> SlotBySlot:
        """The proposals of ``draft``, slot by slot, for the blocks not yet rejected: replay stops at a rejection."""
        hidden = self.hidden(target, context, anchor_tokens, anchors).flatten(0, 1)
        return partial(self._propose, target, hidden)

    def _propose(
        self, target: Target, hidden: Float[Tensor, "N K D"], slot: int, blocks: Int[Tensor, "M"], _: Int[Tensor, "M"]
    ) -> Int[Tensor, "M"]:
        """The token of one slot of ``blocks``; the token before it has no influence."""
        return target.head(hidden[blocks, slot]).argmax(dim=-1)

    def __init_subclass__(cls) -> None:
        """TypeError for a backbone that overrides ``draft`` but not ``slot_by_slot``: the two must agree."""
        super().__init_subclass__()
        if "draft" in vars(cls) and "slot_by_slot" not in vars(cls):
            raise TypeError(f"{cls.__name__} defines draft, so it must define slot_by_slot too: replay uses it")
