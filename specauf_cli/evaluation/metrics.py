"""From traces to numbers: pure functions, the same for every drafter. No credit ever enters here."""

from collections.abc import Callable, Sequence

import torch

from specauf_cli.data.chat import encode
from specauf_cli.models.blocks import labels_and_mask, sample_anchors, valid_anchors
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives.loss import block_stats
from specauf_cli.schema import Corpus, InputError, Trace, nearest
from specauf_cli.training.drafter import collate


def tau_engine(traces: Sequence[Trace]) -> float:
    """Per request completion tokens / verification rounds, then the mean over requests: what SGLang reports.

    Counts the prefill token, cuts at the end of turn. Requests without a round (one token) have no ratio and are left
    out. Example: 7 tokens in 2 rounds and 4 tokens in 2 rounds -> (3.5 + 2) / 2 = 2.75.
    """
    ratios = [t.tokens / len(t.accepted) for t in traces if t.accepted]
    return sum(ratios) / len(ratios) if ratios else float("nan")


TAU: dict[str, Callable[[Sequence[Trace]], float]] = {"engine": tau_engine}
"""Definitions of mean emitted length by name."""


def tau(traces: Sequence[Trace], definition: str) -> float:
    """Mean emitted length by one of the definitions in use. Errors: InputError for an unknown name."""
    if definition not in TAU:
        raise InputError(
            f"unknown definition of tau {definition!r}; valid: {', '.join(TAU)}.{nearest(definition, TAU)}"
        )
    return TAU[definition](traces)


@torch.no_grad()
def heldout_blocks(
    target: Target, drafter: DFlash, corpus: Corpus, *, max_length: int, anchors: int, seed: int, batch_size: int
) -> dict[str, list[int]]:
    """Block-mask sums on held-out conversations: per slot, how many were supervised and how many predicted right.

    Anchors depend on ``seed`` and the data only, so every drafter is asked about the same blocks; the accuracy is
    sum(correct) / sum(valid), the paper's common-mask accuracy.
    """
    examples, _ = encode(target.chat, corpus, max_length=max_length)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    valid = torch.zeros(drafter.slots, dtype=torch.long)
    correct = torch.zeros(drafter.slots, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, len(order), batch_size):
        batch = collate(examples, order[begin : begin + batch_size], target.chat.pad_id)
        starts, real = sample_anchors(valid_anchors(batch.supervised), anchors, generator)
        labels, mask = labels_and_mask(batch.tokens, batch.supervised, starts, real, drafter.slots)
        tokens, starts = batch.tokens.to(target.device), starts.to(target.device)
        context = drafter.context(target.features(tokens))
        hidden = drafter.hidden(target, context, tokens.gather(1, starts), starts)
        logits = drafter.logits(target, hidden.flatten(0, 1))["base"]
        stats, _ = block_stats(logits, labels.flatten(0, 1).to(target.device), mask.flatten(0, 1).to(target.device))
        valid += stats.mask.sum(dim=0).cpu()
        correct += stats.correct.sum(dim=0).cpu()
    return {"valid": valid.tolist(), "correct": correct.tolist()}


def accuracy(heldout: dict[str, list[int]]) -> float:
    """Common-mask accuracy of the sums of ``heldout_blocks``."""
    total = sum(heldout["valid"])
    return sum(heldout["correct"]) / total if total else float("nan")
