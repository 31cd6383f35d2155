"""Every per-position loss, one after the other. A term of an objective is one of these times a detached credit.

A loss is ``f(logits, labels, target_logits, *, knobs) -> [*N]``: logits of the drafter, labels, logits of the target at
the same positions. One that needs no distribution of the target has no ``target_logits``. Keyword-only arguments are
knobs and equal the keys of its yaml (no defaults here, so nothing is chosen silently).

Notation: q = softmax(logits) is the drafter's distribution, p = softmax(target_logits) the target's, both at
temperature 1 over the whole vocabulary; alpha = sum_v min(p, q) is the probability that rejection sampling accepts a
token drawn from q. Logarithms are natural (nats), labels are not smoothed. A loss is computed in fp32 whatever the type
of the logits. Its gradient flows to ``logits`` only and comes back in their type.

With a large vocabulary memory is what limits a batch, so a loss computes its gradient with respect to the logits
together with its value, mostly in place, and keeps that one tensor for the backward pass: at most four tensors of the
size of the logits exist at a time. The formulas are also what keeps the gradient finite where autograd would give
0 * inf. To add a loss, add a function here and a yaml that names it; plain tensor operations work too.

The docstrings are what ``specauf objectives`` and docs/objectives.md show: the first sentence is the meaning and the
formula, ``Range:``, ``Gradient:`` (with respect to the logits) and ``Source:`` follow.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from specauf_cli.errors import InputError
from specauf_cli.objectives.loss import cross_entropy

LOWEST_LOGPROB = -1e5
"""Log-probabilities are raised to at least this, so that a logit of -inf (a banned token) gives a finite loss. Logits
within +-1e4 are never affected."""


def ce(logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Cross-entropy: -log q(label). Needs the label.

    Range: 0 or more, in nats.
    Gradient: q minus 1 at the label.
    Source: Spec-AUF (arXiv 2607.01893), section "one weighted block cross-entropy"; ``loss.cross_entropy`` is the same
    function.
    """
    return cross_entropy(logits, labels)[0]


def kl(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Forward KL divergence: KL(p‖q) = sum_v p log(p / q). Needs the target's distribution.

    Range: 0 or more, in nats.
    Gradient: q - p, that of the cross-entropy with soft labels p, which differs from it by the entropy of p.
    Source: DistillSpec (arXiv 2310.08461); ``kl_div`` of speculators (losses/eager.py).
    """
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    p = log_p.exp()
    loss = log_p.sub_(log_q).mul_(p).sum(dim=-1)
    return _attach(logits, loss, log_q.exp_().sub_(p))


def reverse_kl(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Reverse KL divergence: KL(q‖p) = sum_v q log(q / p). Needs the target's distribution.

    Range: 0 or more, in nats.
    Gradient: q (log(q / p) - KL(q‖p)).
    Source: DistillSpec (arXiv 2310.08461); ``rkl`` of speculators (losses/eager.py).
    """
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    log_ratio = log_p.neg_().add_(log_q)
    q = log_q.exp_()
    loss = (q * log_ratio).sum(dim=-1)
    return _attach(logits, loss, log_ratio.sub_(loss[..., None]).mul_(q))


def js(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Jensen-Shannon divergence: (KL(p‖m) + KL(q‖m)) / 2 with m = (p + q) / 2. Needs the target's distribution.

    Range: between 0 and ln 2, in nats.
    Gradient: q (log(q / m) - KL(q‖m)) / 2.
    Source: Lin 1991; ``jsd`` of speculators (losses/eager.py).
    """
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    log_m = torch.logaddexp(log_q, log_p).sub_(math.log(2.0))
    p_to_m = (log_p - log_m).mul_(log_p.exp_()).sum(dim=-1)
    log_ratio = log_m.neg_().add_(log_q)
    q = log_q.exp_()
    q_to_m = (q * log_ratio).sum(dim=-1)
    return _attach(logits, (p_to_m + q_to_m) / 2, log_ratio.sub_(q_to_m[..., None]).mul_(q).div_(2))


def tv(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Total variation distance: 1/2 sum_v |p - q| = 1 - alpha, the probability of a rejection. Needs the target's
    distribution.

    Range: between 0 and 1, no unit.
    Gradient: q (s - sum_v q s) / 2 with s = sign(q - p), 0 where they are equal. It vanishes where p and q hardly
    overlap.
    Source: LK losses (arXiv 2602.23881); ``tv`` of speculators (losses/eager.py). DSpark's L1 term,
    DeepSpec (modeling/dspark/loss.py), is sum_v |p - q|, twice this.
    """
    q, p = _log_softmax(logits).exp_(), _log_softmax(target_logits).exp_()
    difference = p.neg_().add_(q)
    loss = difference.abs().sum(dim=-1) / 2
    side = difference.sign_()
    return _attach(logits, loss, side.sub_((q * side).sum(dim=-1, keepdim=True)).mul_(q).div_(2))


def nla(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Negative log acceptance: -log alpha = -log sum_v min(p, q). Needs the target's distribution.

    It is the cross-entropy where p is one token. Computed from log-probabilities, so it keeps its gradient where alpha
    underflows.

    Range: 0 or more, in nats.
    Gradient: that of ``tv`` divided by alpha.
    Source: LK losses (arXiv 2602.23881); ``nla`` of speculators (losses/eager.py), which instead raises alpha to at
    least 1e-5 and has no gradient below.
    """
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    overlap = torch.minimum(log_q, log_p)
    loss = -overlap.logsumexp(dim=-1)
    share = overlap.add_(loss[..., None]).exp_()
    # The share of alpha that moves with q: all of it where q < p, half where they are equal, as for torch.minimum.
    moving = log_p.sub_(log_q).sign_().add_(1).div_(2).mul_(share)
    return _attach(logits, loss, log_q.exp_().mul_(moving.sum(dim=-1, keepdim=True)).sub_(moving))


def lk(
    logits: Float[Tensor, "*N V"],
    labels: Int[Tensor, "*N"],
    target_logits: Float[Tensor, "*N V"],
    *,
    scale: int | float,
    slope: int | float,
) -> Float[Tensor, "*N"]:
    """LK hybrid: w KL(p‖q) + (1 - w) (1 - alpha) with w = scale exp(-slope alpha) of the same position, detached. Needs
    the target's distribution.

    ``scale`` is the weight of KL at alpha = 0, in [0, 1]; ``slope``, 0 or more, is how fast it falls as alpha grows.

    Range: 0 or more.
    Gradient: w times that of ``kl`` plus 1 - w times that of ``tv``.
    Source: LK losses (arXiv 2602.23881), slope 3. w per position as in ``lk_hybrid`` of speculators (losses/eager.py),
    whose scale is 1; SpecForge (core/lk_loss.py, both knobs) takes one w from the mean of alpha over all positions.

    Errors: InputError where a knob is outside its range.
    """
    if not 0 <= scale <= 1:
        raise InputError(f"scale must be between 0 and 1, got {scale}")
    if not 0 <= slope < math.inf:
        raise InputError(f"slope must be a finite number >= 0, got {slope}")
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    p = log_p.exp()
    divergence = log_p.sub_(log_q).mul_(p).sum(dim=-1)
    del log_p  # frees its memory
    q = log_q.exp_()
    difference = p.neg_().add_(q)
    distance = difference.abs().sum(dim=-1) / 2
    weight = scale * torch.exp(-slope * (1 - distance))
    side = difference.sign()
    distance_gradient = side.sub_((q * side).sum(dim=-1, keepdim=True)).mul_(q).div_(2)
    loss = weight * divergence + (1 - weight) * distance
    return _attach(logits, loss, distance_gradient.lerp_(difference, weight[..., None]))


def renyi(
    logits: Float[Tensor, "*N V"], labels: Int[Tensor, "*N"], target_logits: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """Rényi divergence of order 1/2: -2 log sum_v sqrt(p q). Needs the target's distribution.

    Symmetric in p and q.

    Range: 0 or more, in nats.
    Gradient: q - r with r = sqrt(p q) / sum_v sqrt(p q).
    Source: D-PARD (SpecForge#827, speculators#1078), its ``renyi_half``.
    """
    log_q, log_p = _log_softmax(logits), _log_softmax(target_logits)
    log_mean = log_p.add_(log_q).div_(2)
    log_sum = log_mean.logsumexp(dim=-1)
    return _attach(logits, -2 * log_sum, log_q.exp_().sub_(log_mean.sub_(log_sum[..., None]).exp_()))


def _log_softmax(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
    """Detached fp32 log-probabilities, a tensor of its own, at least ``LOWEST_LOGPROB``."""
    return torch.log_softmax(logits.detach(), dim=-1, dtype=torch.float32).clamp_(min=LOWEST_LOGPROB)


def _attach(
    logits: Float[Tensor, "*N V"], loss: Float[Tensor, "*N"], gradient: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """``loss``, with ``gradient`` as its derivative with respect to ``logits``."""
    attached: Tensor = _Attached.apply(logits, loss, gradient)  # type: ignore[no-untyped-call]
    return attached


class _Attached(torch.autograd.Function):
    """A loss whose gradient is already known. Backward: that gradient times the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[..., None]).to(ctx.dtype), None, None


def confidence(
    logits: Float[Tensor, "*N V"],
    labels: Int[Tensor, "*N"],
    target_logits: Float[Tensor, "*N V"],
    confidence: Float[Tensor, "*N"],
) -> Float[Tensor, "*N"]:
    """Binary cross-entropy of the drafter's confidence z: -alpha log sigmoid(z) - (1 - alpha) log sigmoid(-z) with
    alpha = sum_v min(p, q), not differentiated. Needs the target's distribution and a drafter with a confidence head.

    Range: 0 or more, in nats.
    Gradient: sigmoid(confidence) - alpha, to the confidence head and what it reads; none to the logits.
    Source: DSpark, DeepSpec (modeling/dspark/loss.py).
    """
    with torch.no_grad():
        q, p = _log_softmax(logits).exp_(), _log_softmax(target_logits).exp_()
        alpha = torch.minimum(p, q).sum(dim=-1).clamp(max=1.0)
    return torch.nn.functional.binary_cross_entropy_with_logits(confidence.float(), alpha, reduction="none")
