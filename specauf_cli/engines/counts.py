"""tau from what a server counted, by that server's own definition.

    sglang   mean over requests of completion tokens / rounds           (spec_verify_ct)
    vllm     1 + accepted / drafts, all requests together               (its counters, past the end of turn)

Here a benchmark is that of a server's record: ``requests`` are rows of ``COLUMNS``, ``waves`` (counters only) hold
prompt ids, drafts, draft tokens, accepted tokens and accepted tokens per slot of one wave each.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from specauf_cli.engines.answers import Answer

DEFINITIONS = {
    "sglang": "sglang: completion tokens / spec_verify_ct per request, mean over requests; cut at the end, prefill "
    "token counted",
    "vllm": "vllm: 1 + accepted / drafts over all requests together; rounds past the end counted whole",
}
COLUMNS = ["prompt id", "turn", "prompt tokens", "completion tokens", "ended", "rounds", "accepted", "histogram"]
"""Of a request's row in a record."""


def terms(definition: str, row: Answer) -> tuple[float, float]:
    """Numerator and denominator of tau of one request by a server's definition; (0, 0) without a round."""
    if not row.rounds:
        return 0.0, 0.0
    if definition == "sglang":
        return row.completion / row.rounds, 1.0
    return float(row.rounds + (row.accepted or 0)), float(row.rounds)


def tau_terms(definition: str, measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of tau per prompt of a record's benchmark, turns added up (a conversation is one
    cluster).

    Where only waves were counted each wave is one entry: its sums are exact, but it says nothing of single prompts.
    """
    rows = [
        (w[0][0] if len(w[0]) == 1 else f"wave {i}", float(w[1] + w[3]), float(w[1]))
        for i, w in enumerate(measured["waves"])
    ]
    for prompt_id, _, _, completion, ended, rounds, accepted, _ in measured["requests"]:
        if rounds is not None:
            rows.append((prompt_id, *terms(definition, Answer(None, "", completion, ended, rounds, accepted, None))))
    sums: dict[str, tuple[float, float]] = {}
    for name, numerator, denominator in rows:
        top, bottom = sums.get(name, (0.0, 0.0))
        if denominator:
            sums[name] = (top + numerator, bottom + denominator)
    return sums


def by_prompt(measured: Mapping[str, Any]) -> bool:
    """Whether every prompt was counted by itself, so that an interval over prompts exists."""
    return all(len(w[0]) == 1 for w in measured["waves"])


def histogram(measured: Mapping[str, Any]) -> list[int]:
    """Rounds with 0, 1, ... accepted draft tokens, where the server gives them; empty where a request has none."""
    rows = [r[7] for r in measured["requests"] if r[5]]
    for _, drafts, _, _, per_slot in measured["waves"]:
        rows.append([a - b for a, b in pairwise([drafts, *per_slot, 0])])
    if not rows or any(h is None for h in rows):
        return []
    return [sum(h[k] for h in rows if k < len(h)) for k in range(max(map(len, rows)))]
