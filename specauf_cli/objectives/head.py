"""The head and the cross-entropy without holding all logits. Values and gradients equal ``loss.block_stats``.

``full``: every logit of the batch, the reference. ``chunked``: a few rows at a time. ``pruned``: slot after slot, and
only on blocks whose earlier slots were all correct: exactly the rows in the support of a truncating credit, once each.

The head is frozen, so the gradient of a row's cross-entropy with respect to its hidden state is computed together with
the loss and kept instead of the logits: nothing is computed twice. Where the logits need more than the head (Domino's
final branch, a backbone with its own ``logits``) the batch is chunked by recomputation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from specauf_cli.config.schema import ObjectiveConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives.credits import TRUNCATING
from specauf_cli.objectives.loss import Facts, block_stats, cross_entropy, gold_rank
from specauf_cli.types import BlockStats

WAYS = ("full", "chunked", "pruned")
"""Ways to compute the loss of a batch; the head of the file says what they are."""
AT_ONCE = {"cpu": 64_000_000, "cuda": 512_000_000}
"""Bytes of fp32 logits held at the same time by the chunked head, by device type.

Products of a few rows leave a GPU idle (with 152,000 tokens, 64 MB are 105 rows); more does not fit a CPU's caches.
"""

Logits = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""``(hidden [N, K, D], previous [N, K])`` to the logits of each branch, ``[N, K, V]``."""


def choose(asked: str, objective: ObjectiveConfig, row_wise: bool, logits: int, device: str) -> str:
    """The head for an objective: ``asked``, or what ``auto`` means for ``logits`` numbers in a batch on a device
    type.

    ``row_wise``: ``DFlash.row_wise`` of the drafter. Errors: InputError where pruning would change the loss: a credit
    that reaches past the first wrong token, two branches, or logits that need more than the head.
    """
    truncates = row_wise and objective.base.credit in TRUNCATING
    if asked == "pruned" and not truncates:
        raise InputError(
            "trainer.head=pruned needs a backbone with DFlash's own logits and a credit that ends at the first wrong "
            f"token ({', '.join(TRUNCATING)}); not so with objective {objective.name!r} here; use "
            "chunked, full or auto"
        )
    if asked != "auto":
        return asked
    return "pruned" if truncates else "chunked" if 4 * logits > AT_ONCE[device] else "full"


class Blocks(NamedTuple):
    """A batch of blocks as the backbone returns it: hidden state, previous token, label and validity of every slot."""

    hidden: Float[Tensor, "N K D"]
    previous: Int[Tensor, "N K"]
    labels: Int[Tensor, "N K"]
    mask: Bool[Tensor, "N K"]

    def split(self, blocks: int) -> list["Blocks"]:
        """The batch in pieces of at most ``blocks`` blocks."""
        return [Blocks(*piece) for piece in zip(*(torch.split(x, blocks) for x in self), strict=True)]


def facts(
    head: str, logits_of: Logits, blocks: Blocks, vocabulary: int, *, row_wise: bool = True, with_rank: bool = False
) -> dict[str, Facts]:
    """Statistics and cross-entropy of every branch with one of the three heads (``auto`` is already resolved).

    ``row_wise``: there is one branch, and a slot's logits are the frozen head applied to its own hidden state.
    With a pruned head ``correct`` is known on the support only and false after it: enough for every truncating credit,
    not for common-mask accuracy (``hits``).
    """
    hidden, previous, labels, mask = blocks
    if head == "full":
        branches = logits_of(hidden, previous)
        return {name: block_stats(scores, labels, mask, with_rank=with_rank) for name, scores in branches.items()}
    rows = max(1, AT_ONCE[hidden.device.type] // (4 * vocabulary))
    if head == "chunked" and not row_wise:
        return _recomputed(logits_of, blocks.split(max(1, rows // mask.shape[1])), with_rank)

    def row_logits(some: Tensor) -> Tensor:
        return logits_of(some[:, None], previous[: len(some), :1])["base"][:, 0]

    flat, wanted = hidden.detach().flatten(0, 1), labels.flatten()
    if head == "chunked":
        index = mask.flatten().nonzero()[:, 0]
        ce, correct, slope, rank = _rows(row_logits, flat[index], wanted[index], rows, with_rank)
    else:
        index, ce, correct, slope = _scan(row_logits, hidden.detach(), labels, mask, rows)
        rank = None  # a truncating credit asks for none
    losses = _Losses.apply(hidden.flatten(0, 1), index, ce, slope).view(mask.shape)  # type: ignore[no-untyped-call]
    known = torch.zeros_like(mask.flatten()).index_put((index,), correct).view(mask.shape)
    ranks = None if rank is None else torch.zeros_like(wanted).index_put((index,), rank).view(mask.shape)
    return {"base": (BlockStats(correct=known, gold_logprob=-losses.detach(), mask=mask, gold_rank=ranks), losses)}


@torch.no_grad()
def hits(logits_of: Logits, blocks: Blocks, vocabulary: int) -> Int[Tensor, ""]:
    """Correct slots among all valid ones, which a pruned head does not see; without gradients, in chunks."""
    at_once = max(1, AT_ONCE[blocks.hidden.device.type] // (4 * vocabulary * blocks.mask.shape[1]))
    correct = [
        (logits_of(b.hidden, b.previous)["base"].float().argmax(dim=-1) == b.labels) & b.mask
        for b in blocks.split(at_once)
    ]
    return torch.cat(correct).sum()


def _rows(
    row_logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, at_once: int, with_rank: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cross-entropy ``[M]`` of single rows, whether their argmax is the label, d cross-entropy / d hidden ``[M, D]``,
    and the label's rank where it is asked for."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    ranks: list[Tensor] = []
    for some, label in zip(torch.split(hidden, at_once), torch.split(labels, at_once), strict=True):
        with torch.enable_grad():
            leaf = some.detach().requires_grad_()
            logits = row_logits(leaf)
            ce, correct = cross_entropy(logits, label)
            (slope,) = torch.autograd.grad(ce.sum(), leaf)
        parts.append((ce.detach(), correct, slope))
        ranks += [gold_rank(logits, label)] if with_rank else []
    ces, corrects, slopes = zip(*parts, strict=True)
    return torch.cat(ces), torch.cat(corrects), torch.cat(slopes), torch.cat(ranks) if with_rank else None


def _scan(
    row_logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, mask: Tensor, at_once: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slot after slot over the remaining blocks (every slot so far correct, the next one valid): the rows of the
    support."""
    slots = mask.shape[1]
    alive = mask[:, 0].nonzero()[:, 0]
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for slot in range(slots):
        if not len(alive) and parts:
            break
        ce, correct, slope, _ = _rows(row_logits, hidden[alive, slot], labels[alive, slot], at_once)
        parts.append((alive * slots + slot, ce, correct, slope))
        if slot + 1 < slots:
            alive = alive[correct & mask[alive, slot + 1]]
    index, ces, corrects, slopes = zip(*parts, strict=True)
    return torch.cat(index), torch.cat(ces), torch.cat(corrects), torch.cat(slopes)


class _Losses(torch.autograd.Function):
    """Scatters the rows' losses over all slots (0 elsewhere). Backward: each row's stored gradient times the gradient
    of its loss."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, index: Tensor, ce: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(index, slope)
        ctx.shape = hidden.shape
        return ce.new_zeros(len(hidden)).index_put((index,), ce)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, slope = ctx.saved_tensors
        moved = (grad[index, None] * slope).to(slope.dtype)
        return slope.new_zeros(ctx.shape).index_put((index,), moved), None, None, None


def _recomputed(logits_of: Logits, pieces: Sequence[Blocks], with_rank: bool) -> dict[str, Facts]:
    """In pieces, whose logits are recomputed in the backward pass."""

    def part(hidden: Tensor, previous: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Facts]:
        branches = logits_of(hidden, previous)
        return {name: block_stats(scores, labels, mask, with_rank=with_rank) for name, scores in branches.items()}

    parts: list[dict[str, Facts]] = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    fields = ("correct", "gold_logprob", "mask", *(["gold_rank"] if with_rank else []))
    return {
        name: (
            BlockStats(*(torch.cat([getattr(p[name][0], f) for p in parts]) for f in fields)),
            torch.cat([p[name][1] for p in parts]),
        )
        for name in parts[0]
    }
