"""What a drafter weighs and what a draft costs: so that drafters of different sizes are not compared silently."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.store.records import DrafterDescription

CONTEXT = 128
"""Tokens before the anchor of the draft that is counted."""


@torch.no_grad()
def describe(target: Target, drafter: DFlash) -> DrafterDescription:
    """Trainable parameters, and the operations of one draft: matrix products as torch counts them, those of the
    target's head among them, a multiply and an add as two."""
    features = torch.zeros(1, CONTEXT, len(target.taps) * target.hidden_size, device=target.device)
    context = drafter.context(features.to(target.model.dtype))
    anchor = torch.tensor([[target.chat.eos_id]], device=target.device)
    counter = FlopCounterMode(display=False)
    with counter:
        drafter.draft(target, context, anchor, torch.tensor([[CONTEXT]], device=target.device))
    return DrafterDescription(
        parameters=sum(p.numel() for p in drafter.parameters()), operations=counter.get_total_flops()
    )
