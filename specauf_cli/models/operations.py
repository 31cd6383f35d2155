"""The operations of a draft layer that are not matrix products, each with a backward pass of its own.

Written as plain tensor operations they make a step of a small drafter twice as long: autograd keeps every intermediate
result and walks back through all of them. Here the formula of the gradient is applied at once, to few tensors. Values
and gradients equal those of the plain form within rounding.

Under autocast a result has autocast's type where a product reads it next, so that it is cast once; sums and norms are
computed in fp32 at least.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm


def product_dtype(like: Tensor) -> torch.dtype:
    """The type in which a product with ``like`` is computed: autocast's where it is on, else its own."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


class RMSNorm(Qwen3RMSNorm):  # type: ignore[misc]
    """Qwen3's norm over the last dimension: x / sqrt(mean x^2 + eps) * weight."""

    def forward(self, x: Float[Tensor, "*X D"], dtype: torch.dtype | None = None) -> Float[Tensor, "*X D"]:
        """The norm as ``dtype`` (default: the wider of the types of ``x`` and of the weight)."""
        dtype = dtype or torch.promote_types(x.dtype, self.weight.dtype)
        normed: Tensor = _RMSNorm.apply(x, self.weight, self.variance_epsilon, dtype)  # type: ignore[no-untyped-call]
        return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse, weight)
        ctx.dtype = x.dtype
        scaled: Tensor = normed * weight
        return scaled.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normed, inverse, weight = ctx.saved_tensors
        grad = grad.to(normed.dtype)
        by_weight = (grad * normed).flatten(0, -2)
        along = (by_weight @ weight.to(normed.dtype)).view(inverse.shape).div_(normed.shape[-1])
        moved = (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse)
        return moved.to(ctx.dtype), by_weight.sum(dim=0).to(weight.dtype), None, None


def rotate(
    x: Float[Tensor, "B H N Dh"], rotary: tuple[Float[Tensor, "R N Dh"], Float[Tensor, "R N Dh"]], dtype: torch.dtype
) -> Float[Tensor, "B H N Dh"]:
    """``x`` with its rotary positions applied, as ``dtype``; ``rotary``: cosines and sines, both halves alike, R = B or
    1.

    Source: RoFormer (arXiv 2104.09864), in the layout of transformers: dimension i turns with i + Dh / 2.
    """
    cosines, sines = (part[:, None] for part in rotary)
    rotated: Tensor = _Rotate.apply(x, cosines, sines, dtype)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.dtype = x.dtype
        return _turned(x, cosines, sines, 1).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turned(grad, cosines, sines, -1).to(ctx.dtype), None, None, None


def _turned(x: Tensor, cosines: Tensor, sines: Tensor, sign: int) -> Tensor:
    """Every pair of dimensions turned by its angle, or back (``sign`` -1)."""
    half = x.shape[-1] // 2
    turned = x * cosines
    turned[..., :half].addcmul_(x[..., half:], sines[..., :half], value=-sign)
    turned[..., half:].addcmul_(x[..., :half], sines[..., half:], value=sign)
    return turned


def attend_blocks(
    q: Float[Tensor, "B H AW Dh"],
    context: tuple[Float[Tensor, "B Hkv T Dh"], Float[Tensor, "B Hkv T Dh"]],
    block: tuple[Float[Tensor, "B Hkv AW Dh"], Float[Tensor, "B Hkv AW Dh"]],
    visible: Bool[Tensor, "B A T"],
    scale: float,
) -> Float[Tensor, "B H AW Dh"]:
    """Attention of A blocks of W slots over [the context that each may see ; itself]: keys and values of both.

    Scores of the context and A small W x W matrices share one softmax, so there is none between different blocks. The
    query heads of a group are stacked as rows of their shared key head: the context is never copied.
    """
    attended: Tensor = _AttendBlocks.apply(q, *context, *block, visible, scale)  # type: ignore[no-untyped-call]
    return attended


class _AttendBlocks(torch.autograd.Function):
    """With S the scores, P = softmax(S) and O = P V: dS = P (dO V^T - rowsum(dO O)), in place. Only P is kept.

    Source of the row sum: FlashAttention (arXiv 2205.14135), appendix B.4.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float
    ) -> Tensor:
        batch, heads, rows, dim = q.shape
        shared, length = ck.shape[1:3]
        blocks = visible.shape[1]
        width, groups = rows // blocks, heads // shared
        by_block = (batch, shared, groups, blocks, width)
        q, ck, cv = (q * scale).reshape(batch * shared, groups * rows, dim), ck.flatten(0, 1), cv.flatten(0, 1)
        k, v = (x.reshape(batch, shared, 1, blocks, width, dim) for x in (k, v))
        scores = q.new_empty(batch * shared, groups * rows, length + width)
        torch.bmm(q, ck.transpose(1, 2), out=scores[..., :length])
        hidden = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
        scores[..., :length].view(*by_block, length).add_(hidden[:, None, None, :, None])
        scores[..., length:].view(*by_block, width).copy_(q.view(*by_block, dim) @ k.transpose(4, 5))
        weights = torch.softmax(scores, dim=-1)  # of a low precision too it is computed in fp32 and rounded at the end
        out = torch.bmm(weights[..., :length], cv).view(*by_block, dim)
        out = (out + weights[..., length:].view(*by_block, width) @ v).view(batch, heads, rows, dim)
        ctx.save_for_backward(q, ck, cv, k, v, weights, out)
        ctx.by_block, ctx.scale = by_block, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, ck, cv, k, v, weights, out = ctx.saved_tensors
        by_block, (length, dim), width = ctx.by_block, ck.shape[1:], k.shape[4]
        batch, shared = by_block[:2]
        wide = torch.promote_types(grad.dtype, torch.float32)
        along = (grad * out).sum(dim=-1, keepdim=True, dtype=wide).to(grad.dtype)
        grad = grad.reshape(q.shape)
        of_context, of_block = weights[..., :length], weights[..., length:].view(*by_block, width)
        slope = torch.bmm(grad, cv.transpose(1, 2)).sub_(along.view(*q.shape[:2], 1)).mul_(of_context)
        to_block = grad.view(*by_block, dim) @ v.transpose(4, 5)
        to_block = to_block.sub_(along.view(*by_block, 1)).mul_(of_block)
        dq = (torch.bmm(slope, ck).view(*by_block, dim) + to_block @ k).mul_(ctx.scale)
        dck, dcv = (torch.bmm(x.transpose(1, 2), y) for x, y in ((slope, q), (of_context, grad)))
        dk, dv = (
            (x.transpose(4, 5) @ y.view(*by_block, dim)).sum(dim=2).view(batch, shared, -1, dim)
            for x, y in ((to_block, q), (of_block, grad))
        )
        context = (x.view(batch, shared, length, dim) for x in (dck, dcv))
        return dq.view(out.shape), *context, dk, dv, None, None
