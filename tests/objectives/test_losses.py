"""Per-position losses: value and gradient of the written-out formula, limiting cases, extreme logits, memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from specauf_cli.errors import InputError
from specauf_cli.objectives import losses
from specauf_cli.objectives.loss import cross_entropy

Batch = tuple[Tensor, Tensor, Tensor]


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def naive_alpha(p: Tensor, q: Tensor) -> Tensor:
    return torch.minimum(p, q).sum(-1)


def naive_lk(p: Tensor, q: Tensor, *, scale: float, slope: float) -> Tensor:
    weight = scale * torch.exp(-slope * naive_alpha(p, q).detach())
    return weight * naive_kl(p, q) + (1 - weight) * (1 - naive_alpha(p, q))


# For every loss of the target's distribution: the loss, and its formula as a function of p and q.
FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "kl": (losses.kl, naive_kl),
    "reverse_kl": (losses.reverse_kl, lambda p, q: naive_kl(q, p)),
    "js": (losses.js, lambda p, q: (naive_kl(p, (p + q) / 2) + naive_kl(q, (p + q) / 2)) / 2),
    "tv": (losses.tv, lambda p, q: 1 - naive_alpha(p, q)),
    "nla": (losses.nla, lambda p, q: -naive_alpha(p, q).log()),
    "lk": (partial(losses.lk, scale=1.0, slope=3.0), partial(naive_lk, scale=1.0, slope=3.0)),
    "lk_half": (partial(losses.lk, scale=0.5, slope=1), partial(naive_lk, scale=0.5, slope=1)),
    "renyi": (losses.renyi, lambda p, q: -2 * (p * q).sqrt().sum(-1).log()),
}
every_formula = pytest.mark.parametrize(("loss", "formula"), FORMULAS.values(), ids=FORMULAS)
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in FORMULAS.values()], ids=FORMULAS)


@st.composite
def batches(draw: st.DrawFn, *, scales: tuple[float, ...] = (0.1, 1.0, 3.0, 8.0)) -> Batch:
    """Logits of the drafter and labels for ``[N, K]`` positions, and logits of the target, from flat to peaked."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 40)))
    logits, target_logits = (
        torch.randn(shape, generator=generator) * draw(st.sampled_from(scales)) + draw(st.sampled_from([0.0, -30.0]))
        for _ in range(2)
    )
    return logits, torch.randint(shape[-1], shape[:-1], generator=generator), target_logits


def with_gradient(loss: Callable[..., Tensor], logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their sum with a different weight at every position."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *rest)
    weights = torch.arange(1, value.numel() + 1, dtype=value.dtype).view(value.shape)
    (gradient,) = torch.autograd.grad(value, leaf, weights)
    return value.detach(), gradient


def softmax64(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1)


@every_formula
@given(batch=batches())
def test_value_and_gradient_are_those_of_the_formula(batch: Batch, loss: Any, formula: Any) -> None:
    logits, labels, target_logits = batch
    p = softmax64(target_logits)
    expected, expected_gradient = with_gradient(lambda x: formula(p, x.softmax(-1)), logits.double())
    value, gradient = with_gradient(loss, logits, labels, target_logits)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


@given(batch=batches())
def test_ce_is_the_cross_entropy_bit_for_bit(batch: Batch) -> None:
    logits, labels, _ = batch
    value, gradient = with_gradient(losses.ce, logits, labels)
    expected, expected_gradient = with_gradient(lambda x: cross_entropy(x, labels)[0], logits)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


@given(batch=batches())
def test_a_certain_target_makes_kl_and_nla_the_cross_entropy(batch: Batch) -> None:
    logits, labels, target_logits = batch
    certain = torch.full_like(target_logits, -torch.inf).scatter_(-1, labels[..., None], 0.0)
    expected, expected_gradient = with_gradient(losses.ce, logits, labels)
    for loss in (losses.kl, losses.nla):
        value, gradient = with_gradient(loss, logits, labels, certain)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@every_loss
@given(batch=batches())
def test_zero_with_a_gradient_of_zero_where_the_drafter_equals_the_target(batch: Batch, loss: Any) -> None:
    logits, labels, _ = batch
    value, gradient = with_gradient(loss, logits, labels, logits.clone())
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tv", "nla", "lk"])
def test_a_token_with_the_same_probability_under_both_counts_half_in_the_gradient(name: str) -> None:
    """As for torch.minimum, which is also what others use."""
    loss, formula = FORMULAS[name]
    logits, target_logits = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 2.0])
    p = target_logits.softmax(-1)
    assert p[2] == logits.softmax(-1)[2]
    _, expected = with_gradient(lambda x: formula(p, x.softmax(-1)), logits)
    _, gradient = with_gradient(loss, logits, torch.tensor(0), target_logits)
    torch.testing.assert_close(gradient, expected)


@every_loss
@given(batch=batches(scales=(0.1, 3.0, 30.0, 300.0)))
def test_bounds(batch: Batch, loss: Any) -> None:
    value = loss(*batch)
    assert value.dtype == torch.float32
    assert (value >= -1e-6).all()
    most = {losses.tv: 1.0, losses.js: math.log(2.0)}.get(loss, math.inf)
    assert (value <= most + 1e-6).all()


@given(batch=batches())
def test_the_divergences_are_ordered(batch: Batch) -> None:
    """2 TV^2 <= KL (Pinsker), TV^2 <= 1 - exp(-Rényi 1/2) (Bretagnolle-Huber), Rényi 1/2 <= KL, TV <= -log alpha."""
    kl, reverse, tv, nla, renyi = (
        f(*batch) for f in (losses.kl, losses.reverse_kl, losses.tv, losses.nla, losses.renyi)
    )
    slack = 1e-5
    assert (2 * tv**2 <= torch.minimum(kl, reverse) + slack).all()
    assert (tv**2 <= -torch.expm1(-renyi) + slack).all()
    assert (renyi <= torch.minimum(kl, reverse) + slack).all()
    assert (tv <= nla + slack).all()


@given(batch=batches())
def test_the_symmetric_ones_are_symmetric_and_the_two_kl_mirror_each_other(batch: Batch) -> None:
    logits, labels, target_logits = batch
    pairs = [(losses.js,) * 2, (losses.tv,) * 2, (losses.nla,) * 2, (losses.renyi,) * 2]
    for loss, mirrored in [*pairs, (losses.kl, losses.reverse_kl)]:
        there, back = loss(logits, labels, target_logits), mirrored(target_logits, labels, logits)
        torch.testing.assert_close(there, back, rtol=1e-5, atol=1e-6)


@every_loss
@given(batch=batches(scales=(0.1, 1.0, 3.0)), shift=st.sampled_from([-64.0, -1.5, 100.0]))
def test_a_constant_added_to_all_logits_changes_nothing(batch: Batch, shift: float, loss: Any) -> None:
    logits, labels, target_logits = batch
    value, gradient = with_gradient(loss, logits, labels, target_logits)
    shifted, shifted_gradient = with_gradient(loss, logits + shift, labels, target_logits - shift)
    torch.testing.assert_close(shifted, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted_gradient, gradient, rtol=1e-3, atol=1e-3)
    assert gradient.sum(-1).abs().max() < 1e-4


def rows(*, banned: bool) -> Tensor:
    """Extreme logits over six tokens: equal, one token certain, half of them impossible, wide; tokens of logit -inf if
    ``banned``."""
    certain = torch.full((6,), -1e4)
    certain[2] = 1e4
    other = certain.flip(0)
    half = torch.tensor([1e4, -1e4] * 3)
    wide = torch.linspace(-1e4, 1e4, 6)
    extreme = [torch.zeros(6), torch.full((6,), 1e4), torch.full((6,), -1e4), certain, other, half, -half, wide]
    if banned:
        extreme = [torch.tensor([0.0, -torch.inf] * 3), certain.masked_fill(certain < 0, -torch.inf)]
    return torch.stack(extreme)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("banned", [False, True], ids=["finite", "banned"])
@every_loss
def test_finite_at_extreme_logits(loss: Any, banned: bool, dtype: torch.dtype) -> None:
    """Every pair of extreme rows: value and gradient are finite, and the gradient has the type of the logits."""
    logits, target_logits = rows(banned=False).to(dtype), rows(banned=banned).to(dtype)
    pairs = torch.cartesian_prod(torch.arange(len(logits)), torch.arange(len(target_logits)))
    labels = torch.arange(len(pairs)) % 6
    value, gradient = with_gradient(loss, logits[pairs[:, 0]], labels, target_logits[pairs[:, 1]])
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ce_is_finite_at_extreme_logits_for_every_label(dtype: torch.dtype) -> None:
    logits = rows(banned=False).to(dtype)
    for label in range(6):
        value, gradient = with_gradient(losses.ce, logits, torch.full((len(logits),), label))
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_values_at_extreme_logits() -> None:
    """Two tokens 2e4 apart, and the target certain of the other one: known without a calculation."""
    logits, target_logits = torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4])
    expected = {
        losses.kl: 2e4,
        losses.reverse_kl: 2e4,
        losses.js: math.log(2.0),
        losses.tv: 1.0,
        losses.nla: 2e4 - math.log(2.0),
        losses.renyi: 2e4 - 2 * math.log(2.0),
    }
    for loss, value in expected.items():
        torch.testing.assert_close(loss(logits, torch.tensor(1), target_logits), torch.tensor(value))
    assert losses.ce(logits, torch.tensor(1)) == 2e4


def test_nla_keeps_its_gradient_where_the_acceptance_underflows() -> None:
    value, gradient = with_gradient(
        losses.nla, torch.tensor([300.0, 0.0]), torch.tensor(1), torch.tensor([-torch.inf, 0.0])
    )
    assert value == 300.0
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0]))


@every_loss
@given(batch=batches())
def test_bfloat16_logits_are_evaluated_in_fp32(batch: Batch, loss: Any) -> None:
    logits, labels, target_logits = batch[0].bfloat16(), batch[1], batch[2].bfloat16()
    value, gradient = with_gradient(loss, logits, labels, target_logits)
    expected, expected_gradient = with_gradient(loss, logits.float(), labels, target_logits.float())
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient.bfloat16())


@every_loss
def test_the_target_gets_no_gradient_and_no_input_is_changed(loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target_logits = (torch.randn(3, 7, generator=generator, requires_grad=True) for _ in range(2))
    before = logits.detach().clone(), target_logits.detach().clone()
    loss(logits, torch.zeros(3, dtype=torch.long), target_logits).sum().backward()
    assert logits.grad is not None
    assert target_logits.grad is None
    assert torch.equal(logits, before[0])
    assert torch.equal(target_logits, before[1])
    assert not loss(logits.detach(), torch.zeros(3, dtype=torch.long), target_logits).requires_grad


def test_the_weight_of_lk_is_detached_and_its_ends_are_kl_and_tv() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, target_logits = (2 * torch.randn(5, 11, generator=generator) for _ in range(2))
    batch = logits, torch.zeros(5, dtype=torch.long), target_logits
    for end, expected in [
        (partial(losses.lk, scale=1, slope=0), losses.kl),
        (partial(losses.lk, scale=0, slope=3), losses.tv),
    ]:
        for ours, theirs in zip(with_gradient(end, *batch), with_gradient(expected, *batch), strict=True):
            torch.testing.assert_close(ours, theirs)
    (kl, kl_gradient), (tv, tv_gradient) = with_gradient(losses.kl, *batch), with_gradient(losses.tv, *batch)
    weight = 0.8 * torch.exp(-2 * (1 - tv))
    value, gradient = with_gradient(partial(losses.lk, scale=0.8, slope=2), *batch)
    torch.testing.assert_close(value, weight * kl + (1 - weight) * tv)
    torch.testing.assert_close(gradient, weight[:, None] * kl_gradient + (1 - weight[:, None]) * tv_gradient)


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"scale": 1.5, "slope": 3}, "scale must be between 0 and 1, got 1.5"),
        ({"scale": math.nan, "slope": 3}, "scale must be between 0 and 1, got nan"),
        ({"scale": 1.0, "slope": -1}, "slope must be a finite number >= 0, got -1"),
        ({"scale": 1.0, "slope": math.inf}, "slope must be a finite number >= 0, got inf"),
    ],
)
def test_knobs_of_lk_outside_their_range_are_one_line(knobs: dict[str, float], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        losses.lk(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1, 2), **knobs)


@given(batches())
def test_confidence_learns_the_overlap_and_leaves_the_logits_alone(batch: Batch) -> None:
    logits, labels, target_logits = batch
    sure = torch.linspace(-3, 3, labels.numel()).view(labels.shape).requires_grad_()
    moving = logits.clone().requires_grad_()
    loss = losses.confidence(moving, labels, target_logits, sure)
    alpha = naive_alpha(softmax64(target_logits), softmax64(logits)).float()
    expected = -(alpha * torch.sigmoid(sure).log() + (1 - alpha) * torch.sigmoid(-sure).log())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), sure)
    torch.testing.assert_close(gradient, torch.sigmoid(sure) - alpha, rtol=1e-4, atol=1e-5)
    assert not losses.confidence(moving, labels, target_logits, sure.detach()).requires_grad


def test_a_signature_says_what_a_loss_needs() -> None:
    """Data are positional and always the same, knobs are keyword-only and have no default."""
    public = {name: f for name, f in inspect.getmembers(losses, inspect.isfunction) if f.__module__ == losses.__name__}
    listed = {name for name in public if not name.startswith("_")}
    assert listed == {"ce", "kl", "reverse_kl", "js", "tv", "nla", "lk", "renyi", "confidence"}
    for name in listed:
        parameters = inspect.signature(public[name]).parameters.values()
        data = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        taken = {"ce": 2, "confidence": 4}.get(name, 3)
        assert data == ["logits", "labels", "target_logits", "confidence"][:taken]
        assert all(p.default is p.empty for p in parameters)


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that were created inside and still exist, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        result = func(*args, **kwargs or {})
        for x in result if isinstance(result, tuple) else (result,):
            if x.untyped_storage().data_ptr() not in known:
                storage = x.untyped_storage()
                self.storages[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return result


@every_loss
def test_at_most_four_tensors_of_the_size_of_the_logits_exist_at_a_time(loss: Any) -> None:
    logits, target_logits = torch.randn(4, 1000).requires_grad_(), torch.randn(4, 1000)
    labels = torch.zeros(4, dtype=torch.long)
    with Held() as held:
        torch.autograd.backward(loss(logits, labels, target_logits).sum())
    assert held.most < 4.1 * 4 * logits.numel()
