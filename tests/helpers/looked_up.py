"""Made-up records of prompt lookup: every number in them is chosen, nothing is decoded."""

from __future__ import annotations

from typing import Any

from helpers.synthetic import benchmark
from specauf_cli.config import specs
from specauf_cli.config.specs import BaselinesSpec
from specauf_cli.store.lookup import LookupRecord, RepeatedGrams

SHIPPED = specs.load_spec("baselines")
assert isinstance(SHIPPED, BaselinesSpec)
COLUMNS = list(SHIPPED.columns)


def lookup_record(repeated: int = 5, **changes: Any) -> LookupRecord:
    """Prompt lookup that accepts one token in every round, on the prompts of ``helpers.synthetic.constant``."""
    values: dict[str, Any] = {
        "profile": "laptop",
        "command": "specauf table baselines",
        "config": {
            "profile": {"name": "laptop", "text": "A laptop."},
            "evaluation": {"precision": "fp32"},
            "benchmark": {},
            "lookup": {"longest": 5, "shortest": 2, "proposals": 15},
        },
        "code": {"commit": "c0ffee", "dirty": False},
        "environment": {},
        "inputs": {"target": "t"},
        "target": {"title": "tiny"},
        "benchmarks": tuple(benchmark(c, [[1] * 4, [1] * 2]) for c in COLUMNS),
        "repetition": tuple(RepeatedGrams(c, 0.0, repeated, 100) for c in COLUMNS),
        "written": "2026",
    }
    return LookupRecord(**{**values, **changes})
