"""Runs are told apart by the settings in which they differ."""

from __future__ import annotations

from specauf_cli.reporting.labels import labels


def config(gamma: float, steps: int = 100, final: float | None = None, **trainer: int) -> dict[str, object]:
    branches = {"base": {"_target_": "decay", "gamma": gamma}, "final": {"gamma": gamma if final is None else final}}
    return {"objective": {"name": "decay", **branches}, "trainer": {"steps": steps, **trainer}, "seed": 0}


def test_a_knob_has_its_short_name_and_is_said_once() -> None:
    assert labels([config(4), config(1.65, 500)]) == ["gamma 4, trainer.steps 100", "gamma 1.65, trainer.steps 500"]
    assert labels([config(4), config(4)]) == ["", ""]
    assert labels([config(4, final=7), config(7)]) == ["gamma 4 (base), 7 (final)", "gamma 7"]


def test_many_differences_are_counted() -> None:
    assert (
        labels([config(1, 1, a=1, b=1), config(2, 2, a=2, b=2)])[0]
        == "gamma 1, trainer.steps 1, trainer.a 1, and 1 more"
    )
