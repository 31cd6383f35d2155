"""Operations with a backward pass of their own: values and gradients are those of the plain form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from helpers.sequences import close
from specauf_cli.models.operations import RMSNorm, attend_blocks, product_dtype, rotate


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotary(rows: int, length: int, dim: int) -> tuple[Tensor, Tensor]:
    half = random(rows, length, dim // 2, seed=9)
    angles = torch.cat([half, half], dim=2)
    return angles.cos(), angles.sin()


def attention(width: int = 3, heads: int = 4, shared: int = 2) -> tuple[list[Tensor], Tensor]:
    """q, context, block; two sequences of three blocks over six positions, of which the first block sees none."""
    blocks, length, dim = 3, 6, 4
    shapes = [(heads, blocks * width), (shared, length), (shared, length), (shared, blocks * width)]
    tensors = [random(2, *shape, dim, seed=i) for i, shape in enumerate([*shapes, shapes[-1]])]
    visible = torch.arange(length) < torch.tensor([[0, 2, 6], [0, 1, 5]])[:, :, None]
    return tensors, visible


def plainly(q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Every slot for itself."""
    out = torch.empty_like(q)
    width, group = q.shape[2] // visible.shape[1], q.shape[1] // k.shape[1]
    for sequence, head, row in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        block, of = row // width, head // group
        seen, own = visible[sequence, block], slice(block * width, (block + 1) * width)
        keys = torch.cat([ck[sequence, of, seen], k[sequence, of, own]])
        values = torch.cat([cv[sequence, of, seen], v[sequence, of, own]])
        out[sequence, head, row] = (keys @ q[sequence, head, row] * scale).softmax(dim=0) @ values
    return out


def both(function: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Tensor) -> None:
    """Values and gradients of both, in double precision."""
    found = []
    for f in (function, plain):
        leaves = [x.clone().requires_grad_() for x in given]
        out = f(*leaves)
        found.append([out, *torch.autograd.grad((out * random(*out.shape, seed=7)).sum(), leaves)])
    for mine, reference in zip(*found, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-9)


def test_the_norm_is_qwen3s_in_value_and_gradient() -> None:
    x, weight = random(2, 5, 8), random(8, seed=1)

    def of(kind: type[Qwen3RMSNorm]) -> Callable[[Tensor, Tensor], Tensor]:
        def norm(x: Tensor, w: Tensor) -> Tensor:
            normed: Tensor = torch.func.functional_call(kind(8, eps=1e-6), {"weight": w}, (x,))
            return normed

        return norm

    def plain(x: Tensor, w: Tensor) -> Tensor:  # transformers' computes in fp32
        return w * (x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt())

    both(of(RMSNorm), plain, x, weight)
    assert close(of(RMSNorm)(x.float(), weight.float()), of(Qwen3RMSNorm)(x.float(), weight.float()))


def test_rotary_positions_are_transformers_in_value_and_gradient() -> None:
    angles = rotary(2, 5, 8)
    both(
        lambda x: rotate(x, angles, torch.float64),
        lambda x: apply_rotary_pos_emb(x, x, *angles)[0],
        random(2, 3, 5, 8),
    )
    shared = tuple(part[:1] for part in angles)  # one row of positions for every sequence
    both(
        lambda x: rotate(x, shared, torch.float64), lambda x: apply_rotary_pos_emb(x, x, *shared)[0], random(2, 3, 5, 8)
    )


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (2, 2), (4, 1)])
def test_attention_of_blocks_is_the_definitions_in_value_and_gradient(heads: int, shared: int) -> None:
    given, visible = attention(heads=heads, shared=shared)
    both(
        lambda q, ck, cv, k, v: attend_blocks(q, (ck, cv), (k, v), visible, 0.3),
        lambda *x: plainly(*x, visible, 0.3),  # type: ignore[call-arg]
        *given,
    )


def test_a_graph_that_is_kept_can_be_walked_twice() -> None:
    """Several losses of a step each take their gradient from the same pass."""
    given, visible = attention()
    leaves = [x.requires_grad_() for x in given]
    out = attend_blocks(leaves[0], (leaves[1], leaves[2]), (leaves[3], leaves[4]), visible, 0.3).square().sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, torch.autograd.grad(out, leaves), strict=True))


def test_in_low_precision_results_are_those_of_double_precision_rounded() -> None:
    given, visible = attention()
    low = [x.bfloat16() for x in given]
    q, ck, cv, k, v = low
    exact = plainly(*(x.double() for x in low), visible, 0.3)  # type: ignore[call-arg]
    assert (attend_blocks(q, (ck, cv), (k, v), visible, 0.3).double() - exact).abs().max() < 0.02 * exact.abs().max()
    norm, x = RMSNorm(8, eps=1e-6), random(5, 8, dtype=torch.float32)
    assert torch.equal(norm(x, torch.bfloat16), norm(x).bfloat16())
    assert norm(x.bfloat16()).dtype == torch.float32


def test_the_type_of_products_is_autocasts_where_it_is_on() -> None:
    assert product_dtype(torch.zeros(1)) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(torch.zeros(1)) == torch.bfloat16
