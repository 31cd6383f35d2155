"""The loss normalisers: sums by definition in value and gradient, however a batch is cut into micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.drawn import blocks, stats_of
from specauf_cli.objectives.loss import NORMALIZE, weighted

every_normalize = pytest.mark.parametrize("normalize", NORMALIZE)
Batch = tuple[Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Cross-entropies, credits (many of them zero) and masks ``[N, K]``; both are wild outside the mask."""
    mask = stats_of(draw(blocks())).mask
    count = mask.numel()
    losses = draw(st.lists(st.floats(0, 20, width=32), min_size=count, max_size=count))
    credit = draw(
        st.lists(st.sampled_from([0.0, 0.0, 1.0]) | st.floats(0.0625, 1.0, width=32), min_size=count, max_size=count)
    )
    outside = draw(st.sampled_from([0.0, 1e4, float("inf"), float("nan")]))
    ce, weights = (torch.tensor(x).view(mask.shape) for x in (losses, credit))
    return ce.masked_fill(~mask, outside), weights.masked_fill(~mask, outside), mask


def by_definition(ce: Tensor, credit: Tensor, mask: Tensor, normalize: str) -> tuple[float, float, list[list[float]]]:
    """Total, weight, and d total / d cross-entropy, by loops over Python numbers; each block is a sequence."""
    total = weight = 0.0
    gradient = []
    for losses, credits, valid in zip(ce.tolist(), credit.tolist(), mask.tolist(), strict=True):
        inside = [(loss, c) if v else (0.0, 0.0) for loss, c, v in zip(losses, credits, valid, strict=True)]
        mass = sum(c for _, c in inside)
        share = (1 / mass if mass else 0.0) if normalize == "block_credit" else 1.0
        total += share * sum(loss * c for loss, c in inside)
        blocks = float(any(valid))
        weight += {"credit": mass, "block_credit": float(mass > 0), "valid": float(sum(valid))}.get(normalize, blocks)
        gradient.append([share * c for _, c in inside])
    return total, weight, gradient


@every_normalize
@given(batch=batches())
def test_total_weight_and_gradient_are_their_definition(batch: Batch, normalize: str) -> None:
    ce, credit, mask = batch
    ce.requires_grad_()
    total, weight = weighted(ce, credit, mask, normalize=normalize, sequences=len(mask))
    (gradient,) = torch.autograd.grad(total, ce)
    expected_total, expected_weight, expected_gradient = by_definition(ce.detach(), credit, mask, normalize)
    assert total.item() == pytest.approx(expected_total, rel=1e-5, abs=1e-6)
    assert weight.item() == pytest.approx(expected_weight, rel=1e-5)
    torch.testing.assert_close(gradient, torch.tensor(expected_gradient), rtol=1e-5, atol=1e-7)


@every_normalize
@given(batch=batches(), data=st.data())
def test_micro_batches_add_up_to_the_batch_however_it_is_cut(batch: Batch, normalize: str, data: st.DataObject) -> None:
    ce, credit, mask = batch
    cuts = data.draw(st.lists(st.integers(0, len(mask)), max_size=4).map(sorted))
    whole = ce.clone().requires_grad_()
    total, weight = weighted(whole, credit, mask, normalize=normalize, sequences=len(mask))
    torch.autograd.backward(total)
    parts = ce.clone().requires_grad_()
    sums = torch.zeros(2)
    for begin, end in zip([0, *cuts], [*cuts, len(mask)], strict=True):
        part = slice(begin, end)
        pair = weighted(parts[part], credit[part], mask[part], normalize=normalize, sequences=max(1, end - begin))
        torch.autograd.backward(pair[0])
        sums += torch.stack(pair).detach()
    torch.testing.assert_close(sums, torch.stack([total, weight]).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=0)


@every_normalize
@given(batch=batches(), factor=st.floats(0.125, 8.0))
def test_a_credit_in_another_unit_scales_the_loss_only_where_the_mask_divides(
    batch: Batch, normalize: str, factor: float
) -> None:
    ce, credit, mask = batch
    total, weight = weighted(ce, credit, mask, normalize=normalize)
    scaled, its_weight = weighted(ce, credit * factor, mask, normalize=normalize)
    if weight == 0:
        assert (scaled, its_weight) == (0, 0)
        return
    expected = (total / weight) * (1.0 if "credit" in normalize else factor)
    torch.testing.assert_close(scaled / its_weight, expected, rtol=1e-4, atol=1e-6)


@given(batch=batches(), anchors=st.integers(1, 3))
def test_a_sequence_counts_once_however_many_blocks_it_has(batch: Batch, anchors: int) -> None:
    """By a loop over sequences: mean over those with a valid block of the sum over blocks / their number."""
    ce, credit, mask = (torch.cat([x] * anchors) for x in batch)
    means = []
    for sequence in range(len(batch[0])):
        own = slice(sequence * anchors, (sequence + 1) * anchors)
        inside = torch.where(mask[own], ce[own] * credit[own], 0).sum().item()
        count = int(mask[own].any(dim=1).sum())
        means += [inside / count] if count else []
    total, weight = weighted(ce, credit, mask, normalize="sequence", sequences=len(batch[0]))
    assert (total.item(), weight.item()) == pytest.approx((sum(means), len(means)), rel=1e-5, abs=1e-5)
