"""Runs are told apart by the settings in which they differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.synthetic import benchmark, constant, record
from specauf_cli.config import specs
from specauf_cli.errors import InputError
from specauf_cli.reporting import summary
from specauf_cli.reporting.labels import labels
from specauf_cli.reporting.measured import select
from specauf_cli.store.layout import State
from specauf_cli.store.records import RunRecord


def config(gamma: float, steps: int = 100, final: float | None = None, **trainer: int) -> dict[str, object]:
    branches = {"base": {"credit": "decay", "gamma": gamma}, "final": {"gamma": gamma if final is None else final}}
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


GAMMAS = (1.0, 1.65, 2.5, 4.0)


def decays() -> list[RunRecord]:
    """Four decays that differ in gamma alone."""
    made = []
    for i, gamma in enumerate(GAMMAS):
        one = constant("decay", {"gsm8k": "GSM8K"}, i)
        config = {**one.config, "objective": {"name": "decay", "base": {"gamma": gamma}}, "trainer": {"steps": 10}}
        config["evaluation"] = dict.fromkeys(("precision", "max_new_tokens", "seed", "heldout_anchors"))
        made.append(replace(one, run=f"dflash-decay-tiny-laptop-s0-{i}", config=config))
    return made


def test_compared_decays_are_named_by_their_gamma() -> None:
    text = "\n".join(summary.comparison([[r] for r in decays()], "engine"))
    for gamma in GAMMAS:
        assert f"(decay, gamma {gamma}, seed 0)" in text


def test_listed_runs_of_one_name_are_told_apart_and_others_are_not() -> None:
    states = [State(r.run, "finished", 10, {"config": r.config}, []) for r in decays()]
    other = State("dflash-auf-tiny-laptop-s0-x", "finished", 10, {"config": {"objective": {"base": {}}}}, [])
    damaged = State("dflash-decay-tiny-laptop-s0-y", "damaged", 0, {}, [])
    found = summary.apart([*states, other, damaged])
    assert found == {s.name: f"(gamma {g})" for s, g in zip(states, GAMMAS, strict=True)}


def test_a_table_does_not_average_or_choose_between_runs_that_were_trained_in_two_ways() -> None:
    page = specs.load_spec("table2")
    one, two, *_ = decays()
    with pytest.raises(InputError, match=r"\(gamma 1\.0\) and .*\(gamma 1\.65\) are both decay with seed 0; keep one"):
        select(page, [one, two])
    longer = replace(two, seed=1, config={**one.config, "trainer": {"steps": 20}})
    with pytest.raises(InputError, match=r"\(trainer\.steps 10\) and .*\(trainer\.steps 20\) cannot share a row"):
        select(page, [one, longer])


def test_prompts_are_counted_as_measured_and_skipped_ones_are_named() -> None:
    left_out = {"prompt longer than the target's context": 1}
    result = replace(benchmark("gsm8k", [[1], [2]]), prompts=3, skipped=left_out)
    assert result.measured == 2
    assert summary.prompts_of(result) == "2 prompts, 1 skipped: prompt longer than the target's context"
    assert "(2 prompts, 1 skipped: " in "\n".join(summary.of_record(record("auf", [result]), "engine"))
