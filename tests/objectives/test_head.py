"""Chunked and pruned heads against the naive one: same loss, same gradient, same first miss."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from specauf_cli.config.schema import ObjectiveConfig, TermConfig
from specauf_cli.errors import InputError
from specauf_cli.objectives import credits
from specauf_cli.objectives import head as heads
from specauf_cli.objectives.loss import NORMALIZE, BranchLoss, branch_losses
from specauf_cli.objectives.terms import bind

N, K, D, V = 40, 7, 16, 33
CREDITS = {
    "full_ce": TermConfig("full_ce"),
    "decay": TermConfig("decay", knobs={"gamma": 3.0}),
    "auf": TermConfig("auf"),
    "auf_decay": TermConfig("auf_decay", knobs={"gamma": 3.0}),
    "focal_breaker": TermConfig("focal_breaker"),
    "breakerless_auf": TermConfig("breakerless_auf"),
}
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(9))


def objective(name: str, final: str | None = None) -> ObjectiveConfig:
    credit = CREDITS[final] if final else None
    return ObjectiveConfig(name, name, ("dflash",), CREDITS[name], credit, "base" if final else None)


def plain(hidden: Tensor, _previous: Tensor) -> Mapping[str, Tensor]:
    return {"base": hidden @ WEIGHT.T.to(hidden.dtype)}


def of_target(hidden: Tensor) -> Tensor:
    return 3 * hidden @ WEIGHT.T.to(hidden.dtype)


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
    bound = bind(wanted, normalize)
    found = heads.facts(
        head,
        logits_of,
        batch._replace(hidden=leaf),
        V,
        bound,
        row_wise=row_wise,
        target_head=of_target if bound.soft else None,
    )
    losses = branch_losses(found, bound, sequences=N // 4)
    pairs = [pair for loss in losses.values() for pair in loss.pairs]
    total = torch.stack([total / weight.clamp(min=1e-9) for total, weight in pairs]).sum()
    torch.autograd.backward(total)
    assert leaf.grad is not None
    return losses, leaf.grad


def agree(one: tuple[dict[str, BranchLoss], Tensor], other: tuple[dict[str, BranchLoss], Tensor]) -> None:
    for name, loss in one[0].items():
        for pair, same in zip(loss.pairs, other[0][name].pairs, strict=True):
            torch.testing.assert_close(pair.total, same.total, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(pair.weight, same.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=2e-7)


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
    agree(computed(head, batch, objective("auf"), "credit"), computed("full", batch, objective("auf"), "credit"))


def test_pruned_computes_the_rows_of_the_support_once_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rows = blocks(), 0

    def counting(hidden: Tensor, previous: Tensor) -> Mapping[str, Tensor]:
        nonlocal rows
        rows += hidden.shape[0] * hidden.shape[1]
        return plain(hidden, previous)

    losses, _ = computed("pruned", batch, objective("auf"), "credit", counting)
    assert rows == losses["base"].sums["support"] < batch.mask.sum()


def test_ties_go_to_the_lowest_token() -> None:
    """Equal logits everywhere: the argmax is token 0, so slots labelled 0 are right and all others are misses."""
    batch = blocks()._replace(hidden=torch.zeros(N, K, D), labels=torch.tensor([[0, 0, 1, 0, 0, 2, 0]]).expand(N, -1))
    for head in ("full", "chunked", "pruned"):
        losses, _ = computed(head, batch, objective("auf"), "credit")
        assert losses["base"].sums["accepted"] == batch.mask[:, :2].sum()


def test_low_precision_stays_close() -> None:
    batch = blocks()
    with torch.autocast("cpu", torch.bfloat16):
        naive = computed("full", batch, objective("auf"), "credit")
        pruned = computed("pruned", batch, objective("auf"), "credit")
    assert naive[0]["base"].sums["support"] == pruned[0]["base"].sums["support"]
    torch.testing.assert_close(naive[0]["base"].pairs[0].total, pruned[0]["base"].pairs[0].total, rtol=1e-5, atol=1e-5)
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
        found.append(computed(head, batch, wanted, "credit", corrected, row_wise=False))
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
        InputError, match="needs a backbone with DFlash's own logits, and cross-entropy with credits that"
    ):
        heads.choose("pruned", objective(name), row_wise, 1, "cpu")


@pytest.mark.parametrize("sure", [0.0, 0.7, 1.0])
def test_the_rank_of_the_label_is_the_same_by_every_head(sure: float) -> None:
    """Counted only where a credit asks for it; right slots have rank 0."""
    batch = blocks(sure=sure)
    asking = bind(ObjectiveConfig("x", "x", ("dflash",), TermConfig("top_k_auf", knobs={"k": 2})), "credit")
    naive = heads.facts("full", plain, batch, V, asking)["base"].stats
    chunked = heads.facts("chunked", plain, batch, V, asking)["base"].stats
    recomputed = heads.facts("chunked", plain, batch, V, asking, row_wise=False)["base"].stats
    assert naive.gold_rank is not None
    assert chunked.gold_rank is not None
    logits = plain(batch.hidden, batch.previous)["base"]
    for n, k in batch.mask.nonzero().tolist():
        higher = sum(float(x) > float(logits[n, k, batch.labels[n, k]]) for x in logits[n, k])
        assert int(naive.gold_rank[n, k]) == int(chunked.gold_rank[n, k]) == higher
        assert not (bool(naive.correct[n, k]) and higher)
    assert recomputed.gold_rank is not None
    assert torch.equal(recomputed.gold_rank, naive.gold_rank)
    assert heads.facts("full", plain, batch, V, bind(objective("auf"), "credit"))["base"].stats.gold_rank is None


@pytest.mark.parametrize("head", ["full", "chunked"])
@pytest.mark.parametrize(
    ("credit", "same"),
    [
        (TermConfig("top_k_auf", knobs={"k": 1}), "auf"),
        (TermConfig("warm_auf", knobs={"gamma": 3.0, "until": 0.5}), "decay"),
        (TermConfig("floor_auf", knobs={"eps": 0.0}), "auf"),
        (TermConfig("dpace", knobs={"alpha": 1.0}), None),
    ],
    ids=lambda x: x.credit if isinstance(x, TermConfig) else str(x),
)
def test_credits_that_ask_for_more_are_the_others_at_their_limits(
    head: str, credit: TermConfig, same: str | None
) -> None:
    batch = blocks()
    bound = bind(ObjectiveConfig("x", "x", ("dflash",), credit), "credit")
    facts = heads.facts(head, plain, batch, V, bound)
    (pair,) = branch_losses(facts, bound, progress=0.25)["base"].pairs
    if same is None:
        remaining = batch.mask.flip(1).cumsum(1).flip(1).float() * batch.mask
        torch.testing.assert_close(pair.weight, remaining.sum())
        return
    (other,) = branch_losses(facts, bind(objective(same), "credit"))["base"].pairs
    assert torch.equal(pair.total, other.total)
    assert torch.equal(pair.weight, other.weight)


SOFT = {
    "kl": TermConfig("decay", "kl", knobs={"gamma": 3.0}),
    "lk": TermConfig("full_ce", "lk", normalize="blocks", knobs={"scale": 1.0, "slope": 3.0}),
    "end to end": TermConfig("expected_length", "nla", normalize="sequence"),
    "confidence": TermConfig("target_confidence", weight=0.3),
    "two losses": (TermConfig("auf", weight=0.1), TermConfig("auf", "tv", weight=1.8)),
    "three normalisers": (
        TermConfig("decay", "reverse_kl", knobs={"gamma": 3.0}),
        TermConfig("focal_breaker", weight=0.3),
        TermConfig("chain", weight=4.0, normalize="blocks"),
    ),
}


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("name", SOFT)
def test_soft_labels_in_chunks_equal_the_naive_loss_and_gradient(name: str, final: bool) -> None:
    """One branch, whose rows are computed with their gradient; and two, whose chunks are recomputed."""
    generator = torch.Generator().manual_seed(3)
    batch = blocks()._replace(target_hidden=torch.randn(N, K, D, generator=generator))
    wanted = ObjectiveConfig("soft", "soft", ("dflash",), SOFT[name], SOFT[name] if final else None)

    def branches(hidden: Tensor, previous: Tensor) -> Mapping[str, Tensor]:
        base = plain(hidden, previous)["base"]
        return {"base": base, "final": 2 * base} if final else {"base": base}

    naive = computed("full", batch, wanted, "credit", branches, row_wise=not final)
    agree(computed("chunked", batch, wanted, "credit", branches, row_wise=not final), naive)
    assert naive[1].abs().sum() > 0
    assert not naive[1][~batch.mask].any()


def test_no_tensor_with_all_rows_and_the_vocabulary_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the chunked head asks of a head has the rows of one chunk, the target's too."""
    batch = blocks()._replace(target_hidden=torch.randn(N, K, D))
    seen: list[int] = []

    def watched(hidden: Tensor) -> Tensor:
        seen.append(hidden[..., 0].numel())
        return of_target(hidden)

    bound = bind(ObjectiveConfig("x", "x", ("dflash",), SOFT["kl"]), "credit")
    monkeypatch.setattr(heads, "AT_ONCE", {"cpu": 5 * 8 * V})
    heads.facts("chunked", plain, batch, V, bound, target_head=watched)
    assert max(seen) == 5
    assert sum(seen) == int(batch.mask.sum())


def test_another_vocabulary_than_the_targets_is_named() -> None:
    batch = blocks()._replace(target_hidden=torch.randn(N, K, D))
    bound = bind(ObjectiveConfig("x", "x", ("dflash",), SOFT["kl"]), "credit")
    with pytest.raises(InputError, match="needs the target's distribution needs the same vocabulary"):
        heads.facts("full", plain, batch, V, bound, target_head=lambda hidden: of_target(hidden)[..., :-1])
