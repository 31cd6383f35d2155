"""The weighted block cross-entropy L = sum m c l / sum m c, as a pair (total, weight) that is divided once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specauf_cli.config import names
from specauf_cli.config.schema import ObjectiveConfig
from specauf_cli.errors import InputError, nearest
from specauf_cli.objectives.support import support
from specauf_cli.types import BlockStats

NORMALIZE = ("batch", "block", "valid")

Facts = tuple[BlockStats, Tensor]
"""Statistics of one branch and its per-position cross-entropy ``[N, K]``, with gradient."""


def block_stats(
    logits: Float[Tensor, "N K V"], labels: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"], *, with_rank: bool = False
) -> tuple[BlockStats, Float[Tensor, "N K"]]:
    """Detached statistics of a batch of blocks, and the per-position cross-entropy l_i (nats, with gradient).

    Slots outside ``mask`` may hold any label; they are evaluated at token 0 and ignored by everything downstream.
    The loss is always computed in fp32; ties of the argmax go to the lowest token id.
    """
    known = labels.masked_fill(~mask, 0)
    ce, correct = cross_entropy(logits, known)
    rank = gold_rank(logits, known) if with_rank else None
    return BlockStats(correct=correct & mask, gold_logprob=-ce.detach(), mask=mask, gold_rank=rank), ce


@torch.no_grad()
def gold_rank(logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """How many tokens have a higher logit than the label."""
    return (logits > logits.gather(-1, labels[..., None])).sum(dim=-1)


def cross_entropy(
    logits: Float[Tensor, "*X V"], labels: Int[Tensor, "*X"]
) -> tuple[Float[Tensor, "*X"], Bool[Tensor, "*X"]]:
    """-log softmax at the label (fp32, with gradient), and whether the label is the argmax (ties: the lowest token
    id)."""
    ce_and_correct: tuple[Tensor, Tensor] = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return ce_and_correct


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy and argmax together. With a large vocabulary the passes over the logits take the time, and this
    makes fewer.

    The softmax is kept for the backward pass: its gradient is the softmax minus one at the label.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores, at = logits.float(), labels[..., None]
        choice = scores.argmax(dim=-1, keepdim=True)
        shares = torch.softmax(scores, dim=-1)
        # log softmax at the label, computed from the largest value: the softmax of an unlikely label may underflow.
        ce = (scores.gather(-1, choice) - scores.gather(-1, at) - shares.gather(-1, choice).log())[..., 0]
        correct = choice[..., 0] == labels
        ctx.save_for_backward(shares, labels)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(correct)
        return ce, correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _correct: Tensor) -> tuple[Tensor, None]:
        shares, labels = ctx.saved_tensors
        slope = shares * grad[..., None]
        slope.scatter_add_(-1, labels[..., None], -grad[..., None])
        return slope.to(ctx.dtype), None


def weighted_ce(
    ce: Float[Tensor, "N K"], credit: Float[Tensor, "N K"], mask: Bool[Tensor, "N K"], *, normalize: str
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss as ``(total, weight)``; micro-batches and ranks add both and divide once.

    ``batch``: sum m c l and sum m c (ratio of global sums, the paper's). ``block``: sum over blocks of the block's own
    ratio, and the number of blocks with any credit. ``valid``: sum m c l and sum m. A batch without credit gives (0,
    0).
    """
    weights = torch.where(mask, credit.detach(), torch.zeros_like(credit))
    losses = torch.where(mask, ce, torch.zeros_like(ce)) * weights
    if normalize == "batch":
        return losses.sum(), weights.sum()
    if normalize == "valid":
        return losses.sum(), mask.sum().to(weights.dtype)
    if normalize == "block":
        mass = weights.sum(dim=1)
        has_credit = mass > 0
        per_block = losses.sum(dim=1) / torch.where(has_credit, mass, torch.ones_like(mass))
        return per_block.sum(), has_credit.sum().to(weights.dtype)
    raise InputError(
        f"trainer.normalize={normalize!r} is none of {', '.join(NORMALIZE)}.{nearest(normalize, NORMALIZE)}"
    )


@dataclass(frozen=True)
class BranchLoss:
    """One branch of logits after its credit: the loss pair and the sums for the log (all scalars)."""

    total: Tensor
    weight: Tensor
    sums: dict[str, Tensor]


def branch_losses(
    facts: Mapping[str, Facts],
    mask: Bool[Tensor, "N K"],
    objective: ObjectiveConfig,
    *,
    normalize: str,
    progress: float = 0.0,
) -> dict[str, BranchLoss]:
    """Loss pair and telemetry sums of every branch; the credit of ``final`` reads the branch
    ``objective.final_reads``. ``progress``: share of the training steps done."""
    result = {}
    for name, (stats, ce) in facts.items():
        chosen = objective.base if name == "base" else objective.final
        assert chosen is not None, f"{objective.name} has no credit for branch {name}"
        read = facts[objective.final_reads or name][0] if name == "final" else stats
        credit = names.credit(chosen)
        data = {"gold_rank": read.gold_rank, "progress": progress}
        weights = credit(read, **{name: data[name] for name in names.needs(credit)})
        if weights.shape != mask.shape:
            raise InputError(
                f"objective {objective.name!r}: its credit for branch {name} has shape {list(weights.shape)}; blocks "
                f"and slots are [N, K] = {list(mask.shape)}"
            )
        total, weight = weighted_ce(ce, weights, mask, normalize=normalize)
        result[name] = BranchLoss(total, weight, telemetry(stats))
    return result


def telemetry(stats: BlockStats) -> dict[str, Int[Tensor, ""]]:
    """Sums for the log, defined the same for every objective because no credit enters.

    valid |V|, correct on V of the ``seen`` slots (common-mask accuracy = correct / seen; all of V is seen, except that
    a pruned head counts it in some steps only), support |S| of AUF, correct on S, blocks with a valid slot, and the
    accepted prefix lengths A summed over those blocks (accept length = 1 + accepted / blocks).
    """
    in_support = support(stats)
    return {
        "valid": stats.mask.sum(),
        "seen": stats.mask.sum(),
        "correct": stats.correct.sum(),
        "support": in_support.sum(),
        "support_correct": (stats.correct & in_support).sum(),
        "blocks": stats.mask.any(dim=1).sum(),
        "accepted": stats.correct.long().cumprod(dim=1).sum(),
    }
