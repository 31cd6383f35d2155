"""Whole losses of other projects, written out here from their formulas, against the command that gives theirs.

``docs/conventions.md`` is the table of these. A reference is plain fp64 and autograd; where nothing here gives a
project's convention exactly, the test says by how much the gradients differ on its batch.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from helpers.commands import ROOT
from helpers.whole_loss import (
    BLOCKS,
    SEQUENCES,
    SLOTS,
    Batch,
    assert_same,
    assert_same_gradient,
    batch,
    distance,
    ours,
    with_gradient,
)

FROM_ZERO = torch.arange(SLOTS, dtype=torch.float64)
"""Slot numbers from 0 on."""
DIFFERS_BY = {
    "torchspec": 0.61,
    "lk_detached": 1.63,
    "lk_attached": 1.31,
    "lk_alpha_of_the_mean": 1.12,
    "fastmtp": 0.06,
}
"""How far the gradient here is from theirs on the ragged batch, as a share of theirs, where no command gives theirs."""


def cross_entropy(data: Batch) -> Tensor:
    log_q, _ = data.in_double()
    return -log_q.gather(-1, data.tokens[..., None])[..., 0]


def kl(data: Batch) -> Tensor:
    log_q, log_p = data.in_double()
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def overlap(data: Batch) -> Tensor:
    log_q, log_p = data.in_double()
    return torch.minimum(log_q.exp(), log_p.exp()).sum(dim=-1)


def weighted_mean(losses: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """sum m w l / sum m w."""
    return (mask * weights * losses).sum() / (mask * weights).sum()


def dpace_weights(confidence: Tensor, mask: Tensor, alpha: float, *, whole_block: bool = False) -> Tensor:
    """For each slot, the sum over it and the later valid slots of the product of all smoothed confidences so far.

    A masked slot multiplies by 1 and is not in the sum; with ``whole_block`` it is like any other.
    """
    weights = torch.zeros_like(confidence)
    for n, valid in enumerate(mask.tolist()):
        reach = 1.0
        for k in range(len(valid)):
            if valid[k] or whole_block:
                reach *= float((1 - alpha) * confidence[n, k] + alpha)
                weights[n, : k + 1] += reach
    return weights


def chain(probability: Tensor, mask: Tensor) -> Tensor:
    """Per block, the sum over the valid slots of the product of the probabilities up to it: differentiable."""
    return (mask * torch.where(mask, probability, 1.0).cumprod(dim=1)).sum(dim=1)


def first_misses(data: Batch) -> Tensor:
    """1 at a block's first valid slot whose argmax is not the token."""
    found = torch.zeros(data.mask.shape, dtype=torch.float64)
    wrong = (data.logits.argmax(dim=-1) != data.tokens) & data.mask
    for n in range(len(wrong)):
        if wrong[n].any():
            found[n, wrong[n].nonzero()[0]] = 1
    return found


def per_sequence(block_sums: Tensor, mask: Tensor) -> Tensor:
    """Each sequence's sum over its number of blocks with a valid slot, averaged over the sequences with any."""
    means = []
    for sums, valid in zip(block_sums.view(SEQUENCES, BLOCKS), mask.view(SEQUENCES, BLOCKS, SLOTS), strict=True):
        anchors = int(valid.any(dim=1).sum())
        if anchors:
            means.append(sums.sum() / anchors)
    return torch.stack(means).mean()


def test_the_commands_of_the_page_give_losses() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text()
    commands = set(re.findall(r"`(objective=[^`]+)`", page))
    assert len(commands) > 15
    for command in sorted(commands):
        assert ours(command, batch())[1].norm() > 0, command


@pytest.mark.parametrize(
    ("project", "gamma", "command"),
    [("SpecForge, TorchSpec", 7, "objective=decay"), ("DeepSpec", 4, "objective=decay objective.base.gamma=4")],
)
def test_decay_divided_by_its_sum(project: str, gamma: float, command: str) -> None:
    data = batch()
    loss = weighted_mean(cross_entropy(data), torch.exp(-FROM_ZERO / gamma), data.mask)
    assert_same(ours(command, data), with_gradient(loss, data))


def dpace_of(data: Batch, *, whole_block: bool = False) -> tuple[Tensor, Tensor]:
    """Cross-entropy and its D-PACE weights with alpha 0.5."""
    losses = cross_entropy(data)
    return losses, dpace_weights((-losses).exp().detach(), data.mask, 0.5, whole_block=whole_block)


def test_dpace_of_specforge_before_its_change_848_is_divided_by_the_weights() -> None:
    data = batch()
    losses, weights = dpace_of(data)
    assert_same(ours("objective=dpace", data), with_gradient(weighted_mean(losses, weights, data.mask), data))


def test_dpace_of_specforge_since_848_is_divided_per_sequence_by_its_anchors() -> None:
    data = batch()
    losses, weights = dpace_of(data)
    theirs = with_gradient(per_sequence((data.mask * weights * losses).sum(dim=1), data.mask), data)
    assert_same(ours("objective=dpace_sequence", data), theirs)
    assert distance(ours("objective=dpace", data)[1], theirs[1]) > 0.5


def test_dpace_of_its_authors_is_the_sum_over_a_sequence() -> None:
    """With the same number of anchors in every sequence that is ``dpace_sequence`` times this number."""
    data = batch(full=True)
    losses, weights = dpace_of(data)
    loss, gradient = with_gradient((weights * losses).sum() / SEQUENCES, data)
    assert_same(ours("objective=dpace_sequence", data), (loss / BLOCKS, gradient / BLOCKS))


def test_dpace_of_torchspec_counts_masked_slots() -> None:
    """Theirs goes on with the drafter's confidence behind the end of an answer: the same where every slot is valid."""
    for full in (True, False):
        data = batch(full=full)
        losses, weights = dpace_of(data, whole_block=True)
        theirs = with_gradient(weighted_mean(losses, weights, data.mask), data)
        if full:
            assert_same(ours("objective=dpace", data), theirs)
        else:
            assert distance(ours("objective=dpace", data)[1], theirs[1]) == pytest.approx(
                DIFFERS_BY["torchspec"], abs=0.01
            )


@pytest.mark.parametrize("part", ["prefix", "continuation"])
def test_parts_of_dpace_of_specforge(part: str) -> None:
    """Theirs divides the whole by the prefix to get the continuation."""
    data = batch()
    losses, weights = dpace_of(data)
    confidence = torch.where(data.mask, 0.5 * (-losses).exp().detach() + 0.5, 1.0)
    prefix = confidence.cumprod(dim=1)
    theirs = weighted_mean(losses, prefix if part == "prefix" else weights / prefix, data.mask)
    assert_same(ours(f"objective=dpace_{part}", data), with_gradient(theirs, data))


UNIFORM = "objective.base.gamma=1e9 trainer.normalize=valid"


def lk_of_specforge(data: Batch, *, detached: bool) -> Tensor:
    """One weight for all positions, from the mean of their acceptance rates."""
    acceptance = overlap(data)[data.mask].mean()
    weight = torch.exp(-3 * (acceptance.detach() if detached else acceptance))
    return weight * kl(data)[data.mask].mean() + (1 - weight) * (1 - acceptance)


@pytest.mark.parametrize(("detached", "case"), [(True, "lk_detached"), (False, "lk_attached")])
def test_lk_of_specforge_has_one_weight_for_all_positions(detached: bool, case: str) -> None:
    """Ours has one for each, so it is theirs only where all positions have the same acceptance rate (and the weight is
    detached; in one version of theirs it is not)."""
    data = batch()
    theirs = with_gradient(lk_of_specforge(data, detached=detached), data)
    assert distance(ours(f"objective=lk {UNIFORM}", data)[1], theirs[1]) == pytest.approx(DIFFERS_BY[case], abs=0.01)
    shape = data.logits.shape
    alike = Batch(
        data.logits.detach()[:1, :1].expand(shape).clone().requires_grad_(),
        data.target_logits[:1, :1].expand(shape).clone(),
        data.tokens,
        data.mask,
    )
    loss = ours(f"objective=lk {UNIFORM}", alike)
    theirs = with_gradient(lk_of_specforge(alike, detached=detached), alike)
    torch.testing.assert_close(loss[0].double(), theirs[0], rtol=1e-5, atol=0)
    assert (distance(loss[1], theirs[1]) < 1e-5) == detached


def test_lk_alpha_of_specforge_is_the_mean_of_the_logarithms() -> None:
    """In one version of theirs it is the logarithm of the mean."""
    data = batch()
    loss = ours(f"objective=nla {UNIFORM}", data)
    acceptance = overlap(data)[data.mask]
    assert_same(loss, with_gradient(-acceptance.log().mean(), data))
    of_the_mean = with_gradient(-overlap(data)[data.mask].mean().log(), data)
    assert distance(loss[1], of_the_mean[1]) == pytest.approx(DIFFERS_BY["lk_alpha_of_the_mean"], abs=0.01)


def test_loss_of_dspark_in_deepspec_without_its_confidence_head() -> None:
    data = batch()
    weights = torch.exp(-FROM_ZERO / 4)
    log_q, log_p = data.in_double()
    apart = (log_q.exp() - log_p.exp()).abs().sum(dim=-1)
    loss = 0.1 * weighted_mean(cross_entropy(data), weights, data.mask) + 0.9 * weighted_mean(apart, weights, data.mask)
    assert_same(ours("objective=dspark", data), with_gradient(loss, data))


def test_loss_of_pard_2() -> None:
    data = batch()
    _, log_p = data.in_double()
    probability = log_p.gather(-1, data.tokens[..., None])[..., 0].exp()
    weights = torch.ones_like(probability)
    for k in range(1, SLOTS):
        weights[:, k] = weights[:, k - 1] * probability[:, k - 1]
    loss = 0.1 * weighted_mean(cross_entropy(data), weights, data.mask) + weighted_mean(kl(data), weights, data.mask)
    assert_same(ours("objective=pard2", data), with_gradient(loss, data))


def decay_and_focal(data: Batch) -> Tensor:
    losses, misses = cross_entropy(data), first_misses(data)
    return weighted_mean(losses, torch.exp(-FROM_ZERO / 10), data.mask) + 0.3 * (misses * losses).sum() / misses.sum()


def test_left_to_right_training_without_its_chain() -> None:
    data = batch()
    assert 0 < first_misses(data).sum() < data.mask.any(dim=1).sum(), "some blocks have a miss and some have none"
    assert_same(ours("objective=l2r_focal", data), with_gradient(decay_and_focal(data), data))


@pytest.mark.parametrize("full", [True, False])
def test_left_to_right_training_with_its_chain_by_autograd(full: bool) -> None:
    """The chain divides by the slots of a block, 15 at B = 16, whatever the mask."""
    data = batch(full=full)
    reward = chain((-cross_entropy(data)).exp(), data.mask) / SLOTS
    loss = decay_and_focal(data) - 40 * reward.sum() / data.mask.any(dim=1).sum()
    # The yaml has 40 / 15 with four decimals.
    assert distance(ours("objective=l2r", data)[1], with_gradient(loss, data)[1]) < 2e-5


def test_chain_alone_has_the_direction_of_the_expected_length_under_greedy_verification() -> None:
    """``normalize=blocks`` gives its size too."""
    data = batch()
    length = chain((-cross_entropy(data)).exp(), data.mask).sum() / data.mask.any(dim=1).sum()
    reference = with_gradient(-length, data)
    assert_same_gradient(ours("objective=chain", data), reference)
    gradient = ours("objective=chain objective.base.normalize=credit", data)[1]
    assert distance(gradient / gradient.norm(), reference[1] / reference[1].norm()) < 1e-5


@pytest.mark.parametrize(("project", "factor"), [("DeepSpec, pull request 58", 1), ("arXiv 2606.12370, eq. 13", SLOTS)])
def test_expected_length_under_sampling_by_autograd(project: str, factor: float) -> None:
    """The paper divides by the number of slots, DeepSpec does not; the paper's 1 minus it has the same gradient."""
    data = batch()
    length = chain(overlap(data), data.mask).sum() / data.mask.any(dim=1).sum()
    loss, gradient = with_gradient(-length / factor, data)
    assert_same_gradient(ours("objective=expected_length", data), (loss, factor * gradient))


def test_d_pard_smooths_the_acceptance_rate() -> None:
    data = batch()
    log_q, log_p = data.in_double()
    losses = -2 * ((log_q + log_p) / 2).logsumexp(dim=-1)
    weights = dpace_weights(overlap(data).detach(), data.mask, 0.5)
    theirs = with_gradient((data.mask * weights * losses).sum() / data.mask.any(dim=1).sum(), data)
    assert_same(ours("objective=renyi", data), theirs)


@pytest.mark.parametrize("full", [True, False])
def test_steps_of_eagle_3(full: bool) -> None:
    """Soft cross-entropy, which differs from KL by a constant; the mean over all positions of each step, masked ones
    too, times 0.8^step, summed."""
    data = batch(full=full)
    log_q, log_p = data.in_double()
    soft = -(log_p.exp() * log_q).sum(dim=-1)
    steps = [0.8**k * (data.mask * soft)[:, k].sum() / len(soft) for k in range(SLOTS)]
    loss, gradient = with_gradient(torch.stack(steps).sum(), data)
    share = data.mask.any(dim=1).double().mean()
    assert_same_gradient(ours("objective=eagle3", data), (loss, gradient / share))


def test_steps_of_fastmtp() -> None:
    """Each step's mean, weighted with 0.6^step over the sum of these: ours where every slot is valid."""
    for full in (True, False):
        data = batch(full=full)
        losses = cross_entropy(data)
        weights = 0.6**FROM_ZERO / (0.6**FROM_ZERO).sum()
        means = (data.mask * losses).sum(dim=0) / data.mask.sum(dim=0)
        theirs = with_gradient((weights * means).sum(), data)
        if full:
            assert_same(ours("objective=geometric", data), theirs)
        else:
            assert distance(ours("objective=geometric", data)[1], theirs[1]) == pytest.approx(
                DIFFERS_BY["fastmtp"], abs=0.01
            )
