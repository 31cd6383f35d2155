"""Workarounds for faults of vLLM 0.32.0. All are silent: it answers, with wrong counts or wrong tokens.

``SPECAUF_VLLM_WITHOUT=temperature,window`` leaves the named ones out, so that each fault can be shown. Each process of
the server writes to the log what it applies, in a line that starts with ``specauf-vllm-cpu:``.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

VERSION = "0.32.0"
"""The only release these were compared with; another one may have mended or moved the functions."""

LEFT_OUT = "SPECAUF_VLLM_WITHOUT"


def temperature() -> None:
    """The temperature of each request, repeated for each of its draft tokens, is lost.

    Wrong: ``vllm/utils/cpu_triton_utils.py``, ``_expand_kernel_impl``, which takes the place of the Triton kernel
    ``expand_kernel`` of ``vllm/v1/sample/rejection_sampler.py``. Its C++ function writes int64 only, so ``output`` is
    converted first; for any other dtype that makes a copy, the copy is written, and ``output`` stays what ``new_empty``
    gave: uninitialised memory. (Its neighbours in the same file copy the result back.) The values are truncated to
    whole numbers on the way as well.

    Seen: ``apply_sampling_constraints`` divides the target's logits by that memory at T > 0, and top_p is read from
    such memory too. Sampled answers are noise or repeat one token, few drafts are accepted; T = 0 is unaffected.
    """
    from vllm.utils import cpu_triton_utils

    def expand(
        output: Any, input_val: Any, cu_num_tokens: Any, replace_from: Any, replace_to: Any, MAX_NUM_TOKENS: Any = None
    ) -> None:
        replaced = input_val.masked_fill(input_val == replace_from, replace_to)
        tokens = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))  # [requests]
        output.copy_(replaced.repeat_interleave(tokens.long()))

    cpu_triton_utils._expand_kernel_impl = expand


def k_norm() -> None:
    """Every draft layer normalises the keys of the context with the weights of the first layer.

    Wrong: ``vllm/model_executor/models/qwen3_dflash.py``, ``DFlashQwen3Model._normalize_context_k``: it gives
    ``rms_norm`` the stacked ``k_norm`` weights ``[layers, head size]`` and keys ``[layers, tokens, heads, head size]``
    and relies on the kernel to choose the row of each layer. The CUDA kernel does; the CPU's reads the first ``head
    size`` weights for every row.

    Seen: a drafter of more than one layer whose ``k_norm`` weights differ proposes other tokens. Answers stay right,
    since the target verifies them, and tau may change little; a comparison of the counts, request by request, shows it.
    """
    import torch
    from vllm.model_executor.models import qwen3_dflash

    def normalize(self: Any, all_k: Any) -> Any:
        keys = all_k.float()
        keys = keys * torch.rsqrt(keys.square().mean(dim=-1, keepdim=True) + self._rms_norm_eps)
        return keys.to(all_k.dtype) * self._k_norm_weights[:, None, None, :]

    qwen3_dflash.DFlashQwen3Model._normalize_context_k = normalize


def window() -> None:
    """A draft layer of full attention gets the sliding window of its target.

    Wrong: ``vllm/model_executor/layers/attention/attention.py``, ``Attention.__init__``: a layer that names no window
    of its own takes ``cache_config.sliding_window``, which is the target's where all of its layers have one (Mistral
    7B v0.1). A drafter's layers are given the same ``cache_config``. Not only on a CPU.

    Seen: drafts are made of the last tokens only, so other tokens are proposed than in training. Answers stay right.
    """
    from copy import copy

    from vllm.model_executor.models import qwen3_dflash

    attention = qwen3_dflash.Attention

    def of_its_own(*args: Any, cache_config: Any = None, per_layer_sliding_window: Any = None, **more: Any) -> Any:
        if per_layer_sliding_window is None and cache_config is not None:
            cache_config = copy(cache_config)
            cache_config.sliding_window = None
        return attention(*args, cache_config=cache_config, per_layer_sliding_window=per_layer_sliding_window, **more)

    qwen3_dflash.Attention = of_its_own


WORKAROUNDS: dict[str, Callable[[], None]] = {"temperature": temperature, "k_norm": k_norm, "window": window}


def chosen(left_out: str) -> list[str]:
    """The workarounds that remain without the comma-separated ``left_out``. Errors: ValueError for an unknown name."""
    names = {n.strip() for n in left_out.split(",") if n.strip()}
    unknown = sorted(names - set(WORKAROUNDS))
    if unknown:
        raise ValueError(f"{LEFT_OUT}={left_out}: {', '.join(unknown)} is none of {', '.join(WORKAROUNDS)}")
    return [n for n in WORKAROUNDS if n not in names]


def install() -> None:
    """Called by vLLM in each of its processes. Errors: ValueError for an unknown name, RuntimeError for another
    version."""
    names = chosen(os.environ.get(LEFT_OUT, ""))
    served = version("vllm").split("+")[0]
    if served != VERSION:
        raise RuntimeError(f"specauf-vllm-cpu is for vLLM {VERSION}, this is {served}: uninstall it or compare again")
    for name in names:
        WORKAROUNDS[name]()
    print(f"specauf-vllm-cpu: {', '.join(names) or 'no workaround'}", file=sys.stderr, flush=True)
