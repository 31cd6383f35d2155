"""Pages of conditions: what is concluded from records, what is missing, and what a condition changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import benchmark, heldout, record
from specauf_cli.config import specs
from specauf_cli.config.specs import AblationSpec, Condition
from specauf_cli.errors import InputError
from specauf_cli.reporting import ablation
from specauf_cli.store.records import RunRecord

SHIPPED = specs.load_spec("robustness")
assert isinstance(SHIPPED, AblationSpec)
PAGE = replace(
    SHIPPED,
    columns={"gsm8k": "GSM8K", "mbpp": "MBPP"},
    conditions=(
        Condition("as_it_is", "", "as it is"),
        Condition("block_4", "B", "4", ("backbone.block_size=4",), gamma=2),
        Condition("half", "steps", "x 1/2", budget=0.5),
    ),
)


def drafter(objective: str, accepted: Mapping[str, int], correct: int) -> RunRecord:
    """Ten prompts of six rounds, all of one length, a benchmark; ten held-out conversations."""
    found = [benchmark(c, [[n] * 6 for _ in range(10)]) for c, n in accepted.items()]
    return record(objective, found, blocks=heldout([10] * 10, [correct] * 10))


def under(auf: int, decay: int, both: int, *, inverted: bool = True, mbpp: int = 0) -> list[RunRecord]:
    right = {"auf": 3, "decay": 5 if inverted else 2, "auf_decay": 3}
    taus = {"auf": auf, "decay": decay, "auf_decay": both}
    return [drafter(o, {"gsm8k": n, "mbpp": n + (mbpp if o == "auf" else 0)}, right[o]) for o, n in taus.items()]


def test_every_condition_has_its_verdicts() -> None:
    records = {"as_it_is": under(3, 2, 3), "block_4": under(1, 2, 3, inverted=False), "half": under(3, 2, 3, mbpp=-2)}
    found = {c.name: ablation.finding(PAGE, c, records[c.name]) for c in PAGE.conditions}
    first, second, third = (found[c.name] for c in PAGE.conditions)
    assert first is not None
    assert second is not None
    assert third is not None
    assert list(first.verdicts.values()) == ["holds", "holds", "holds"]
    assert first.gain["Avg"].value == pytest.approx(1)
    assert first.taus["auf"].value == pytest.approx(25 / 6)
    assert first.accuracy.value == pytest.approx(0.2)
    assert list(second.verdicts.values()) == ["does not hold", "does not hold", "does not hold"]
    assert third.gain["GSM8K"].value == pytest.approx(1)
    assert third.gain["MBPP"].value == pytest.approx(-1)
    text = ablation.markdown(PAGE, records, links="../records/laptop/robustness")
    assert (
        "**AUF > decay** on average holds under 1 of 3 conditions; does not hold: B 4; not separable: steps x 1/2."
        in text
    )
    assert "| as it is | 3.17 ± 0.00 | 4.17 ± 0.00 | 4.17 ± 0.00 | +1.00 ± 0.00 | **holds** (2 of 2) |" in text
    assert "| steps | x 1/2 | +1.00 ± 0.00 | -1.00 ± 0.00 |" in text
    assert "(../records/laptop/robustness/block_4/" in text
    assert "not measured yet" not in text.lower()
    lines = ablation.to_csv(PAGE, records).splitlines()
    assert lines[0] == "condition,what,of,value,low,high"
    assert "half,AUF - decay,MBPP,-1.0,-1.0,-1.0" in lines


def test_a_condition_with_a_hole_is_named_and_not_judged() -> None:
    short = [replace(r, benchmarks=r.benchmarks[:1]) for r in under(3, 2, 3)]
    records = {"as_it_is": under(3, 2, 3), "block_4": under(3, 2, 3)[:2], "half": short}
    text = ablation.markdown(PAGE, records)
    assert "holds under 1 of 1 conditions." in text
    assert "Not measured yet: B 4, steps x 1/2." in text
    assert "Records:" not in text
    assert "holds under 0 of 0" in ablation.markdown(PAGE, {})


def test_the_temperature_is_the_measured_one_and_one_column_is_its_own_average() -> None:
    one = replace(PAGE, columns={"gsm8k": "GSM8K"})
    warm = [replace(r, benchmarks=tuple(replace(b, temperature=1.0) for b in r.benchmarks[:1])) for r in under(3, 2, 3)]
    text = ablation.markdown(one, {"as_it_is": warm})
    assert "on the average over the benchmarks at T = 1." in text
    assert "| +1.00 ± 0.00 | **holds** (1 of 1) |" in text


def test_what_a_condition_changes() -> None:
    block, half = PAGE.conditions[1:]
    assert specs.condition_overrides(block, "auf", 400) == ["backbone.block_size=4"]
    gammas = ["objective.base.gamma=2", "objective.final.gamma=2"]
    assert specs.condition_overrides(block, "decay", 400) == ["backbone.block_size=4", *gammas]
    assert specs.condition_overrides(half, "auf", 401) == ["trainer.steps=200"]
    with pytest.raises(InputError, match=r"'half' multiplies trainer\.steps, which is null"):
        specs.condition_overrides(half, "auf", None)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name: block_8", "name: block/8", "condition 'block/8': a name is letters"),
        ("name: block_8", "name: block_4", "condition 'block_4' is there twice"),
        ("gamma: 4", "gamma: 0", r"conditions\[2\]\.gamma=0 must be above 0"),
        ("budget: 0.5", "budget: -1", r"conditions\[8\]\.budget=-1 must be above 0"),
        ("margin: 0.1", "margin: 0", r"margin=0 must be above 0"),
        ("objective: auf_decay", "objective: full_ce", "objective that a claim needs, 'auf_decay' is none of"),
        ("factor: B", "fctor: B", "unknown setting .*fctor"),
        (
            "backbone.layers=1]",
            "seed=5]",
            r"settings 'seed=5': the page's rows, --seeds and the command line choose seed",
        ),
        ("trainer.snapshot_every=null]", "backbone=domino]", "settings 'backbone=domino'"),
    ],
)
def test_a_page_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    source = Path(__file__).resolve().parents[2] / "experiments" / "robustness.yaml"
    path = tmp_path / "robustness.yaml"
    path.write_text(source.read_text().replace(old, new))
    with pytest.raises(InputError, match=problem):
        specs.load_spec(str(path))


def test_all_conditions_change_something_else() -> None:
    assert isinstance(SHIPPED, AblationSpec)
    changes: list[Any] = [(c.settings, c.budget) for c in SHIPPED.conditions]
    assert len(set(changes)) == len(changes)
    assert changes[0] == ((), None)


def test_the_seeds_of_a_page_are_said_of_each_condition_where_they_differ() -> None:
    one = {"as_it_is": under(3, 2, 3), "block_4": under(1, 2, 3)}
    text = ablation.markdown(PAGE, one)
    assert "over prompts; with one seed it speaks of these drafters, not of training again. Seeds: 0. " in text
    again = [replace(r, seed=1, run=f"{r.run}-1") for r in under(3, 2, 3)]
    text = ablation.markdown(PAGE, {**one, "as_it_is": [*one["as_it_is"], *again]})
    assert "over prompts, and seeds where there are several; with one seed" in text
    assert "Seeds: as it is: 0, 1; B 4: 0. " in text
