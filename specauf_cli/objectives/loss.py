"""The loss of a branch: per term weight x sum m c l / normaliser, as pairs (total, weight) that are divided once."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specauf_cli.config.schema import Normalizer
from specauf_cli.errors import InputError, nearest
from specauf_cli.objectives.support import support
from specauf_cli.objectives.terms import CE, Objective
from specauf_cli.types import BlockStats, Loss

NORMALIZE = get_args(Normalizer)
IN_CACHE = 2 << 20
"""Bytes of fp32 logits that a loss is given at a time on a CPU: the passes after its first find them in the cache."""


class Facts(NamedTuple):
    """Statistics of one branch, and its losses ``[N, K]`` by key (``Term.loss_key``), with gradient."""

    stats: BlockStats
    losses: dict[str, Tensor]


class Positions(NamedTuple):
    """The same for positions of any shape: ``data`` is what credits asked for (``config/names.py``, ``PROVIDED``)."""

    correct: Tensor
    gold_logprob: Tensor
    data: dict[str, Tensor]
    losses: dict[str, Tensor]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Positions":
        """The same with every tensor changed."""
        data, losses = ({key: change(x) for key, x in part.items()} for part in (self.data, self.losses))
        return Positions(change(self.correct), change(self.gold_logprob), data, losses)


def in_parts(tensors: Sequence[Tensor | None], size: int) -> Iterator[tuple[Tensor | None, ...]]:
    """Tensors that belong together, ``size`` rows at a time; what is None stays so. The first one is none."""
    assert tensors[0] is not None
    count = -(-len(tensors[0]) // size)
    return zip(*([None] * count if x is None else torch.split(x, size) for x in tensors), strict=True)


def joined(parts: Sequence[Positions]) -> Positions:
    """Positions in a row, one part after another."""
    return Positions(
        torch.cat([p.correct for p in parts]),
        torch.cat([p.gold_logprob for p in parts]),
        {key: torch.cat([p.data[key] for p in parts]) for key in parts[0].data},
        {key: torch.cat([p.losses[key] for p in parts]) for key in parts[0].losses},
    )


def positions(
    logits: Float[Tensor, "*X V"],
    labels: Int[Tensor, "*X"],
    target_logits: Float[Tensor, "*X W"] | None,
    losses: Mapping[str, Loss],
    data: Set[str],
    confidence: Float[Tensor, "*X"] | None = None,
) -> Positions:
    """What is asked of the logits of some positions: ``losses`` by key, and ``data``. On a CPU a few rows at a time.

    Errors: InputError where the target's distribution is over another vocabulary.
    """
    if target_logits is not None and target_logits.shape != logits.shape:
        raise InputError(
            f"the drafter's logits are over {logits.shape[-1]} tokens and the target's over {target_logits.shape[-1]}; "
            "an objective that needs the target's distribution needs the same vocabulary"
        )

    some = partial(_positions, losses, data)
    count, rows = labels.numel(), max(1, IN_CACHE // (4 * logits.shape[-1]))
    if logits.device.type != "cpu" or count <= rows:
        return some(logits, labels, target_logits, confidence)
    flat = [None if x is None else x.flatten(0, labels.dim() - 1) for x in (logits, labels, target_logits, confidence)]
    parts = [some(*part) for part in in_parts(flat, rows)]  # type: ignore[arg-type]
    return joined(parts).each(lambda x: x.view(labels.shape))


def _positions(
    losses: Mapping[str, Loss],
    data: Set[str],
    logits: Tensor,
    labels: Tensor,
    target_logits: Tensor | None,
    confidence: Tensor | None,
) -> Positions:
    cross, correct = cross_entropy(logits, labels)
    values = {
        key: cross if key == CE else loss(logits, labels, target_logits, confidence) for key, loss in losses.items()
    }
    return Positions(correct, -cross.detach(), _data(logits, labels, target_logits, data), values)


def block_facts(
    logits: Float[Tensor, "N K V"],
    labels: Int[Tensor, "N K"],
    mask: Bool[Tensor, "N K"],
    target_logits: Float[Tensor, "N K W"] | None,
    losses: Mapping[str, Loss],
    data: Set[str],
    confidence: Float[Tensor, "N K"] | None = None,
) -> Facts:
    """Statistics and losses of a batch of blocks.

    Slots outside ``mask`` may hold any label; they are evaluated at token 0 and ignored by everything downstream.
    Losses are always computed in fp32; ties of the argmax go to the lowest token id.
    """
    at = positions(logits, labels.masked_fill(~mask, 0), target_logits, losses, data, confidence)
    return Facts(BlockStats(at.correct & mask, at.gold_logprob, mask, **at.data), at.losses)


def block_stats(
    logits: Float[Tensor, "N K V"], labels: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"]
) -> tuple[BlockStats, Float[Tensor, "N K"]]:
    """Detached statistics of a batch of blocks, and the cross-entropy (nats, with gradient)."""
    ce, correct = cross_entropy(logits, labels.masked_fill(~mask, 0))
    return BlockStats(correct & mask, -ce.detach(), mask), ce


@torch.no_grad()
def _data(logits: Tensor, labels: Tensor, target_logits: Tensor | None, asked: Set[str]) -> dict[str, Tensor]:
    """Those of ``gold_rank``, ``target_gold_logprob`` and ``overlap`` that are asked for."""
    data: dict[str, Tensor] = {}
    if "gold_rank" in asked:
        data["gold_rank"] = gold_rank(logits, labels)
    if target_logits is not None and "target_gold_logprob" in asked:
        data["target_gold_logprob"] = -cross_entropy(target_logits, labels)[0]
    if target_logits is not None and "overlap" in asked:
        p, q = (torch.softmax(x, dim=-1, dtype=torch.float32) for x in (target_logits, logits))
        data["overlap"] = torch.minimum(p, q).sum(dim=-1)
    return data


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


class Pair(NamedTuple):
    """A sum of losses and what it is divided by; micro-batches and ranks add both and divide once."""

    total: Tensor
    weight: Tensor


def weighted(
    losses: Float[Tensor, "N K"],
    credit: Float[Tensor, "N K"],
    mask: Bool[Tensor, "N K"],
    *,
    normalize: str,
    sequences: int = 1,
) -> Pair:
    """sum m c l and its denominator. ``sequences``: the N blocks are those of so many sequences, equally many each.

    What the sums are divided by makes of a batch:

    ``credit``: sum m c l / sum m c, the ratio of sums over the whole batch; the paper's, SpecForge's and DeepSpec's.
    ``block_credit``: mean over blocks of sum m c l / sum m c, over the blocks with any credit.
    ``valid``: sum m c l / sum m, the number of valid slots; speculators'.
    ``blocks``: sum m c l / blocks, the number of blocks with a valid slot.
    ``sequence``: mean over sequences of sum m c l / blocks, for each the number of its own blocks with a valid slot;
    SpecForge's for D-PACE since SpecForge#848.

    A batch without credit gives (0, 0) or a total of 0.
    """
    weights = torch.where(mask, credit.detach(), torch.zeros_like(credit))
    sums = torch.where(mask, losses, torch.zeros_like(losses)) * weights
    if normalize == "credit":
        return Pair(sums.sum(), weights.sum())
    if normalize == "valid":
        return Pair(sums.sum(), mask.sum().to(weights.dtype))
    blocks = mask.any(dim=1).to(weights.dtype)
    if normalize == "blocks":
        return Pair(sums.sum(), blocks.sum())
    if normalize == "sequence":
        of_sequence = blocks.view(sequences, -1).sum(dim=1)
        means = sums.view(sequences, -1).sum(dim=1) / of_sequence.clamp(min=1)
        return Pair(means.sum(), (of_sequence > 0).sum().to(weights.dtype))
    if normalize == "block_credit":
        mass = weights.sum(dim=1)
        has_credit = mass > 0
        per_block = sums.sum(dim=1) / torch.where(has_credit, mass, torch.ones_like(mass))
        return Pair(per_block.sum(), has_credit.sum().to(weights.dtype))
    raise InputError(
        f"trainer.normalize={normalize!r} is none of {', '.join(NORMALIZE)}.{nearest(normalize, NORMALIZE)}"
    )


@dataclass(frozen=True)
class BranchLoss:
    """The loss of one branch: the sum of total / weight over ``pairs``. ``sums`` are for the log (all scalars)."""

    pairs: tuple[Pair, ...]
    sums: dict[str, Tensor]


def branch_losses(
    facts: Mapping[str, Facts], objective: Objective, *, sequences: int = 1, progress: float = 0.0
) -> dict[str, BranchLoss]:
    """The loss of every branch and its sums for the log. ``sequences``: the blocks are those of so many sequences;
    ``progress``: share of the training steps done.

    Errors: InputError for a credit of another shape than the blocks', negative or not finite.
    """
    return {
        branch: BranchLoss(
            _pairs(objective, branch, facts, sequences=sequences, progress=progress), telemetry(own.stats)
        )
        for branch, own in facts.items()
    }


def _pairs(
    objective: Objective, branch: str, facts: Mapping[str, Facts], *, sequences: int, progress: float
) -> tuple[Pair, ...]:
    """The terms of a branch; those with the same denominator are one pair."""
    losses, stats = facts[branch].losses, facts[objective.reads[branch]].stats
    pairs: dict[str, Pair] = {}
    for term in objective.terms[branch]:
        data = {name: progress if name == "progress" else getattr(stats, name) for name in term.needs}
        credit = term.credit(stats, **data)
        credit = _checked(credit, stats.mask, f"objective {objective.name!r}: its credit for branch {branch}")
        total, weight = weighted(
            losses[term.loss_key], credit, stats.mask, normalize=term.normalize, sequences=sequences
        )
        total = total if term.weight == 1 else term.weight * total
        known = pairs.get(term.denominator)
        pairs[term.denominator] = Pair(total, weight) if known is None else Pair(known.total + total, weight)
    return tuple(pairs.values())


def _checked(credit: Tensor, mask: Tensor, what: str) -> Tensor:
    """A credit that is one weight, finite and not negative, for each valid slot.

    Errors: InputError; on a GPU, which would have to be waited for, a wrong weight becomes NaN, which stops the
    training with its loss.
    """
    if credit.shape != mask.shape:
        raise InputError(f"{what} has shape {list(credit.shape)}; blocks and slots are [N, K] = {list(mask.shape)}")
    wrong = mask & ~((credit >= 0) & torch.isfinite(credit))
    if credit.is_cuda:
        return credit.masked_fill(wrong, torch.nan)
    if bool(wrong.any()):
        raise InputError(f"{what} must be finite and >= 0, got {credit[wrong][0].item():g}")
    return credit


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
