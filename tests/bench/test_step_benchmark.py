"""Every cell of the benchmark of a step runs: they call the heads and the losses by hand."""

from __future__ import annotations

import pytest

from benchmarks import step


@pytest.mark.parametrize(("objective", "head"), step.CELLS)
def test_a_cell_is_measured(objective: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "SEQUENCES", 1)
    monkeypatch.setattr(step, "ANCHORS", 2)
    found = step.cell(objective, head, 300, 1, "fp32")
    assert found["seconds"] > 0
    assert found.keys() == {"seconds", "without head", "memory"}
