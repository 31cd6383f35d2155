"""The floor of R on a named card, by hand for Qwen3-8B on an H100, and its limits."""

from __future__ import annotations

import pytest

from specauf_cli.config import compose
from specauf_cli.errors import InputError
from specauf_cli.models.sizes import drafter_parameters
from specauf_cli.planning.plan import GPUS
from specauf_cli.planning.roofline import BANDWIDTH, Roofline, roofline

PAPER = compose.compose(["profile=paper", "target=qwen3_8b", "backbone=dflash"])
assert PAPER.target.sizes is not None
SIZES = PAPER.target.sizes
LAYER = 2 * 4096 * 128 * (32 + 8) + 3 * 4096 * 12288
HEAD = 151936 * 4096


def floor(gpu: str = "h100", proposals: int = 15, batch: int = 1) -> Roofline:
    return roofline(gpu, SIZES, PAPER.target.taps, PAPER.backbone, proposals=proposals, batch=batch)


def test_qwen3_8b_on_an_h100_by_hand() -> None:
    found = floor()
    assert found.plain == pytest.approx(2 * (36 * LAYER + HEAD) / 3.35e12)
    assert found.plain == pytest.approx(4.5e-3, rel=0.01), "8 G parameters of two bytes at 3.35 TB/s"
    assert found.verify == found.plain, "16 tokens are far from the peak: the weights are read once"
    drafter = sum(drafter_parameters(SIZES, PAPER.backbone, 5).values())
    assert found.draft == pytest.approx(2 * (drafter + HEAD) / 3.35e12)
    assert found.ratio == pytest.approx((found.draft + found.verify) / found.plain)


def test_large_batches_are_bound_by_operations() -> None:
    many = floor(batch=256)
    assert many.verify == pytest.approx(2 * (36 * LAYER + HEAD) * 256 * 16 / 989e12)
    assert many.ratio > floor().ratio
    assert floor(batch=256, proposals=1).ratio < many.ratio


def test_every_known_card_has_a_bandwidth_and_others_are_named() -> None:
    assert set(BANDWIDTH) == set(GPUS)
    with pytest.raises(InputError, match="Did you mean 'h100'"):
        floor("h10")
