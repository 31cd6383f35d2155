"""The jobs of pages of conditions: which drafters, in which order, with which settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import pytest

from specauf_cli.config import specs
from specauf_cli.config.specs import ComparisonSpec, Condition, VariantRow
from specauf_cli.errors import InputError
from specauf_cli.study.jobs import jobs_of

SHIPPED = specs.load_spec("controls")
assert isinstance(SHIPPED, ComparisonSpec)
STEEP = VariantRow("decay", "decay, gamma 1", name="decay_1", settings=("objective.base.gamma=1",))
PAGE = replace(
    SHIPPED,
    conditions=(Condition("b16", "B", "16"), Condition("longer", "steps", "x 4", budget=4)),
    rows=(STEEP, VariantRow("decay", "decay"), VariantRow("tail", "tail", conditions=("b16",))),
    claims=(),
)


def test_rows_of_a_seed_and_condition_are_next_to_each_other() -> None:
    jobs = jobs_of([PAGE], ["profile=smoke"], [0, 1], steps=24)
    passes = [(key, [j.config.objective.name for j in own]) for key, own in groupby(jobs, lambda j: (j.table, j.seed))]
    first, second = ["decay_1", "decay", "tail"], ["decay_1", "decay"]
    assert passes == [
        ((f"controls/{condition}", seed), rows)
        for seed in (0, 1)
        for condition, rows in (("b16", first), ("longer", second))
    ]
    assert len(set(jobs)) == len(jobs), "rows of one objective are different jobs"
    assert [j.config.trainer.steps for j in jobs[:5]] == [24, 24, 24, 96, 96]
    assert [j.config.resolved["objective"]["base"].get("gamma") for j in jobs[:3]] == [1, 7, None]
    assert jobs[0].objective == "decay"
    assert all(j.config.evaluation.temperatures == (0.0,) for j in jobs)


def test_only_takes_the_names_of_rows() -> None:
    jobs = jobs_of([PAGE], ["profile=smoke"], [0], steps=24, only=["decay_1"])
    assert [(j.condition, j.config.objective.title) for j in jobs] == [
        ("b16", "decay, gamma 1"),
        ("longer", "decay, gamma 1"),
    ]
    with pytest.raises(InputError, match=r"--only: 'decay_2' is no row here; valid: decay_1, decay, tail\. Did you"):
        jobs_of([PAGE], ["profile=smoke"], [0], steps=24, only=["decay_2"])


def test_conditions_may_be_chosen() -> None:
    jobs = jobs_of([PAGE], ["profile=smoke"], [0], steps=24, only=["decay_1"], conditions=["longer"])
    assert [j.condition for j in jobs] == ["longer"]
    with pytest.raises(InputError, match=r"--conditions: 'longr' is no condition here; valid: .*Did you mean 'longer'"):
        jobs_of([PAGE], ["profile=smoke"], [0], steps=24, conditions=["longr"])


def test_a_page_of_drafters_has_a_job_for_each_objective_of_each_drafter() -> None:
    page = specs.load_spec("prefix")
    jobs = jobs_of([page], ["profile=smoke"], [0], steps=24, conditions=["original"])
    assert [(j.backbone, j.objective) for j in jobs] == [
        ("dflash", "decay"),
        ("dflash", "auf"),
        ("medusa", "decay"),
        ("medusa", "auf"),
        ("recurrent", "decay"),
        ("recurrent", "auf"),
        *(("dspark", o) for o in ("decay", "f_auf", "b_auf")),
        *(("domino", o) for o in ("decay", "f_auf", "b_auf")),
    ]
    assert {j.config.backbone.proposals for j in jobs} == {15}, "all drafters propose as many tokens"
    assert {j.table for j in jobs} == {"prefix/original"}
