"""Replay: the trace that live decoding would give, computed over trajectories without running the target again.

Why it is exact: a round depends on the committed tokens and the drafter only, and the committed tokens are the
trajectory, independent of the drafter's proposals. So the context of every round is known in advance: one parallel
target pass gives it for the whole trajectory, and all requests of a batch take their next round together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from specauf_cli.evaluation.verify import accepted_prefix, accepted_slotwise
from specauf_cli.models.dflash import NOTHING, DFlash, SlotBySlot
from specauf_cli.models.target import Target
from specauf_cli.types import Trace, Trajectory


@dataclass(frozen=True)
class Starts:
    """Every possible start of every trajectory, not only those of a decoder's rounds.

    ``accepted[i][s]``: draft tokens accepted by a block anchored at completion token s of trajectory i, for every token
    before its last. ``valid`` and ``correct`` are per slot, over all starts: slots inside the completion, and those
    whose proposal equals the target's token (block-mask accuracy on trajectories).
    """

    accepted: list[list[int]]
    valid: list[int]
    correct: list[int]

    def histogram(self) -> list[int]:
        """Number of starts with A = 0, 1, ..., proposals: a low-variance look at acceptance, never reported as tau."""
        counts = [0] * (len(self.valid) + 1)
        for row in self.accepted:
            for a in row:
                counts[a] += 1
        return counts


@torch.no_grad()
def every_start(target: Target, drafter: DFlash, trajectories: Sequence[Trajectory], *, batch_size: int) -> Starts:
    """Drafts at every start of every trajectory, batched over both."""
    device, proposals = target.device, drafter.backbone.proposals
    result: list[list[int]] = [[] for _ in trajectories]
    valid = torch.zeros(proposals, dtype=torch.long, device=device)
    correct = torch.zeros(proposals, dtype=torch.long, device=device)
    for index, tokens in batches(target, trajectories, proposals, batch_size):
        chosen = [trajectories[i] for i in index]
        context = drafter.context(target.features(tokens))
        starts = torch.tensor([len(t.prompt) for t in chosen], device=device)
        counts = torch.tensor([t.length - 1 for t in chosen], device=device)
        table: list[list[int]] = [[] for _ in chosen]
        ahead = torch.arange(1, proposals + 1, device=device)
        for first in range(0, int(counts.max()), STARTS):
            offsets = torch.arange(first, min(first + STARTS, int(counts.max())), device=device)
            anchors = starts[:, None] + torch.minimum(offsets, (counts - 1).clamp(min=0)[:, None])
            proposal = drafter.draft(target, context, tokens.gather(1, anchors), anchors)
            truth = tokens.gather(1, (anchors[:, :, None] + ahead).flatten(1)).view(proposal.shape)
            inside = (offsets[None, :] < counts[:, None])[:, :, None] & (
                offsets[None, :, None] + ahead <= counts[:, None, None]
            )
            valid += inside.sum(dim=(0, 1))
            correct += (inside & (proposal == truth)).sum(dim=(0, 1))
            for known, accepted in zip(table, accepted_prefix(proposal, truth).tolist(), strict=True):
                known += accepted
        for i, known, count in zip(index, table, counts.tolist(), strict=True):
            result[i] = known[:count]
    return Starts(result, valid.tolist(), correct.tolist())


STARTS = 32
"""Blocks of one sequence drafted in one pass: bounds the memory of the attention scores."""


@torch.no_grad()
def replay(
    target: Target,
    drafter: DFlash,
    trajectories: Sequence[Trajectory],
    *,
    batch_size: int,
    record: Callable[[int, tuple[int, ...]], None] | None = None,
) -> list[Trace]:
    """Traces of all trajectories, equal to live decoding round by round in fp32.

    Every request starts at its first token; a round drafts there, counts the accepted prefix and continues at the
    target's own next token. Finished requests are removed from the batch when half of it has finished.

    ``record`` is called for every round, in order, with the index of its trajectory and the tokens proposed. It does
    not change the counts: they come from the same calls as without it, and so do the proposals up to the first
    rejection; those after it are of ``DFlash.draft``.
    """
    device, proposals = target.device, drafter.backbone.proposals
    rounds: list[list[int]] = [[] for _ in trajectories]
    ahead = torch.arange(1, proposals + 1, device=device)
    for index, tokens in batches(target, trajectories, proposals, batch_size):
        context = drafter.context(target.features(tokens))
        anchors = torch.tensor([[len(trajectories[i].prompt)] for i in index], device=device)
        ends = anchors[:, 0] + torch.tensor([trajectories[i].length - 1 for i in index], device=device)
        rows = list(index)
        while (running := anchors[:, 0] < ends).any():
            if int(running.sum()) <= len(rows) // 2:
                kept = running.nonzero()[:, 0]
                context, tokens, anchors, ends = context.rows(kept), tokens[kept], anchors[kept], ends[kept]
                rows, running = [rows[i] for i in kept.tolist()], running[kept]
            at = anchors.clamp(max=tokens.shape[1] - 1 - proposals)  # rows that have ended draft for nothing
            first = tokens.gather(1, at)
            propose = drafter.slot_by_slot(target, context, first, at)
            truth = tokens.gather(1, at + ahead)
            if record is None:
                count = accepted_slotwise(propose, first[:, 0], truth)
            else:
                drafted = drafter.draft(target, context, first, at)[:, 0].clone()
                count = accepted_slotwise(_kept(propose, drafted), first[:, 0], truth)
                for i, more, row in zip(rows, running.tolist(), drafted.tolist(), strict=True):
                    if more:
                        record(i, tuple(token for token in row if token != NOTHING))
            for i, more, a in zip(rows, running.tolist(), count.tolist(), strict=True):
                if more:
                    rounds[i].append(a)
            anchors = torch.where(running[:, None], anchors + count[:, None] + 1, anchors)
    return [
        Trace(t.prompt_id, t.turn, tuple(r), proposals, t.length, t.ended)
        for t, r in zip(trajectories, rounds, strict=True)
    ]


def _kept(propose: SlotBySlot, drafted: Int[Tensor, "N P"]) -> SlotBySlot:
    """``propose`` that also writes its proposals into ``drafted``."""

    def keeping(slot: int, blocks: Int[Tensor, "M"], before: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        proposal = propose(slot, blocks, before)
        drafted[blocks, slot] = proposal
        return proposal

    return keeping


def batches(
    target: Target, trajectories: Sequence[Trajectory], proposals: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of trajectories of similar length: their indices, and prompt and tokens right-padded ``[B, T]``."""
    assert all(len(t.tokens) >= t.length - 1 + proposals for t in trajectories), (
        "a tail of proposals - 1 tokens is needed"
    )
    order = sorted(range(len(trajectories)), key=lambda i: len(trajectories[i].prompt) + trajectories[i].length)
    for begin in range(0, len(order), batch_size):
        index = order[begin : begin + batch_size]
        width = max(len(trajectories[i].prompt) + len(trajectories[i].tokens) for i in index)
        tokens = torch.full((len(index), width), target.chat.pad_id, dtype=torch.long)
        for row, i in enumerate(index):
            whole = [*trajectories[i].prompt, *trajectories[i].tokens]
            tokens[row, : len(whole)] = torch.tensor(whole)
        yield index, tokens.to(target.device)
