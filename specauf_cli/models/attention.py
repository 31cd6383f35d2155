"""A draft layer: blocks attend over [target features before their anchor ; themselves], then a gated MLP.

The tensors are those of a Qwen3 layer. The feature context of every layer goes through the same ``k_proj``, ``k_norm``
and ``v_proj`` as the block. Three ways to attend give the same result: ``dense`` (one call with a mask over everything,
the reference), ``split`` (context and block apart) and ``flex`` (tiles that no slot sees are never computed).
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, repeat_kv

from specauf_cli.models.operations import RMSNorm, attend_blocks, product_dtype, rotate


class View(NamedTuple):
    """The blocks of one pass: rotary positions of their slots, and which context each may see.

    ``visible[b, a, t]``: block a sees context position t. Blocks never see each other. ``attention``: ``dense``,
    ``split`` or ``flex``, which reads ``mask``.
    """

    rotary: tuple[Tensor, Tensor]
    visible: Bool[Tensor, "B A T"]
    attention: str
    mask: BlockMask | None


def products(x: Float[Tensor, "*X D"], *matrices: nn.Linear) -> list[Tensor]:
    """``x`` through each of the matrices (without biases); in training by one product, for which ``x`` is read once.

    Without gradients one by one: joining them costs more than it saves where ``x`` has few rows.
    """
    if not torch.is_grad_enabled():
        return [matrix(x) for matrix in matrices]
    dtype = product_dtype(x)
    weight = torch.cat([matrix.weight.to(dtype) for matrix in matrices])
    return list(torch.split(F.linear(x, weight), [matrix.out_features for matrix in matrices], dim=-1))


class BlockAttention(Qwen3Attention):  # type: ignore[misc]
    """Qwen3 attention whose queries are blocks and whose keys are context features followed by the block itself."""

    def __init__(self, config: Qwen3Config, index: int) -> None:
        super().__init__(config, index)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def context(
        self, keys: Float[Tensor, "B T Dk"], values: Float[Tensor, "B T Dk"], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys (normalised, rotated) and values of the context, ``[B, Hkv, T, Dh]``, of what ``k_proj`` and ``v_proj``
        make of the features."""
        shape = (*keys.shape[:2], -1, self.head_dim)
        normed = self.context_norm(keys.view(shape)).transpose(1, 2)
        return rotate(normed, rotary, values.dtype), values.view(shape).transpose(1, 2)

    def context_norm(self, keys: Float[Tensor, "B T Hkv Dh"]) -> Float[Tensor, "B T Hkv Dh"]:
        """The norm of the context's keys, the same as of the block's."""
        return self.k_norm(keys)  # type: ignore[no-any-return]

    def forward(
        self, hidden: Float[Tensor, "B AW D"], context: tuple[Tensor, Tensor], view: View
    ) -> Float[Tensor, "B AW D"]:
        """Attention of every block over [the context it may see ; itself]."""
        batch, rows = hidden.shape[:2]
        q, k, v = (
            x.view(batch, rows, -1, self.head_dim) for x in products(hidden, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (
            rotate(norm(x).transpose(1, 2), view.rotary, v.dtype) for norm, x in ((self.q_norm, q), (self.k_norm, k))
        )
        v = v.transpose(1, 2)
        ck, cv = context
        if view.mask is not None:
            out = self._flex(q, torch.cat([ck, k], dim=2), torch.cat([cv, v], dim=2), view.mask)
        else:
            attend = self._dense if view.attention == "dense" else self._split
            out = attend(q, ck, cv, k, v, view.visible)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, rows, -1))
        return projected

    def _dense(
        self, q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, visible: Tensor
    ) -> Float[Tensor, "B H AW Dh"]:
        """One SDPA call over [context ; all blocks] with a dense mask: the reference."""
        ck, cv, k, v = (repeat_kv(x, self.num_key_value_groups) for x in (ck, cv, k, v))
        batch, _, rows, _ = q.shape
        blocks = visible.shape[1]
        width = rows // blocks
        own = (
            torch.eye(blocks, dtype=torch.bool, device=q.device).repeat_interleave(width, 0).repeat_interleave(width, 1)
        )
        mask = torch.cat([visible.repeat_interleave(width, dim=1), own.expand(batch, -1, -1)], dim=2)
        return F.scaled_dot_product_attention(
            q, torch.cat([ck, k], dim=2), torch.cat([cv, v], dim=2), attn_mask=mask[:, None], scale=self.scaling
        )

    def _split(
        self, q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, visible: Tensor
    ) -> Float[Tensor, "B H AW Dh"]:
        """Context scores and A small W x W score matrices under one softmax: no score between different blocks."""
        return attend_blocks(q, (ck, cv), (k, v), visible, self.scaling)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Float[Tensor, "B H AW Dh"]:
        """``flex_attention`` over [context ; all blocks]: tiles that no query may see are never computed. Compiled on a
        GPU."""
        attend = _compiled_flex() if q.is_cuda else flex_attention
        return attend(q, k, v, block_mask=mask, scale=self.scaling, enable_gqa=True)  # type: ignore[no-any-return]


@cache
def _compiled_flex() -> Any:
    # Domino's backward pass retains the graph after the base branch, which donated buffers do not allow.
    functorch.donated_buffer = False
    return torch.compile(flex_attention)


def block_mask(anchors: Int[Tensor, "B A"], length: int, width: int) -> BlockMask:
    """Which of [``length`` context positions ; A blocks of ``width`` slots] each slot sees, for ``flex_attention``."""
    batch, blocks = anchors.shape
    rows = blocks * width
    return create_block_mask(
        lambda b, _head, query, key: torch.where(
            key < length, key < anchors[b, query // width], (key - length) // width == query // width
        ),
        batch,
        None,
        rows,
        length + rows,
        device=anchors.device,
    )


class GatedMLP(Qwen3MLP):  # type: ignore[misc]
    """Qwen3's MLP: down(silu(gate x) * up x)."""

    def forward(self, x: Float[Tensor, "*X D"]) -> Float[Tensor, "*X D"]:
        """The MLP of every slot."""
        gate, up = products(x, self.gate_proj, self.up_proj)
        down: Tensor = self.down_proj(self.act_fn(gate) * up)
        return down


class DraftLayer(nn.Module):
    """A pre-norm Qwen3 decoder layer around ``BlockAttention``."""

    def __init__(self, config: Qwen3Config, index: int) -> None:
        super().__init__()
        self.self_attn = BlockAttention(config, index)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden: Float[Tensor, "B AW D"], context: tuple[Tensor, Tensor], view: View
    ) -> Float[Tensor, "B AW D"]:
        """One layer over all blocks of the batch."""
        dtype = product_dtype(hidden)
        hidden = hidden + self.self_attn(self.input_layernorm(hidden, dtype), context, view)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden, dtype))
        return hidden
