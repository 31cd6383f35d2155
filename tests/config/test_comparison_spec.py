"""Pages of kind ``comparison``: what the shipped ones train, how rows become overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from specauf_cli.config import compose, groups, specs
from specauf_cli.config.specs import ComparisonSpec, VariantRow
from specauf_cli.errors import InputError


def shipped(name: str) -> ComparisonSpec:
    page = specs.load_spec(name)
    assert isinstance(page, ComparisonSpec)
    return page


def test_objectives_has_every_objective_for_dflash_that_is_no_control() -> None:
    named = {row.objective for row in shipped("objectives").rows}
    controls = {"breakerless_auf", "floor_auf", "shuffled_auf", "static_auf", "tail", "warm_auf"}
    fitting = {o for o in groups.groups()["objective"] if "dflash" in specs.objective_yaml(o)["backbones"]}
    assert named == fitting - controls


def test_controls_trains_the_claims_rows_under_every_condition_and_the_rest_once() -> None:
    page = shipped("controls")
    everywhere = ["decay_1", "decay_1_65", "decay_2_5", "decay_4", "decay", "decay_14"]
    assert page.gammas == dict(zip(everywhere, [1, 1.65, 2.5, 4, 7, 14], strict=True))
    everywhere += ["auf", "shuffled_auf", "static_auf"]
    rows = {c.name: [row.recorded_as for row in page.rows_under(c)] for c in page.conditions}
    assert rows["b8"] == rows["b4"] == rows["b16_x4"] == everywhere
    assert rows["b16"] == [row.recorded_as for row in page.rows]


def test_pages_share_the_names_of_the_same_variants() -> None:
    """A run that two pages ask for is trained once."""
    overrides = [
        {row.recorded_as: (row.objective, row.overrides) for row in shipped(name).rows}
        for name in ("objectives", "controls")
    ]
    both = set(overrides[0]) & set(overrides[1])
    assert both == {"decay", "decay_2_5", "decay_1_65", "auf"}
    assert all(overrides[0][name] == overrides[1][name] for name in both)


def test_a_row_with_a_name_is_recorded_under_it() -> None:
    row = VariantRow("decay", 'decay, gamma "1.65" \\', name="decay_1_65", settings=("objective.base.gamma=1.65",))
    config = compose.compose(["profile=smoke", *row.overrides, "objective=decay"])
    assert config.objective.name == row.recorded_as == "decay_1_65"
    assert config.objective.title == row.title
    assert config.objective.base[0].knobs == {"gamma": 1.65}
    plain = VariantRow("decay", "decay, gamma 7")
    assert plain.recorded_as == "decay"
    assert plain.overrides == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("name: decay_4,", "name: decay_14,", "objective 'decay_14' has two rows; give each a name of its own"),
        ("name: decay_4,", "name: auf,", "objective 'auf' has two rows"),
        ("name: decay_4,", "name: chain,", "row 'chain': that is the name of another objective than 'decay'"),
        ("name: decay_4,", "name: 4_decay,", r"rows\[3\]\.name='4_decay'"),
        ("objective: tail,", "objective: tale,", "objective 'tale' is none of .* Did you mean 'tail'"),
        ("title: tail,", "titel: tail,", "unknown setting .*titel"),
        (
            "tail, group: support, conditions: [b16]",
            "tail, conditions: [b61]",
            "row 'tail': condition 'b61' is none of",
        ),
        ("objective.base.gamma=4]", "objective.name=x]", "row 'decay_4': settings 'objective.name=x': write name: be"),
        (
            "objective.base.gamma=4]",
            "seed=4]",
            r"row 'decay_4': settings 'seed=4': a row changes settings objective\.\*",
        ),
        ("objective.base.gamma=4]", "objective=auf]", "settings 'objective=auf': a row changes settings"),
        ("objective.base.gamma=4]", "evaluation.seed=1]", "settings 'evaluation.seed=1': a row changes settings"),
        ("trainer.snapshot_every=null]", "runs=x]", "settings 'runs=x': the page's rows, --seeds and the command line"),
        ("budget: 4}", "gamma: 4}", "condition 'b16_x4': gamma is that of the rows here"),
        ("{name: b4,", "{name: b8,", "condition 'b8' is there twice"),
        ("baseline: decay ", "baseline: tail ", "condition 'b8': the baseline 'tail' is not trained under it"),
        ("claims: [b16_x4, b16]", "claims: [b32]", "condition of claims 'b32' is none of b16, b8, b4, b16_x4"),
        ("{objective: static_auf,", "{objective: chain,", "row that a claim needs, 'static_auf' is none of"),
        ("kind: comparison", "kind: comparson", "kind 'comparson' is none of .* Did you mean 'comparison'"),
    ],
)
def test_a_page_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = (groups.folder("experiments") / "controls.yaml").read_text()
    assert old in text
    path = tmp_path / "controls.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=problem) as caught:
        specs.load_spec(str(path))
    assert "\n" not in str(caught.value)


def test_claims_need_several_values_of_gamma(tmp_path: Path) -> None:
    text = (groups.folder("experiments") / "controls.yaml").read_text()
    path = tmp_path / "controls.yaml"
    path.write_text("".join(x for x in text.splitlines(keepends=True) if "name: decay_" not in x))
    with pytest.raises(InputError, match="claims need rows of decay with at least two values of gamma"):
        specs.load_spec(str(path))
