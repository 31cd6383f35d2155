"""The acceptance rule: how many draft tokens of a block are accepted, and what the round emits."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor


def accepted_prefix(draft: Int[Tensor, "*X P"], truth: Int[Tensor, "*X P"]) -> Int[Tensor, "*X"]:
    """A, the length of the longest prefix of ``draft`` that equals the target's own tokens, left to right.

    ``truth`` is what the target emits at the same positions given the drafts before them: its argmax at temperature 0,
    its sample at temperature 1 (accepting a greedy draft d with probability p(d), else sampling from p without d, is
    the same process as drawing y ~ p and accepting iff y = d). The round then emits A + 1 tokens: the prefix and the
    target's own next token.
    """
    return (draft == truth).long().cumprod(dim=-1).sum(dim=-1)


def accepted_slotwise(
    propose: Callable[[int, Tensor, Tensor], Tensor], anchors: Int[Tensor, "N"], truth: Int[Tensor, "N P"]
) -> Int[Tensor, "N"]:
    """``accepted_prefix`` for drafts of ``propose(slot, blocks, token before)``; a block stops at its first rejection.

    ``anchors`` are the tokens before slot 0. Up to the first rejection the tokens before the slots are ``truth``.
    """
    count = torch.zeros_like(anchors)
    blocks, before = torch.arange(len(anchors), device=anchors.device), anchors
    for slot in range(truth.shape[1]):
        right = propose(slot, blocks, before) == truth[blocks, slot]
        blocks = blocks[right]
        if not len(blocks):
            break
        count[blocks] += 1
        before = truth[blocks, slot]
    return count
