"""Made-up records of ``specauf speed``: every number in them is chosen, nothing is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specauf_cli.store.speed import PLAIN, Repetition, SpeedRecord, TimedMethod, TimedRequest, TimedRounds


def timed_request(
    method: str,
    prompt: str,
    accepted: tuple[int, ...],
    *,
    draft: float = 0.0,
    verify: float = 1.0,
    rest: float = 0.0,
    outside: float = 0.0,
    tokens: int | None = None,
) -> TimedRequest:
    """One request; seconds are those of each round, ``outside`` those that belong to no round."""
    count = len(accepted)
    emitted = 1 + sum(accepted) + count if tokens is None else tokens
    decode = count * (draft + verify + rest) + outside
    parts = (0.5, count * draft, count * verify, count * rest, decode)
    return TimedRequest(method, 0, "toy", prompt, 0, emitted, accepted, *parts)


def timed_rounds(
    method: str,
    batch_size: int,
    proposals: int,
    *,
    verify: Sequence[float],
    draft: Sequence[float] | None = None,
    rest: Sequence[float] | None = None,
) -> TimedRounds:
    nothing = [0.0] * len(verify)
    return TimedRounds(
        method, batch_size, proposals, tuple(draft or nothing), tuple(verify), tuple(nothing if rest is None else rest)
    )


def speed_record(
    requests: Sequence[TimedRequest],
    *,
    rounds: Sequence[TimedRounds] = (),
    curve: Mapping[str, Any] | None = None,
    repetition: Sequence[tuple[str, int, int]] = (("toy", 0, 100),),
    **changes: Any,
) -> SpeedRecord:
    """Plain decoding, prompt lookup and a drafter called ``run``, timed as ``requests`` and ``rounds`` say."""
    values: dict[str, Any] = {
        "runs": ("run",),
        "profile": "laptop",
        "temperature": 0.0,
        "seed": 0,
        "context": 100,
        "command": "specauf speed",
        "config": {"evaluation": {"precision": "fp32", "max_new_tokens": 64}},
        "code": {"commit": "c0ffee", "dirty": False},
        "environment": {"cpu": "a CPU", "threads": 1, "device": "cpu"},
        "inputs": {},
        "target": {"title": "tiny"},
        "methods": (
            TimedMethod(PLAIN, "plain decoding", "plain", 0),
            TimedMethod("lookup", "prompt lookup", "lookup", 4, lookup=(5, 2)),
            TimedMethod("run", "DFlash AUF", "drafter", 4, curve=dict(curve or {})),
        ),
        "requests": tuple(requests),
        "rounds": tuple(rounds),
        "repetition": tuple(Repetition(name, name.upper(), a, b) for name, a, b in repetition),
        "different": {},
        "written": "2026",
    }
    return SpeedRecord(**{**values, **changes})
