"""Batches, anchors, labels and masks: where blocks start and which of their slots are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from specauf_cli.types import Example

BUCKET = 32
"""Sequences are padded to a multiple of this, so that few shapes occur: low-precision kernels compile per shape."""


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. ``index`` points into the examples."""

    index: tuple[int, ...]
    tokens: Int[Tensor, "B T"]
    supervised: Bool[Tensor, "B T"]


def collate(examples: Sequence[Example], index: Sequence[int], pad_id: int) -> Batch:
    """Pads the chosen examples on the right to a multiple of ``BUCKET``."""
    chosen = [examples[i] for i in index]
    longest = max(len(example.tokens) for example in chosen)
    width = -(-longest // BUCKET) * BUCKET
    tokens = torch.full((len(index), width), pad_id, dtype=torch.long)
    supervised = torch.zeros(len(index), width, dtype=torch.bool)
    for row, example in enumerate(chosen):
        n = len(example.tokens)
        tokens[row, :n] = torch.tensor(example.tokens)
        supervised[row, :n] = torch.tensor(example.supervised)
    return Batch(tuple(index), tokens, supervised)


def valid_anchors(supervised: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Valid anchor positions: their own token and the next one are supervised (written by the assistant)."""
    valid = torch.zeros_like(supervised)
    valid[:, :-1] = supervised[:, :-1] & supervised[:, 1:]
    return valid


def sample_anchors(
    valid: Bool[Tensor, "B T"], count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B A"], Bool[Tensor, "B A"]]:
    """``count`` distinct anchors per sequence, uniform among its valid positions, in ascending order.

    The second result is False for the surplus where a sequence has fewer than ``count`` valid positions (those anchors
    are position 0 and carry no supervision). Draws depend on ``generator`` and the shape of ``valid`` only.
    """
    length = valid.shape[1]
    draws = torch.rand(valid.shape, generator=generator, device=generator.device).to(valid.device)
    order = draws.masked_fill(~valid, -1.0).topk(min(count, length), dim=1).indices
    if length < count:
        order = torch.cat([order, order.new_zeros(order.shape[0], count - length)], dim=1)
    rank = torch.arange(count, device=valid.device)
    real = rank[None, :] < valid.sum(dim=1, keepdim=True).clamp(max=length)
    positions, by_position = order.masked_fill(~real, length).sort(dim=1)
    real = real.gather(1, by_position)
    return positions.masked_fill(~real, 0), real


def labels_and_mask(
    tokens: Int[Tensor, "B T"],
    supervised: Bool[Tensor, "B T"],
    anchors: Int[Tensor, "B A"],
    real: Bool[Tensor, "B A"],
    slots: int,
) -> tuple[Int[Tensor, "B A K"], Bool[Tensor, "B A K"]]:
    """Label and mask of every slot. Slot k of the block at anchor t is labelled with token t + 1 + k.

    The mask is the contiguous supervised run after the anchor: it ends at the first unsupervised token, hence at every
    turn boundary, and at the end of the sequence; it never resumes after a gap.
    """
    length = tokens.shape[1]
    positions = anchors[:, :, None] + 1 + torch.arange(slots, device=tokens.device)
    inside = positions < length
    flat = positions.clamp(max=length - 1).flatten(1)
    labels = tokens.gather(1, flat).view(positions.shape)
    mask = supervised.gather(1, flat).view(positions.shape) & inside & real[:, :, None]
    return labels, mask.long().cumprod(dim=2).bool()


def previous_tokens(tokens: Int[Tensor, "B T"], anchors: Int[Tensor, "B A"], slots: int) -> Int[Tensor, "B A K"]:
    """The data token right before the one that each slot predicts: position anchor + k for slot k, clamped to the
    sequence.

    A causal branch reads these in training; for slots inside a block's mask all of them are tokens of the block.
    """
    return before_labels(tokens[..., None], anchors, slots)[..., 0]


def before_labels(
    states: Shaped[Tensor, "B T D"], anchors: Int[Tensor, "B A"], slots: int
) -> Shaped[Tensor, "B A K D"]:
    """States of the positions right before the label of each slot: the target's there predict that label."""
    positions = anchors[:, :, None] + torch.arange(slots, device=states.device)
    sequence = torch.arange(len(states), device=states.device)[:, None, None]
    return states[sequence, positions.clamp(max=states.shape[1] - 1)]
