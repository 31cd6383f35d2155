"""The table of families in docs/targets.md: in step with its records, and right about what is equal."""

import json
from pathlib import Path

import pytest

from benchmarks import families, plan
from benchmarks.families import FAMILIES
from benchmarks.family_table import PAGE, from_records, table
from specauf_cli.reporting.marks import fill

ROW = {
    "exact": {
        "0": {"requests": 280, "outputs": 280, "rounds": 280},
        "1": {"requests": 280, "outputs": 280, "rounds": 279},
    },
    "doctor": {"ok": 17, "warn": 1},
    "imported": {"hf": True, "vllm": False},
}


def test_the_page_is_in_step_with_the_records() -> None:
    text = PAGE.read_text("utf-8")
    assert fill(text, {"families": from_records()}, PAGE) == text, "python -m benchmarks.family_table writes it"


def test_a_row_shows_what_is_not_equal_and_a_dash_what_was_not_measured() -> None:
    lines = table({FAMILIES[0]: ROW}, (), {FAMILIES[0]: {"ratio": 1.1}})
    first, second = ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:4])
    assert first == [
        "`tiny_llama`",
        "280 of 280",
        "280 outputs, 279 rounds of 280",
        "17 ok, 1 warn",
        "1 of 2 equal",
        "1.10",
        "–",
        "–",
    ]
    assert second == ["`tiny_mistral`", *["–"] * 7]


def test_every_family_is_a_target_and_is_planned() -> None:
    for family in FAMILIES:
        assert Path(f"conf/target/{family}.yaml").is_file()
        assert f"target={family}" in plan.CELLS[family]


@pytest.mark.slow
def test_a_family_is_measured_whole(tmp_path: Path) -> None:
    few = ["target.pretrain.steps=4", "trainer.steps=4", "trainer.snapshot_every=null", "evaluation.prompts=1"]
    found = families.cell("tiny_neox", str(tmp_path), few)
    for counts in found["exact"].values():
        assert counts["outputs"] == counts["rounds"] == counts["requests"] > 0
    assert found["imported"] == {"hf": True, "vllm": True}
    assert found["doctor"] == {"ok": 18}
    json.dumps(found)
