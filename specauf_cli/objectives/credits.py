"""Every credit. An objective is a per-position loss times one of these detached weights.

A credit is ``f(stats, *, knobs) -> [N, K]``: positional arguments are data, keyword-only arguments are knobs and equal
the keys of its yaml under ``conf/objective`` (no defaults here, so nothing is chosen silently). Data that is not in
``stats`` is asked for by a further positional argument, named as in ``config/names.py``: ``gold_rank``,
``target_gold_logprob``, ``overlap``, ``progress``; it is computed only for a credit that asks. Values outside
``stats.mask`` are ignored by the loss. To add an objective, add a function here and a yaml that names it.

Symbols: slot i = 1..K, m the mask, q_i and p_i the drafter's and the target's probability of the label, j* the first
miss (infinite where there is none). The docstrings are what ``specauf objectives`` and docs/objectives.md show: the
first sentence is the meaning and the formula, ``Source:`` where it is from, and ``Depends on:`` what the weight of a
slot depends on: nothing, depth, first miss (the drafter's correctness or the label's rank), confidence (the
drafter's probability of labels), target (the target's distribution) or progress.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specauf_cli.errors import InputError
from specauf_cli.objectives.support import support
from specauf_cli.types import BlockStats


def full_ce(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Uniform credit over the whole block: c_i = 1.

    Depends on: nothing.
    Source: Spec-AUF (arXiv 2607.01893), section "one weighted block cross-entropy".
    """
    return torch.ones_like(stats.gold_logprob)


def decay(stats: BlockStats, *, gamma: int | float) -> Float[Tensor, "N K"]:
    """Exponential decay with depth: c_i = exp(-(i - 1) / gamma). ``gamma`` in slots, > 0.

    Depends on: depth.
    Source: DFlash (arXiv 2602.06036); gamma 7 at B = 16 in SpecForge
    (algorithms/common/dflash_family_model.py), 4 in speculators (losses/utils.py) and DeepSpec
    (modeling/dspark/loss.py).
    """
    if not gamma > 0:
        raise InputError(f"gamma must be > 0 slots, got {gamma}")
    slots = torch.arange(stats.mask.shape[1], device=stats.mask.device, dtype=stats.gold_logprob.dtype)
    return torch.exp(-slots / gamma).expand_as(stats.gold_logprob)


def auf(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Accept-until-fail: c_i = 1 up to and including the drafter's first wrong token (the breaker), then 0.

    Depends on: first miss.
    Source: Spec-AUF (arXiv 2607.01893), section "one weighted block cross-entropy".
    """
    return support(stats).to(stats.gold_logprob.dtype)


def auf_decay(stats: BlockStats, *, gamma: int | float) -> Float[Tensor, "N K"]:
    """Accept-until-fail times decay: c_i = 1[i <= j*] exp(-(i - 1) / gamma).

    Depends on: depth, first miss.
    Source: Spec-AUF (arXiv 2607.01893), section "one weighted block cross-entropy".
    """
    return auf(stats) * decay(stats, gamma=gamma)


def dpace(stats: BlockStats, *, alpha: int | float) -> Float[Tensor, "N K"]:
    """D-PACE: c_i = sum_{k>=i} m_k prod_{l<=k} s_l with s = (1 - alpha) q + alpha, and s = 1 outside the mask.

    The expected number of accepted slots from slot i on, if slot l were accepted with probability s_l. ``alpha`` is in
    [0, 1], 0.5 in the paper.

    Depends on: confidence.
    Source: arXiv 2605.18810, eq. 7 and 8; SpecForge's ``dpace`` and speculators' ``dpace`` are equal on the mask.
    """
    return _expected_rest(stats.gold_logprob.exp(), stats.mask, alpha)


def dpace_prefix(stats: BlockStats, *, alpha: int | float) -> Float[Tensor, "N K"]:
    """The first factor of ``dpace``, its probability of reaching and passing slot i: c_i = prod_{l<=i} s_l.

    Depends on: confidence.
    Source: SpecForge's ``dpace-cumulative-confidence-only``.
    """
    return _smoothed(stats.gold_logprob.exp(), stats.mask, alpha).cumprod(dim=1)


def dpace_continuation(stats: BlockStats, *, alpha: int | float) -> Float[Tensor, "N K"]:
    """The second factor of ``dpace``, its value of passing slot i: c_i = sum_{k>=i} m_k prod_{i<l<=k} s_l.

    Depends on: confidence.
    Source: SpecForge's ``dpace-continuation-value-only``, which divides ``dpace`` by ``dpace_prefix``; there is no
    division here, so alpha = 0 is exact however unlikely the label.
    """
    return _continuation(_smoothed(stats.gold_logprob.exp(), stats.mask, alpha), stats.mask)


def chain(stats: BlockStats) -> Float[Tensor, "N K"]:
    """``dpace`` with alpha = 0: c_i = sum_{k>=i} m_k prod_{l<=k} q_l.

    Cross-entropy times this detached credit has the gradient of -sum_k m_k prod_{j<=k} q_j, the chain loss of
    left-to-right training, whose further constant factor is a term's weight.

    Depends on: confidence.
    Source: left-to-right training (arXiv 2606.11552), section 5.5.
    """
    return dpace(stats, alpha=0)


def dpace_overlap(stats: BlockStats, overlap: Float[Tensor, "N K"], *, alpha: int | float) -> Float[Tensor, "N K"]:
    """``dpace`` over the acceptance rate instead of q: c_i = sum_{k>=i} m_k prod_{l<=k} s_l with s = (1 - alpha)
    overlap + alpha, overlap = sum_v min(p(v), q(v)).

    Needs ``overlap``. ``alpha`` is in [0, 1].

    Depends on: target.
    Source: D-PARD (SpecForge#827), alpha 0.5.
    """
    return _expected_rest(overlap, stats.mask, alpha)


def expected_length(stats: BlockStats, overlap: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """``dpace_overlap`` with alpha = 0: c_i = sum_{k>=i} m_k prod_{l<=k} overlap_l.

    Needs ``overlap``. With the loss -log overlap the gradient is that of -sum_k m_k prod_{j<=k} overlap_j, the expected
    number of accepted tokens under lossless sampling.

    Depends on: target.
    Source: arXiv 2606.12370; DeepSpec#58.
    """
    return dpace_overlap(stats, overlap, alpha=0)


def top_k_auf(stats: BlockStats, gold_rank: Int[Tensor, "N K"], *, k: int) -> Float[Tensor, "N K"]:
    """Accept-until-fail where a slot fails only if its label is not among the ``k`` likeliest tokens: c_i = prod_{l<i}
    1[rank_l < k].

    Needs ``gold_rank``. ``k`` >= 1; k = 1 is ``auf`` exactly: of tokens with equal logits the argmax is one, so a wrong
    slot has rank 1 at least.

    Depends on: first miss.
    Source: the block form of GRIFFIN's token alignment (arXiv 2502.11018, k = 3). GRIFFIN itself masks a position of
    its next pass by a product over passes, in which a later position may count again.
    """
    if not k >= 1:
        raise InputError(f"k must be a whole number of tokens >= 1, got {k}")
    among_k = stats.correct | (gold_rank.clamp(min=1) < k)
    return _before(among_k.to(stats.gold_logprob.dtype)) * stats.mask


def target_confidence(stats: BlockStats, target_gold_logprob: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Confidence-adaptive token weights: c_i = prod_{l<i} p_l, the target's probability of the labels before slot i.

    Needs ``target_gold_logprob``.

    Depends on: target.
    Source: PARD-2 (arXiv 2605.08632; AMD-AGI/PARD, ``prev_prob``), which weights both its cross-entropy and its KL with
    it and divides by sum m c.
    """
    return _before(torch.where(stats.mask, target_gold_logprob.exp(), 1))


def focal_breaker(stats: BlockStats) -> Float[Tensor, "N K"]:
    """The first miss alone: c_i = 1[i = j*]; a block without a miss has no credit.

    sum m c counts the blocks with a miss, so the normaliser over credit is the mean over those.

    Depends on: first miss.
    Source: the focal part of left-to-right training (arXiv 2606.11552), there with weight 0.3 beside a decay with gamma
    10.
    """
    return (support(stats) & ~stats.correct).to(stats.gold_logprob.dtype)


def geometric(stats: BlockStats, *, beta: int | float) -> Float[Tensor, "N K"]:
    """Geometric decay: c_i = beta^(i - 1). ``beta`` in (0, 1].

    Depends on: depth.
    Source: FastMTP (arXiv 2509.18362, eq. 2, beta = 0.6), which divides by the sum over all K steps: a constant that
    cancels under sum m c and is a term's weight otherwise. EAGLE-3 weights its steps so with beta = 0.8, undivided.
    """
    if not 0 < beta <= 1:
        raise InputError(f"beta must be above 0 and at most 1, got {beta}")
    slots = torch.arange(stats.mask.shape[1], device=stats.mask.device, dtype=stats.gold_logprob.dtype)
    return (beta**slots).expand_as(stats.gold_logprob)


def breakerless_auf(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Control: accept-until-fail without the breaker, c_i = 1[i < j*].

    Depends on: first miss.
    Source: this project, a control.
    """
    return (support(stats) & stats.correct).to(stats.gold_logprob.dtype)


def tail(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Control: what accept-until-fail leaves out, c_i = 1[i > j*] on the mask; ``auf`` + ``tail`` = ``full_ce``.

    Depends on: first miss.
    Source: this project, a control.
    """
    return (stats.mask & ~support(stats)).to(stats.gold_logprob.dtype)


def floor_auf(stats: BlockStats, *, eps: int | float) -> Float[Tensor, "N K"]:
    """Control: accept-until-fail that never forgets a slot, c_i = max(eps, 1[i <= j*]).

    ``eps`` in [0, 1]: 0 is ``auf``, 1 is ``full_ce``.

    Depends on: first miss.
    Source: this project, a control.
    """
    if not 0 <= eps <= 1:
        raise InputError(f"eps must be from 0 to 1, got {eps}")
    return auf(stats).clamp(min=eps)


def shuffled_auf(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Control: the support of another block, c_i = m_i 1[i <= j* of the other]; as much credit by slot as ``auf`` if
    the masks are equal, but none of it adapted to the block.

    The other block is half the batch away (always the same, so a resumed training equals one that was not stopped),
    which is another sequence if there are two or more. The batch is the blocks of one call: those of a micro-batch. One
    block alone keeps its own support.

    Depends on: first miss.
    Source: this project, a control.
    """
    others = support(stats).roll(len(stats.mask) // 2, dims=0)
    return (others & stats.mask).to(stats.gold_logprob.dtype)


def static_auf(stats: BlockStats) -> Float[Tensor, "N K"]:
    """Control: adapted to the training's progress, not to a block: c_i = mean of 1[i <= j*] over the blocks of the
    batch whose slot i is valid, 0 where none is. The batch is the blocks of one call: those of a micro-batch.

    Depends on: first miss.
    Source: this project, a control.
    """
    valid = stats.mask.sum(dim=0).clamp(min=1)
    return (auf(stats).sum(dim=0) / valid).expand_as(stats.gold_logprob)


def warm_auf(stats: BlockStats, progress: float, *, gamma: int | float, until: int | float) -> Float[Tensor, "N K"]:
    """Control: decay first, accept-until-fail after, c_i = exp(-(i - 1) / gamma) while ``progress`` < ``until``, then
    1[i <= j*].

    Needs ``progress``, the share of the training steps that are done. ``until`` in [0, 1]: 0 is ``auf`` throughout.

    Depends on: depth, first miss, progress.
    Source: this project, a control.
    """
    if not 0 <= until <= 1:
        raise InputError(f"until must be a share of the training steps, from 0 to 1, got {until}")
    decayed = decay(stats, gamma=gamma)
    return decayed if progress < until else auf(stats)


TRUNCATING = ("auf", "auf_decay", "focal_breaker", "breakerless_auf")
"""Names of the credits that are 0 after the first wrong token and use no statistics there: a pruned head may skip
those rows."""


def _expected_rest(
    probability: Float[Tensor, "N K"], mask: Bool[Tensor, "N K"], alpha: int | float
) -> Float[Tensor, "N K"]:
    """c_i = sum_{k>=i} m_k prod_{l<=k} s_l, of smoothed probabilities s."""
    s = _smoothed(probability, mask, alpha)
    return s.cumprod(dim=1) * _continuation(s, mask)


def _smoothed(probability: Float[Tensor, "N K"], mask: Bool[Tensor, "N K"], alpha: int | float) -> Float[Tensor, "N K"]:
    """s = (1 - alpha) probability + alpha on the mask, 1 outside. Errors: InputError for an alpha outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be from 0 to 1, got {alpha}")
    return torch.where(mask, (1 - alpha) * probability + alpha, 1)


def _continuation(s: Float[Tensor, "N K"], mask: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """f_i = sum_{k>=i} m_k prod_{i<l<=k} s_l. One product for each pair (i, k): no division, and no sum of floats in an
    order that a GPU may choose."""
    up_to = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool, device=s.device).triu()  # [i, k]: i <= k
    products = torch.where(up_to.triu(1), s[:, None, :], 1).cumprod(dim=2)
    return torch.where(up_to & mask[:, None, :], products, 0).sum(dim=2)


def _before(x: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """prod_{l<i} x_l."""
    return torch.cat([torch.ones_like(x[:, :1]), x[:, :-1]], dim=1).cumprod(dim=1)
