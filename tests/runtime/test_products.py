"""Products of bf16 tensors in fp32: the same product, whatever the processor can do."""

import subprocess
import sys

import pytest
import torch

from specauf_cli.runtime import products

PROBE = """
from functools import partial

import torch
from torch.nn import functional as F
from specauf_cli.runtime import products

def both(f, *tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    result = f(*leaves)
    return [result, *torch.autograd.grad(result.float().square().sum(), leaves)]

def same(ours, exact, what):
    for low, high in zip(ours, exact, strict=True):
        assert low.dtype is torch.bfloat16, what
        torch.testing.assert_close(low.float(), high, rtol=2**-6, atol=2**-6 * high.abs().max().item(), msg=what)

products.multiply_in_fp32()
products.multiply_in_fp32()  # a second call changes nothing
g = torch.Generator().manual_seed(0)
def low(*shape):
    return torch.randn(shape, generator=g).bfloat16()

cases = {
    "mm": (torch.mm, low(5, 7), low(7, 3)),
    "addmm": (torch.addmm, low(3), low(5, 7), low(7, 3)),
    "linear of three axes": (F.linear, low(2, 5, 7), low(3, 7), low(3)),
    "bmm": (torch.bmm, low(2, 5, 7), low(2, 7, 3)),
    "baddbmm": (lambda a, b, c: torch.baddbmm(a, b, c, beta=0.5, alpha=2.0), low(2, 5, 3), low(2, 5, 7), low(2, 7, 3)),
    "attention": (partial(F.scaled_dot_product_attention, is_causal=True), *(low(1, 2, 9, 16) for _ in range(3))),
}
for name, (f, *tensors) in cases.items():
    same(both(f, *tensors), both(f, *(t.float() for t in tensors)), name)
a, b = low(5, 7), low(7, 3)
# rounded once: exactly the fp32 product of the rounded factors, rounded
assert torch.equal(a @ b, (a.float() @ b.float()).bfloat16())
out = torch.empty(5, 3, dtype=torch.bfloat16)
assert torch.mm(a, b, out=out) is out and torch.equal(out, a @ b)
wide = torch.empty(2, 5, 9, dtype=torch.bfloat16)
torch.bmm(low(2, 5, 7), low(2, 7, 3), out=wide[..., :3])  # into a part of a tensor
x, y = torch.randn(5, 7, generator=g), torch.randn(7, 3, generator=g)
assert (x @ y).dtype is torch.float32 and torch.equal(torch.mm(x, y, out=torch.empty(5, 3)), x @ y)
assert (x.double() @ y.double()).dtype is torch.float64
assert (torch.ones(2, 2, dtype=torch.long) @ torch.ones(2, 2, dtype=torch.long)).tolist() == [[2, 2], [2, 2]]
with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
    assert torch.equal(x @ y, (x.bfloat16().float() @ y.bfloat16().float()).bfloat16())
print("equal")
"""


def test_a_product_in_bf16_is_the_fp32_product_of_rounded_factors_rounded_once() -> None:
    # in a process of its own: the rest of the tests keep the products of their processor
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("has_them", [True, False])
def test_only_a_processor_without_bf16_products_computes_them_in_fp32_and_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, has_them: bool
) -> None:
    changed: list[str] = []
    monkeypatch.setattr(products, "has_bf16_products", lambda: has_them)
    monkeypatch.setattr(products, "multiply_in_fp32", lambda: changed.append("fp32"))
    for dtype in (torch.float32, torch.float16):
        products.prepare(dtype)
    with products.autocast("cpu", "fp32"):
        assert not torch.is_autocast_enabled("cpu")
    assert changed == []
    with products.autocast("cpu", "bf16"):
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert changed == ([] if has_them else ["fp32"])
