"""The measured acceptance of a drafter for simulators and engines that take it instead of a guess.

``speculation_profile.json`` is the schema 1.0 of NVIDIA's Model-Optimizer (``examples/specdec_bench``,
``speculation_profile.py``, pull request 2247, open in September 2026): conditional rates for Dynamo, marginal ones for
vLLM's synthetic acceptance, the histogram of tokens per round, and checks. ``SGLANG_SIMULATE_ACC_LEN`` is the mean
number of tokens per round, the target's own included, which is the pooled tau.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.store.records import RunRecord
from specauf_cli.types import Trace

SCHEMA_VERSION = "1.0"
TOLERANCE = 0.02
"""Of the schema's check that the mean follows from the rates."""


def speculation_profile(record: RunRecord, temperature: float) -> dict[str, Any]:
    """The profile of a drafter over all of its benchmarks at one temperature. Errors: InputError when there is none.

    Entry i of a rate is about draft token i + 1; keys of the histogram are tokens per round, accepted ones and the
    target's own.
    """
    results = [b for b in record.benchmarks if b.temperature == temperature]
    traces = [t for b in results for t in b.traces if t.accepted]
    if not traces:
        measured = ", ".join(f"{t:g}" for t in sorted({b.temperature for b in record.benchmarks}))
        raise InputError(f"{record.run} has no round at T = {temperature:g}; measured: T = {measured}")
    proposals = traces[0].proposed
    marginal = tau.survival(traces)[1:]
    conditional = [0.0 if a != a else a for a in tau.alpha(traces)]  # the schema writes 0 where nothing was reached
    mean = tau.mean(traces, "pooled")
    implied = 1 + sum(marginal)
    backbone = record.config["backbone"]
    return {
        "schema_version": SCHEMA_VERSION,
        "measured": True,
        "method": backbone.get("kind", record.backbone),
        "draft_checkpoint": {"id": record.run},
        "target_model": {"id": record.target.path or record.target.title, "revision": record.target.revision},
        "num_speculative_tokens": proposals,
        "block_size": backbone.get("block_size"),
        "max_supported_k": proposals,
        "verification_method": "longest_prefix",
        "conditional_accept_rates": [round(x, 6) for x in conditional],
        "marginal_accept_rates": [round(x, 6) for x in marginal],
        "mean_accept_length": round(mean, 6),
        "mean_accept_length_per_request": round(tau.mean(traces, "per_response"), 6),
        "accept_length_model": "measured_per_k",
        "accept_length_by_k": {str(proposals): round(mean, 6)},
        "acceptance_length_histogram": _histogram(traces),
        "per_category": {
            b.benchmark: {"mean_accept_length": round(tau.mean(b.traces, "pooled"), 6)}
            for b in results
            if any(t.accepted for t in b.traces)
        },
        "measurement_conditions": {
            "datasets": [b.benchmark for b in results],
            "temperature": temperature,
            "num_requests": len(traces),
            "max_new_tokens": record.config["evaluation"].get("max_new_tokens"),
            "dtype": record.config["evaluation"].get("precision"),
            "engine": "none: replayed over the target's own answers by specauf",
        },
        "validation": {
            "mean_consistency": {
                "implied_mean_accept_length": round(implied, 6),
                "reported_mean_accept_length": round(mean, 6),
                "abs_delta": round(abs(implied - mean), 6),
                "tolerance": TOLERANCE,
                "passed": abs(implied - mean) <= TOLERANCE,
            },
            "marginal_monotonicity": {"passed": True, "violations": []},  # a survival function cannot increase
        },
    }


def _histogram(traces: Sequence[Trace]) -> dict[str, int]:
    counts = Counter(a + 1 for t in traces for a in t.accepted)
    return {str(length): counts[length] for length in sorted(counts)}


def simulation_lines(profile: dict[str, Any]) -> list[str]:
    """What SGLang and vLLM are given to run at the measured acceptance, a line each."""
    rates = ",".join(f"{rate:g}" for rate in profile["marginal_accept_rates"])
    mean = f"{profile['mean_accept_length']:.3f}"
    return [
        f"SGLang: SGLANG_SIMULATE_ACC_LEN={mean} SGLANG_SIMULATE_ACC_METHOD=match-expected",
        f'vLLM: "rejection_sample_method": "synthetic", "synthetic_acceptance_rates": [{rates}]',
    ]
