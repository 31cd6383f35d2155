"""The table of goals: in step with the records, and right about what is met and what was measured alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import goals
from specauf_cli.reporting.marks import fill

CODE = {"version": "1", "commit": "0123456789", "dirty": False}
ABOUT = {"date": "2026-11-27T00:00:00Z", "code": CODE, "environment": {"cpu": "a CPU", "threads": 1, "gpu": None}}
ALONE = {"before": 0.1, "after": 1.0, "others": 0.02, "alone": True}
BESIDE = {**ALONE, "others": 1.2, "alone": False}


def test_the_page_is_in_step_with_the_records() -> None:
    text = goals.PAGE.read_text("utf-8")
    assert fill(text, {"goals": goals.table(goals.FOLDER)}, goals.PAGE) == text, "python -m benchmarks.goals writes it"


def rows(tmp_path: Path, name: str, record: dict[str, Any]) -> list[list[str]]:
    """The cells of the rows that show this record."""
    (tmp_path / name).write_text(json.dumps({**ABOUT, **record}))
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in goals.table(tmp_path) if f"[{name}]" in line
    ]


def step(vocabulary: int, full: float, **more: Any) -> list[dict[str, Any]]:
    """A full head beside a pruned one that takes 1 s and 1 MiB."""
    seconds = {("auf", "full"): full, ("auf", "pruned"): 1.0, ("decay", "full"): 3.0, ("decay", "chunked"): 1.25}
    return [
        {"vocabulary": vocabulary, "objective": o, "head": h, "seconds": s, "memory": s, **more}
        for (o, h), s in seconds.items()
    ]


def test_small_vocabularies_are_shown_and_do_not_count(tmp_path: Path) -> None:
    first, second, third = rows(
        tmp_path, "step.json", {"precision": "bf16", "rows": [*step(2_000, 1.1), *step(32_000, 4.0)]}
    )
    assert first[2:6] == ["1.2 from V = 32,000 on", "1.10 in bf16 at V = 2,000; 4.00 at V = 32,000", "met", "not noted"]
    assert second[3:5] == ["1.25 in bf16 at V = 2,000; 1.25 at V = 32,000", "**missed**"]
    assert third[3:5] == ["0.91 in bf16 at V = 2,000; 0.25 at V = 32,000", "met"]
    assert first[6:] == ["2026-11-27", "`0123456`", "a CPU, 1 thread", "[step.json](step.json)"]


def test_a_goal_is_missed_by_one_cell(tmp_path: Path) -> None:
    first, *_ = rows(tmp_path, "step.json", {"precision": "bf16", "rows": [*step(32_000, 1.19), *step(152_000, 4.0)]})
    assert first[4] == "**missed**"


def test_a_cell_that_was_measured_beside_other_work_is_marked(tmp_path: Path) -> None:
    cells = [*step(32_000, 4.0, load=ALONE), *step(152_000, 4.0, load=BESIDE)]
    first, *_ = rows(tmp_path, "step.json", {"precision": "bf16", "rows": cells, "load": BESIDE})
    assert first[3] == "4.00 in bf16 at V = 32,000; 4.00 at V = 152,000 (beside other work)"
    assert first[5] == "**no**"
    first, *_ = rows(tmp_path, "step.json", {"precision": "bf16", "rows": step(32_000, 4.0, load=ALONE), "load": ALONE})
    assert (first[3], first[5]) == ("4.00 in bf16 at V = 32,000", "yes")


def test_peers_that_could_not_run_have_no_number(tmp_path: Path) -> None:
    cells = [
        {"vocabulary": 2048, "precision": "bf16", "ratios": {"faster peer": None}},
        {"vocabulary": 2048, "precision": "fp32", "ratios": {"faster peer": "specforge", "faster peer / ours": 1.3}},
    ]
    (row,) = rows(tmp_path, "peers.json", {"cells": cells})
    assert row[3:5] == ["1.30 in fp32 at V = 2,048 (specforge)", "met"]


def test_changes_beside_the_commit_are_named(tmp_path: Path) -> None:
    record = {
        "rows": {"a": {"ratio": 1.5, "peak grew by": 2.0, "planned memory": 4.0}},
        "code": {**CODE, "dirty": True},
    }
    seconds, memory = rows(tmp_path, "plan.json", record)
    assert seconds[3:5] == ["1.50 a", "**missed**"]
    assert memory[2:5] == ["none", "2.0 a", "–"]
    assert seconds[7] == "`0123456` with changes"


def test_parts_of_a_gpu_are_rows_of_their_own(tmp_path: Path) -> None:
    about = {**ABOUT, "environment": {**ABOUT["environment"], "gpu": "NVIDIA H200"}, "load": ALONE}
    parts = {
        "tests": {**about, "status": "failed", "passed": 6, "failed": ["x"], "skipped": []},
        "steps": {
            **about,
            "status": "done",
            "rows": {"wide": {"share of peak": 0.46, "load": ALONE}, "narrow": {"error": "out of memory"}},
        },
        "study": {**about, "status": "skipped", "why": "no conversations"},
    }
    found = rows(tmp_path, "gpu.json", {"parts": parts})
    assert [row[3:5] for row in found] == [["6 of 7 passed", "**missed**"], ["46 % wide; failed narrow", "**missed**"]]
    assert {row[8] for row in found} == {"NVIDIA H200"}
    assert sum("not measured" in line for line in goals.table(tmp_path)) == len(goals.GOALS) - 2
