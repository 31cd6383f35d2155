"""Shared by tests of targets and drafters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from helpers.sequences import sequences
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.interchange import formats
from specauf_cli.models import checkpoint
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target

DOMINO = {"gru_hidden_dim": 6, "emb_dim": 5, "pure_draft_prefix_len": 1}
KNOBS: dict[str, dict[str, int | str]] = {
    "dflash": {},
    "domino": {**DOMINO},
    "dspark": {"markov_rank": 5, "markov_head_type": "vanilla"},
    "medusa": {},
    "recurrent": {"gru_hidden_dim": 6},
}
"""Every shipped kind of drafter, with its knobs for a target of 32 dimensions."""
EXPORTED = {"dflash": ("hf", "vllm"), "domino": ("hf",), "dspark": ("hf",), "medusa": ("vllm",)}
"""Those that have a public layout, and which."""
LAYERED = ("dflash", "domino", "dspark")
"""Those that have draft layers."""
every_backbone = pytest.mark.parametrize("name", list(KNOBS))
every_exported = pytest.mark.parametrize("name", EXPORTED)
every_layered = pytest.mark.parametrize("name", LAYERED)


@pytest.fixture
def tokens(target: Target) -> Tensor:
    return sequences(target.chat.vocab)


@pytest.fixture
def of(backbone: BackboneConfig) -> Callable[..., BackboneConfig]:
    def make(name: str, **changes: Any) -> BackboneConfig:
        own: dict[str, Any] = {"kind": name, "knobs": KNOBS[name], "title": name}
        return replace(backbone, name=name, **(own | changes))

    return make


@pytest.fixture
def target_of(target: Target, make_target: Callable[..., Target]) -> Callable[[str], Target]:
    """The target with the taps that a kind of drafter can be exported with."""
    return lambda name: make_target(taps="last") if name == "medusa" else target


@pytest.fixture
def exported(
    tmp_path: Path, target_of: Callable[[str], Target], of: Callable[..., BackboneConfig]
) -> Callable[..., tuple[Path, DFlash]]:
    """A drafter saved as a run's and written for others: the folder, and the drafter itself."""

    def make(
        name: str = "dflash", layout: str | None = None, dtype: str = "fp32", **changes: Any
    ) -> tuple[Path, DFlash]:
        target, layout = target_of(name), layout or EXPORTED[name][0]
        made = checkpoint.create(target, of(name, **changes))
        made.initialise(5)
        checkpoint.save(made, target, tmp_path / name / "drafter", run="a")
        out = tmp_path / f"{name}-{layout}-{dtype}"
        more: dict[str, Any] = {"verifier": "ORG/NAME", "head": formats.own_head(target)}
        formats.write(tmp_path / name / "drafter", out, layout=layout, dtype=dtype, **more)
        return out, made.eval()

    return make
