"""Products in bf16 on a processor that has no instruction for them.

A product in bf16 has both factors rounded to bf16, is summed in fp32 and rounded once. Processors with AVX-512 or AMX
have instructions for it; on any other torch multiplies in a plain loop, 10 to 80 times slower than in fp32. There the
same product is computed in fp32, which holds a bf16 number exactly, and rounded once: results differ from those of
another processor by the order of the sum, as they do between any two.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specauf_cli.config.schema import Precision

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu_backward")
"""The operators of aten that fall back to the loop; the forward pass of attention does not."""

OUT = ("mm.out", "addmm.out", "bmm.out", "baddbmm.out")
"""The same, where the result is written into a given tensor."""


def has_bf16_products() -> bool:
    """Whether this processor multiplies in bf16 itself."""
    known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(known and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(kind: str, precision: Precision) -> torch.autocast:
    """Within it, products on devices of this kind (``cpu``, ``cuda``) are computed in ``precision``."""
    low = precision == "bf16"
    if low:
        prepare(torch.bfloat16)
    return torch.autocast(kind, torch.bfloat16, enabled=low)


def prepare(dtype: torch.dtype) -> None:
    """Before the first product of tensors of this type. Not once for every process: Python code at every product takes
    some 10 microseconds, also of those in fp32."""
    if dtype is torch.bfloat16 and not has_bf16_products():
        multiply_in_fp32()


@cache
def multiply_in_fp32() -> torch.library.Library:
    """From now on this process multiplies bf16 tensors on the CPU in fp32. Products of other types are as before."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for names, rounded in ((PRODUCTS, _rounded), (OUT, _rounded_into)):
            for name in names:
                kernel = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
                library.impl(name, partial(rounded, kernel), "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return library


def _rounded(kernel: Callable[..., Any], keys: Any, *args: Any, **knobs: Any) -> Any:
    if not _is_low(args[0]):
        return kernel(keys, *args, **knobs)
    return pytree.tree_map(_down, kernel(keys, *map(_up, args), **knobs))


def _rounded_into(kernel: Callable[..., Any], keys: Any, *args: Any, out: Tensor, **knobs: Any) -> Any:
    if not _is_low(out):
        return kernel(keys, *args, **knobs, out=out)
    return out.copy_(kernel(keys, *map(_up, args), **knobs, out=out.float()))


def _is_low(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _up(value: Any) -> Any:
    return value.float() if _is_low(value) else value


def _down(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype is torch.float32 else value
