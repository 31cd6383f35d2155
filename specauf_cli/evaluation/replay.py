"""Replay: the trace a drafter would have left, walked over trajectories without running the target again.

Why it is exact: a round depends on the committed tokens and the drafter only, and the committed tokens are the
trajectory whatever the drafter proposes. So the accepted count at every possible start is a property of (trajectory,
drafter); it is computed for all starts in parallel and the decoder's path is then a walk over that table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specauf_cli.evaluation.verify import accepted_prefix
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.schema import Trace, Trajectory


@dataclass(frozen=True)
class Starts:
    """Every possible start of every trajectory, not only the ones a decoder would stop at.

    ``accepted[i][s]``: draft tokens accepted by a block anchored at completion token s of trajectory i, for every token
    before its last. ``valid`` and ``correct`` are per slot, over all starts: slots inside the completion, and those whose
    proposal equals the target's token (block-mask accuracy on trajectories).
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
    assert all(len(t.tokens) >= t.length - 1 + proposals for t in trajectories), (
        "a tail of proposals - 1 tokens is needed"
    )
    order = sorted(range(len(trajectories)), key=lambda i: len(trajectories[i].prompt) + trajectories[i].length)
    result: list[list[int]] = [[] for _ in trajectories]
    valid = torch.zeros(proposals, dtype=torch.long, device=device)
    correct = torch.zeros(proposals, dtype=torch.long, device=device)
    for begin in range(0, len(order), batch_size):
        chosen = [trajectories[i] for i in order[begin : begin + batch_size]]
        width = max(len(t.prompt) + len(t.tokens) for t in chosen)
        tokens = torch.full((len(chosen), width), target.chat.pad_id, dtype=torch.long)
        for row, t in enumerate(chosen):
            tokens[row, : len(t.prompt) + len(t.tokens)] = torch.tensor([*t.prompt, *t.tokens])
        tokens = tokens.to(device)
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
            for known, found in zip(table, accepted_prefix(proposal, truth).tolist(), strict=True):
                known += found
        for i, known, count in zip(order[begin : begin + batch_size], table, counts.tolist(), strict=True):
            result[i] = known[:count]
    return Starts(result, valid.tolist(), correct.tolist())


STARTS = 32
"""Blocks of one sequence drafted in one pass: bounds the memory of the attention scores."""


def walk(trajectory: Trajectory, accepted: Sequence[int], proposals: int) -> Trace:
    """The rounds of one request: start at its first token, accept, jump behind the target's own next token, repeat."""
    rounds, position = [], 0
    while position < trajectory.length - 1:
        rounds.append(accepted[position])
        position += accepted[position] + 1
    return Trace(trajectory.prompt_id, trajectory.turn, tuple(rounds), proposals, trajectory.length, trajectory.ended)


def replay(
    target: Target, drafter: DFlash, trajectories: Sequence[Trajectory], *, batch_size: int
) -> tuple[list[Trace], Starts]:
    """Traces of all trajectories, equal to live decoding round by round in fp32, and the table they were walked over."""
    starts = every_start(target, drafter, trajectories, batch_size=batch_size)
    return [walk(t, a, drafter.backbone.proposals) for t, a in zip(trajectories, starts.accepted, strict=True)], starts
