"""Our own contestant in peers.py: the others' packages are not installed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from benchmarks import peers
from specauf_cli.training import drafter


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """The target and its features are given as stand-ins there, which checks of types refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("labels", ["data", "target"])
def test_our_step_runs_on_what_everyone_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: str) -> None:
    monkeypatch.setattr(drafter, "sample_anchors", drafter.sample_anchors)  # ``fix`` replaces it
    peers.prepare(tmp_path / "given", 300)
    contestant = peers.ours(peers.Given(tmp_path / "given", "fp32"), labels=labels)
    contestant.fix()
    losses = []
    for _ in range(2):
        for _, parameter in contestant.parameters():
            parameter.grad = None
        losses.append(float(contestant.step(0)))
    assert losses[0] == losses[1] > 0
    assert all(bool(torch.isfinite(p.grad).all()) for _, p in contestant.parameters() if p.grad is not None)
    assert any(float(p.grad.abs().sum()) > 0 for _, p in contestant.parameters() if p.grad is not None)
