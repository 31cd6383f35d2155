"""Tables are pure functions of records: means over seeds and benchmarks, dashes, the paper beside, no mixing of profiles."""

import csv
import io
from typing import Any

import pytest

from specauf_cli import compose
from specauf_cli.records import BenchmarkResult, RunRecord
from specauf_cli.reporting import tables
from specauf_cli.schema import Experiment, InputError, Trace

EXPERIMENT = compose.experiment("table2")


def benchmark(column: str, accepted: list[list[int]], temperature: float = 0.0) -> BenchmarkResult:
    traces = tuple(Trace(f"{column}-{i}", 0, tuple(a), 15, 1 + sum(a) + len(a), True) for i, a in enumerate(accepted))
    audit = {"requests": len(traces), "identical": len(traces), "same_rounds": len(traces), "first_difference": None}
    return BenchmarkResult(
        column, column.upper(), column, temperature, "sha", len(traces), "offline", {}, audit, traces
    )


def record(objective: str, seed: int, accepted: int, *, columns: tuple[str, ...] = (), **changes: Any) -> RunRecord:
    names = columns or tuple(EXPERIMENT.columns)
    values: dict[str, Any] = {
        "run": f"dflash-{objective}-s{seed}", "profile": "laptop", "backbone": "dflash", "objective": objective,
        "title": objective, "seed": seed, "command": "", "config": {
            "profile": {"name": "laptop", "text": "A laptop."}, "evaluation": {"precision": "fp32"}, "benchmark": {},
        },
        "code": {}, "environment": {}, "inputs": {}, "target": {"title": "tiny"}, "training": {},
        "heldout": {"valid": [10, 10], "correct": [5, 1 + seed]},
        "benchmarks": tuple(benchmark(c, [[accepted] * 4, [accepted] * 2]) for c in names), "cost": {}, "written": "2026",
    }  # fmt: skip
    return RunRecord(**{**values, **changes})


def ours(lines: list[tables.Line], method: str) -> tables.Line:
    return next(x for x in lines if x.method == method and x.source == "ours")


def test_cells_are_tau_and_means_over_seeds() -> None:
    found = ours(tables.lines(EXPERIMENT, [record("auf", 0, 1), record("auf", 1, 3)]), "AUF")
    one, three = (9 / 4 + 5 / 2) / 2, (17 / 4 + 9 / 2) / 2
    assert found.values == pytest.approx([(one + three) / 2] * 7)
    assert found.accuracy == pytest.approx((6 / 20 + 7 / 20) / 2)


def test_missing_benchmark_is_a_dash_and_so_is_the_average() -> None:
    found = ours(tables.lines(EXPERIMENT, [record("auf", 0, 1, columns=("gsm8k",))]), "AUF")
    assert found.values[0] is not None
    assert found.values[1:] == (None,) * 6
    text = tables.markdown(EXPERIMENT, [record("auf", 0, 1, columns=("gsm8k",))])
    assert "| AUF | ours | **2.38** | – | – | – | – | – | – |" in text


def test_paper_stands_beside_and_full_ce_has_none() -> None:
    text = tables.markdown(EXPERIMENT, [record("full_ce", 0, 1), record("decay", 0, 1)])
    rows = [line for line in text.splitlines() if line.startswith("|  |  | paper")]
    assert rows[0] == "|  |  | paper | – | – | – | – | – | – | – | – |"
    assert "| paper | 2.29 | 2.39 | 2.86 | 2.85 | 2.03 | 2.01 | 2.40 |" in rows[1]


def test_best_of_a_column_is_bold() -> None:
    text = tables.markdown(EXPERIMENT, [record("decay", 0, 1), record("auf", 0, 2)])
    assert "| 0 | AUF | ours | **3.38** |" in text
    assert "| 0 | decay | ours | 2.38 |" in text


def test_profiles_never_mix() -> None:
    with pytest.raises(InputError, match="several profiles"):
        tables.lines(EXPERIMENT, [record("auf", 0, 1), record("decay", 0, 1, profile="h200")])


def test_newest_record_of_a_run_wins_and_order_does_not_matter() -> None:
    old, new = record("auf", 0, 1, written="2026-01"), record("auf", 0, 5, written="2026-02")
    assert tables.markdown(EXPERIMENT, [old, new]) == tables.markdown(EXPERIMENT, [new, old])
    assert ours(tables.lines(EXPERIMENT, [new, old]), "AUF").values[0] == pytest.approx((25 / 4 + 13 / 2) / 2)


def test_other_backbones_and_objectives_stay_out() -> None:
    stray = record("auf", 0, 9, backbone="domino", run="x")
    assert ours(tables.lines(EXPERIMENT, [stray]), "AUF").values == (None,) * 7


def test_csv_holds_the_unrounded_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(EXPERIMENT, [record("auf", 0, 1)]))))
    auf = next(r for r in rows if r["method"] == "AUF" and r["source"] == "ours")
    assert float(auf["gsm8k"]) == pytest.approx(2.375)
    assert next(r for r in rows if r["method"] == "full-CE" and r["source"] == "paper")["gsm8k"] == ""


def test_offline_benchmarks_are_never_shown_as_the_real_ones() -> None:
    text = tables.markdown(EXPERIMENT, [record("auf", 0, 1)])
    assert "*ours measured on*" in text
    assert "*MATH500*" in text


def test_empty_table_says_so() -> None:
    assert "No run of this table is finished yet" in tables.markdown(EXPERIMENT, [])
    assert isinstance(EXPERIMENT, Experiment)
