"""The head and the losses without holding all logits. Values and gradients equal ``loss.block_facts``.

``full``: every logit of the batch, the reference. ``chunked``: a few rows at a time. ``pruned``: slot after slot, and
only on blocks whose earlier slots were all correct: exactly the rows in the support of a truncating credit, once each.

The head is frozen, so the gradient of a row's loss with respect to its hidden state is computed together with the loss
and kept instead of the logits: nothing is computed twice. The target's distribution, where a loss or a credit needs it,
comes from the target's last hidden state of the same rows and the same head, and exists for a chunk at a time too.
Where the logits need more than the head (Domino's final branch, a backbone with its own ``logits``) the batch is
chunked by recomputation.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from specauf_cli.config.schema import ObjectiveConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives.credits import TRUNCATING
from specauf_cli.objectives.loss import Facts, Positions, block_facts, in_parts, joined, positions
from specauf_cli.objectives.terms import CE, Objective, is_soft
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
    that reaches past the first wrong token, another loss than cross-entropy, two branches, or logits that need more
    than the head.
    """
    truncates = row_wise and all(term.loss == CE and term.credit in TRUNCATING for term in objective.base)
    if asked == "pruned" and not truncates:
        raise InputError(
            "trainer.head=pruned needs a backbone with DFlash's own logits, and cross-entropy with credits that end at "
            f"the first wrong token ({', '.join(TRUNCATING)}); not so with objective {objective.name!r} here; use "
            "chunked, full or auto"
        )
    if asked != "auto":
        return asked
    if truncates:
        return "pruned"
    of_target = logits if is_soft(objective) else 0
    return "chunked" if 4 * (logits + of_target) > AT_ONCE[device] else "full"


class Blocks(NamedTuple):
    """A batch of blocks as the backbone returns it: hidden state, previous token, label and validity of every slot.

    ``target_hidden``: the target's last hidden state at the token before each slot's label, where the target's
    distribution is needed.
    """

    hidden: Float[Tensor, "N K D"]
    previous: Int[Tensor, "N K"]
    labels: Int[Tensor, "N K"]
    mask: Bool[Tensor, "N K"]
    target_hidden: Float[Tensor, "N K D"] | None = None

    def split(self, blocks: int) -> list["Blocks"]:
        """The batch in pieces of at most ``blocks`` blocks."""
        return [Blocks(*piece) for piece in in_parts(self, blocks)]  # type: ignore[arg-type]


class Rows(NamedTuple):
    """Single rows: what was computed of them, and d loss / d hidden ``[M, D]`` of each loss."""

    at: Positions
    slopes: dict[str, Tensor]


def facts(
    head: str,
    logits_of: Logits,
    blocks: Blocks,
    vocabulary: int,
    objective: Objective,
    *,
    row_wise: bool = True,
    target_head: Callable[[Tensor], Tensor] | None = None,
    confidence_of: Callable[[Tensor, Tensor], Tensor | None] | None = None,
) -> dict[str, Facts]:
    """Statistics and losses of every branch with one of the three heads (``auto`` is already resolved).

    ``row_wise``: there is one branch, and a slot's logits are the frozen head applied to its own hidden state.
    ``target_head``: from ``Blocks.target_hidden`` to the target's logits, where the objective needs them.
    ``confidence_of``: ``DFlash.confidence`` where the objective reads it; such a drafter is not row-wise.
    With a pruned head ``correct`` is known on the support only and false after it: enough for every truncating credit,
    not for common-mask accuracy (``hits``).
    """
    rows = max(1, AT_ONCE[blocks.hidden.device.type] // (4 * vocabulary * (1 if target_head is None else 2)))

    def of_branches(part: Blocks) -> dict[str, Facts]:
        branches = logits_of(part.hidden, part.previous)
        target_logits = _of_target(target_head, part.target_hidden)
        sure = None if confidence_of is None else confidence_of(part.hidden, part.previous)
        return {
            name: block_facts(
                scores, part.labels, part.mask, target_logits, objective.losses(name), objective.data, sure
            )
            for name, scores in branches.items()
        }

    if head == "full":
        return of_branches(blocks)
    if head == "chunked" and not row_wise:
        return _recomputed(of_branches, blocks.split(max(1, rows // blocks.mask.shape[1])))

    def compute(row: Tensor) -> Rows:
        """The rows at these places of the flattened batch."""
        return _rows(logits_of, target_head, blocks, row, rows, objective)

    if head == "chunked":
        index = blocks.mask.flatten().nonzero()[:, 0]
        some = compute(index)
    else:
        index, some = _scan(compute, blocks.mask)
    return {"base": _scattered(blocks, index, some)}


def _of_target(target_head: Callable[[Tensor], Tensor] | None, hidden: Tensor | None) -> Tensor | None:
    """The target's logits, where they are needed."""
    if target_head is None or hidden is None:
        return None
    with torch.no_grad():
        return target_head(hidden)


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
    logits_of: Logits,
    target_head: Callable[[Tensor], Tensor] | None,
    blocks: Blocks,
    index: Int[Tensor, "M"],
    at_once: int,
    objective: Objective,
) -> Rows:
    """The rows ``index`` of the flattened batch, ``at_once`` at a time."""
    hidden, labels, previous = blocks.hidden.detach().flatten(0, 1), blocks.labels.flatten(), blocks.previous[:, :1]
    target_hidden = None if blocks.target_hidden is None else blocks.target_hidden.flatten(0, 1)
    losses = objective.losses("base")
    parts: list[Rows] = []
    for some in torch.split(index, at_once):
        target_logits = _of_target(target_head, None if target_hidden is None else target_hidden[some])
        with torch.enable_grad():
            leaf = hidden[some].requires_grad_()
            logits = logits_of(leaf[:, None], previous.new_zeros(len(some), 1))["base"][:, 0]
            at = positions(logits, labels[some], target_logits, losses, objective.data)
            last = next(reversed(at.losses))
            slopes = {
                key: torch.autograd.grad(x.sum(), leaf, retain_graph=key != last)[0] for key, x in at.losses.items()
            }
        parts.append(Rows(at.each(torch.Tensor.detach), slopes))
    return _joined(parts)


def _joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    slopes = {key: torch.cat([p.slopes[key] for p in parts]) for key in parts[0].slopes}
    return Rows(joined([p.at for p in parts]), slopes)


def _scan(compute: Callable[[Tensor], Rows], mask: Bool[Tensor, "N K"]) -> tuple[Int[Tensor, "M"], Rows]:
    """Slot after slot over the remaining blocks (every slot so far correct, the next one valid): the rows of the
    support."""
    slots = mask.shape[1]
    alive = mask[:, 0].nonzero()[:, 0]
    indices: list[Tensor] = []
    parts: list[Rows] = []
    for slot in range(slots):
        if not len(alive) and parts:
            break
        indices.append(alive * slots + slot)
        parts.append(compute(indices[-1]))
        if slot + 1 < slots:
            alive = alive[parts[-1].at.correct & mask[alive, slot + 1]]
    return torch.cat(indices), _joined(parts)


def _scattered(blocks: Blocks, index: Int[Tensor, "M"], rows: Rows) -> Facts:
    """Rows at their places among all slots, 0 elsewhere."""
    shape = blocks.mask.shape

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(shape.numel()).index_put((index,), values).view(shape)

    flat = blocks.hidden.flatten(0, 1)
    losses = {
        key: _Losses.apply(flat, index, values, rows.slopes[key]).view(shape)  # type: ignore[no-untyped-call]
        for key, values in rows.at.losses.items()
    }
    data = {name: spread(values) for name, values in rows.at.data.items()}
    stats = BlockStats(spread(rows.at.correct), spread(rows.at.gold_logprob), blocks.mask, **data)
    return Facts(stats, losses)


class _Losses(torch.autograd.Function):
    """Scatters the rows' losses over all slots (0 elsewhere). Backward: each row's stored gradient times the gradient
    of its loss."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, index: Tensor, losses: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(index, slope)
        ctx.shape = hidden.shape
        return losses.new_zeros(len(hidden)).index_put((index,), losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        index, slope = ctx.saved_tensors
        moved = (grad[index, None] * slope).to(slope.dtype)
        return slope.new_zeros(ctx.shape).index_put((index,), moved), None, None, None


def _recomputed(of_branches: Callable[[Blocks], dict[str, Facts]], pieces: Sequence[Blocks]) -> dict[str, Facts]:
    """In pieces, whose logits are recomputed in the backward pass."""

    def part(*piece: Tensor | None) -> dict[str, Facts]:
        return of_branches(Blocks(*piece))  # type: ignore[arg-type]

    parts: list[dict[str, Facts]] = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    whole = {}
    for name, first in parts[0].items():
        own = [p[name] for p in parts]
        fields = [f for f in dataclasses.fields(BlockStats) if getattr(first.stats, f.name) is not None]
        stats = BlockStats(**{f.name: torch.cat([getattr(x.stats, f.name) for x in own]) for f in fields})
        whole[name] = Facts(stats, {key: torch.cat([x.losses[key] for x in own]) for key in first.losses})
    return whole
