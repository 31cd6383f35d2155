"""Every credit. An objective is a per-position loss times one of these detached weights.

A credit is ``f(stats, *, knobs) -> [N, K]``: positional arguments are data, keyword-only arguments are knobs and equal
the keys of its yaml under ``conf/objective`` (no defaults here, so nothing is chosen silently). Values outside
``stats.mask`` are ignored by the loss. Definitions: Spec-AUF (arXiv 2607.01893), section "one weighted block
cross-entropy". To add an objective, add a function here and a yaml that names it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from specauf_cli.errors import InputError
from specauf_cli.objectives.support import support
from specauf_cli.types import BlockStats


def full_ce(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Uniform credit over the whole block: c_i = 1."""
    return torch.ones_like(stats.gold_logprob)


def decay(stats: BlockStats, *, gamma: int | float) -> Float[Tensor, "N K"]:
    """Exponential decay with depth: c_i = exp(-(i - 1) / gamma), i = 1 for the first slot. ``gamma`` in slots, > 0."""
    if not gamma > 0:
        raise InputError(f"gamma must be > 0 slots, got {gamma}")
    slots = torch.arange(stats.mask.shape[1], device=stats.mask.device, dtype=stats.gold_logprob.dtype)
    return torch.exp(-slots / gamma).expand_as(stats.gold_logprob)


def auf(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Accept-until-fail: c_i = 1 up to and including the drafter's first wrong token (the breaker), then 0."""
    return support(stats).to(stats.gold_logprob.dtype)


def auf_decay(stats: BlockStats, *, gamma: int | float) -> Float[Tensor, "N K"]:
    """Accept-until-fail times decay: c_i = 1[i <= j*] exp(-(i - 1) / gamma)."""
    return auf(stats) * decay(stats, gamma=gamma)


TRUNCATING = ("auf", "auf_decay")
"""Names of the credits that are 0 after the first wrong token and use no statistics there: a pruned head may skip
those rows."""
