"""Chunked and pruned heads against the naive one: same loss, same gradient, same first miss."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from specauf_cli.config.schema import CreditConfig, ObjectiveConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives import credits
from specauf_cli.objectives import head as heads
from specauf_cli.objectives.loss import NORMALIZE, BranchLoss, branch_losses

N, K, D, V = 40, 7, 16, 33
CREDITS = {
    "full_ce": CreditConfig("full_ce"),
    "decay": CreditConfig("decay", {"gamma": 3.0}),
    "auf": CreditConfig("auf"),
    "auf_decay": CreditConfig("auf_decay", {"gamma": 3.0}),
    "focal_breaker": CreditConfig("focal_breaker"),
    "breakerless_auf": CreditConfig("breakerless_auf"),
}
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(9))


def objective(name: str, final: str | None = None) -> ObjectiveConfig:
    credit = CREDITS[final] if final else None
    return ObjectiveConfig(name, name, ("dflash",), CREDITS[name], credit, "base" if final else None)


def plain(hidden: Tensor, _previous: Tensor) -> Mapping[str, Tensor]:
    return {"base": hidden @ WEIGHT.T.to(hidden.dtype)}


def blocks(seed: int = 0, sure: float = 0.7, length: int | None = None) -> heads.Blocks:
    """Hidden states that are often right, with masks of every length (none and all included) or of one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (N, K), generator=generator)
    hidden = torch.randn(N, K, D, generator=generator)
    right = torch.rand(N, K, generator=generator) < sure
    hidden = hidden + 2.0 * right[..., None] * WEIGHT[labels]
    ends = torch.randint(0, K + 1, (N, 1), generator=generator) if length is None else torch.full((N, 1), length)
    if length is None:
        ends[0], ends[1] = 0, K
    previous = torch.randint(0, V, (N, K), generator=generator)
    return heads.Blocks(hidden.requires_grad_(), previous, labels, torch.arange(K) < ends)


def computed(
    head: str,
    batch: heads.Blocks,
    wanted: ObjectiveConfig,
    normalize: str,
    logits_of: heads.Logits = plain,
    row_wise: bool = True,
) -> tuple[dict[str, BranchLoss], Tensor]:
    """Losses of every branch, and the gradient of their sum with respect to the hidden states."""
    leaf = batch.hidden.detach().requires_grad_()
    found = heads.facts(head, logits_of, batch._replace(hidden=leaf), V, row_wise=row_wise)
    losses = branch_losses(found, batch.mask, wanted, normalize=normalize)
    total = torch.stack([loss.total / loss.weight.clamp(min=1e-9) for loss in losses.values()]).sum()
    torch.autograd.backward(total)
    assert leaf.grad is not None
    return losses, leaf.grad


def agree(one: tuple[dict[str, BranchLoss], Tensor], other: tuple[dict[str, BranchLoss], Tensor]) -> None:
    for name, loss in one[0].items():
        torch.testing.assert_close(loss.total, other[0][name].total, rtol=1e-6, atol=1e-6)
        assert torch.equal(loss.weight, other[0][name].weight)
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-7)


@pytest.fixture(params=[1, 3 * 4 * V * K, 10**9], ids=["row", "three blocks", "all"], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "AT_ONCE", {"cpu": request.param, "cuda": 512_000_000})


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", CREDITS)
@pytest.mark.parametrize("sure", [0.0, 0.7, 1.0])
def test_chunked_and_pruned_equal_the_naive_loss_and_gradient(name: str, normalize: str, sure: float) -> None:
    batch, wanted = blocks(sure=sure), objective(name)
    naive = computed("full", batch, wanted, normalize)
    chunked = computed("chunked", batch, wanted, normalize)
    agree(chunked, naive)
    assert chunked[0]["base"].sums == naive[0]["base"].sums
    if name in credits.TRUNCATING:
        pruned = computed("pruned", batch, wanted, normalize)
        agree(pruned, naive)
        for key in ("valid", "support", "support_correct", "blocks", "accepted"):  # the same first miss in every block
            assert pruned[0]["base"].sums[key] == naive[0]["base"].sums[key], key
        assert heads.hits(plain, batch, V) == naive[0]["base"].sums["correct"]


@pytest.mark.parametrize("length", [0, 1, K])
@pytest.mark.parametrize("head", ["chunked", "pruned"])
def test_batches_at_the_limits(head: str, length: int) -> None:
    batch = blocks(length=length)
    agree(computed(head, batch, objective("auf"), "batch"), computed("full", batch, objective("auf"), "batch"))


def test_pruned_computes_the_rows_of_the_support_once_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rows = blocks(), 0

    def counting(hidden: Tensor, previous: Tensor) -> Mapping[str, Tensor]:
        nonlocal rows
        rows += hidden.shape[0] * hidden.shape[1]
        return plain(hidden, previous)

    losses, _ = computed("pruned", batch, objective("auf"), "batch", counting)
    assert rows == losses["base"].sums["support"] < batch.mask.sum()


def test_ties_go_to_the_lowest_token() -> None:
    """Equal logits everywhere: the argmax is token 0, so slots labelled 0 are right and all others are misses."""
    batch = blocks()._replace(hidden=torch.zeros(N, K, D), labels=torch.tensor([[0, 0, 1, 0, 0, 2, 0]]).expand(N, -1))
    for head in ("full", "chunked", "pruned"):
        losses, _ = computed(head, batch, objective("auf"), "batch")
        assert losses["base"].sums["accepted"] == batch.mask[:, :2].sum()


def test_low_precision_stays_close() -> None:
    batch = blocks()
    with torch.autocast("cpu", torch.bfloat16):
        naive = computed("full", batch, objective("auf"), "batch")
        pruned = computed("pruned", batch, objective("auf"), "batch")
    assert naive[0]["base"].sums["support"] == pruned[0]["base"].sums["support"]
    torch.testing.assert_close(naive[0]["base"].total, pruned[0]["base"].total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(naive[1], pruned[1], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("names", [("auf", "full_ce"), ("decay", "auf_decay"), ("decay", None), ("auf", None)])
def test_trainable_weights_behind_the_head(names: tuple[str, str | None]) -> None:
    """Domino's final branch, or one branch of a backbone's own: chunks are recomputed with each slot's token before
    it."""
    behind = nn.Embedding(V, V)
    batch, wanted = blocks(), objective(*names)

    def corrected(hidden: Tensor, previous: Tensor) -> Mapping[str, Tensor]:
        base = plain(hidden, previous)["base"]
        more = base + behind(previous)
        return {"base": base, "final": more} if names[1] else {"base": more}

    found, gradients = [], []
    for head in ("full", "chunked"):
        behind.zero_grad()
        found.append(computed(head, batch, wanted, "batch", corrected, row_wise=False))
        assert behind.weight.grad is not None
        gradients.append(behind.weight.grad.clone())
    agree(*found)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_what_auto_means() -> None:
    few, many = 10, 10**10
    assert heads.choose("auto", objective("auf"), True, few, "cpu") == "pruned"
    assert heads.choose("auto", objective("auf_decay"), True, many, "cpu") == "pruned"
    assert heads.choose("auto", objective("decay"), True, many, "cpu") == "chunked"
    assert heads.choose("auto", objective("auf", "full_ce"), False, many, "cpu") == "chunked"
    assert heads.choose("auto", objective("auf"), False, few, "cpu") != "pruned"
    some = 32_000_000  # fp32 logits of 128 MB
    assert heads.choose("auto", objective("decay"), True, some, "cuda") == "full"
    assert heads.choose("full", objective("auf"), True, many, "cpu") == "full"


@pytest.mark.parametrize(("name", "row_wise"), [("decay", True), ("auf", False)])
def test_pruning_what_would_change_the_loss_is_refused(name: str, row_wise: bool) -> None:
    with pytest.raises(
        InputError, match="needs a backbone with DFlash's own logits and a credit that ends at the first"
    ):
        heads.choose("pruned", objective(name), row_wise, 1, "cpu")


@pytest.mark.parametrize("sure", [0.0, 0.7, 1.0])
def test_the_rank_of_the_label_is_the_same_by_every_head(sure: float) -> None:
    """Counted only where a credit asks for it; right slots have rank 0."""
    batch = blocks(sure=sure)
    naive, _ = heads.facts("full", plain, batch, V, with_rank=True)["base"]
    chunked, _ = heads.facts("chunked", plain, batch, V, with_rank=True)["base"]
    recomputed, _ = heads.facts("chunked", plain, batch, V, row_wise=False, with_rank=True)["base"]
    assert naive.gold_rank is not None
    assert chunked.gold_rank is not None
    logits = plain(batch.hidden, batch.previous)["base"]
    for n, k in batch.mask.nonzero().tolist():
        higher = sum(float(x) > float(logits[n, k, batch.labels[n, k]]) for x in logits[n, k])
        assert int(naive.gold_rank[n, k]) == int(chunked.gold_rank[n, k]) == higher
        assert not (bool(naive.correct[n, k]) and higher)
    assert recomputed.gold_rank is not None
    assert torch.equal(recomputed.gold_rank, naive.gold_rank)
    assert heads.facts("full", plain, batch, V)["base"][0].gold_rank is None


@pytest.mark.parametrize("head", ["full", "chunked"])
@pytest.mark.parametrize(
    ("credit", "same"),
    [
        (CreditConfig("top_k_auf", {"k": 1}), "auf"),
        (CreditConfig("warm_auf", {"gamma": 3.0, "until": 0.5}), "decay"),
        (CreditConfig("floor_auf", {"eps": 0.0}), "auf"),
        (CreditConfig("dpace", {"alpha": 1.0}), None),
    ],
    ids=lambda x: x.credit if isinstance(x, CreditConfig) else str(x),
)
def test_credits_that_ask_for_more_are_the_others_at_their_limits(
    head: str, credit: CreditConfig, same: str | None
) -> None:
    batch = blocks()
    wanted = ObjectiveConfig("x", "x", ("dflash",), credit)
    facts = heads.facts(head, plain, batch, V, with_rank=True)
    loss = branch_losses(facts, batch.mask, wanted, normalize="batch", progress=0.25)["base"]
    if same is None:
        remaining = batch.mask.flip(1).cumsum(1).flip(1).float() * batch.mask
        torch.testing.assert_close(loss.weight, remaining.sum())
        return
    other = branch_losses(facts, batch.mask, objective(same), normalize="batch")["base"]
    assert torch.equal(loss.total, other.total)
    assert torch.equal(loss.weight, other.weight)
