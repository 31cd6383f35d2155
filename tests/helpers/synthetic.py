"""Records made up for tests of tables, claims and summaries: every number in them is chosen, nothing is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specauf_cli.store.records import BenchmarkResult, RunRecord
from specauf_cli.types import Trace

Rounds = Sequence[Sequence[int]]
"""Accepted draft tokens of every round, per prompt."""


def traces(column: str, accepted: Rounds) -> tuple[Trace, ...]:
    """One single-turn request per prompt; tokens are those that were emitted, nothing is cut at the end."""
    return tuple(
        Trace(f"{column}-{i:03d}", 0, tuple(a), 15, 1 + sum(a) + len(a), ended=True) for i, a in enumerate(accepted)
    )


def benchmark(column: str, accepted: Rounds, temperature: float = 0.0, **changes: Any) -> BenchmarkResult:
    requests = traces(column, accepted)
    asked = len(requests)
    audit = {"requests": asked, "identical": asked, "same_rounds": asked, "first_difference": None}
    values: dict[str, Any] = {
        "benchmark": column,
        "title": column.upper(),
        "column": column,
        "temperature": temperature,
        "origin": "offline",
        "prompts_sha256": "sha",
        "prompts": asked,
        "skipped": {},
        "audit": audit,
        "starts": {},
        "traces": requests,
    }
    return BenchmarkResult(**{**values, **changes})


def heldout(valid: Sequence[int], correct: Sequence[int]) -> dict[str, Any]:
    """Block-mask sums of held-out conversations; all of them in one slot."""
    ids = [f"held-{i}" for i in range(len(valid))]
    return {
        "valid": [sum(valid)],
        "correct": [sum(correct)],
        "ids": ids,
        "id_valid": list(valid),
        "id_correct": list(correct),
    }


def record(
    objective: str, benchmarks: Sequence[BenchmarkResult], *, seed: int = 0, blocks: Any = None, **changes: Any
) -> RunRecord:
    """``blocks``: held-out sums (``heldout``); else two conversations with 5 and 1 + seed of 10 slots right.

    ``changes`` of ``training`` name its changed keys; of the others, the whole value.
    """
    training = {
        "last": {"step": 1},
        "seconds": 1.0,
        "peak_memory_mib": 1.0,
        "data": {"name": "offline"},
        "code": {"commit": "c0ffee", "dirty": False},
        "command": "specauf train",
    }
    values: dict[str, Any] = {
        "run": f"dflash-{objective}-s{seed}",
        "profile": "laptop",
        "backbone": "dflash",
        "objective": objective,
        "title": objective,
        "seed": seed,
        "command": "specauf eval",
        "config": {
            "profile": {"name": "laptop", "text": "A laptop."},
            "backbone": {"name": "dflash", "title": "DFlash"},
            "evaluation": {"precision": "fp32"},
            "benchmark": {},
        },
        "code": {"commit": "c0ffee", "dirty": False},
        "environment": {},
        "inputs": {},
        "target": {"title": "tiny"},
        "training": training | changes.pop("training", {}),
        "heldout": blocks or heldout([10, 10], [5, 1 + seed]),
        "benchmarks": tuple(benchmarks),
        "cost": {},
        "written": "2026",
    }
    return RunRecord(**{**values, **changes})


def constant(objective: str, columns: Mapping[str, str], accepted: int, *, seed: int = 0, **changes: Any) -> RunRecord:
    """Every round of every benchmark accepts ``accepted`` tokens: two prompts, of four and of two rounds, at T=0."""
    rounds = [[accepted] * 4, [accepted] * 2]
    return record(objective, [benchmark(c, rounds) for c in columns], seed=seed, **changes)
