"""From traces to numbers: pure functions, the same for every drafter; credits are not used here."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise, zip_longest

from specauf_cli.types import Trace, check_definition


def _engine(trace: Trace) -> tuple[float, float]:
    """Completion tokens / rounds of the request; mean over requests. What SGLang reports (completion_tokens /
    spec_verify_ct).

    Counts the prefill token, cuts at the end. Example: 8 tokens in 2 rounds and 4 in 3 -> (8/2 + 4/3) / 2 = 2.67.
    """
    return trace.tokens / len(trace.accepted), 1.0


def _pooled(trace: Trace) -> tuple[float, float]:
    """1 + accepted / rounds over all requests together, overshoot past the end counted: vLLM's counters.

    Example: accepted (4, 1) and (0, 1, 2) -> 1 + 8 / 5 = 2.60.
    """
    return float(sum(trace.accepted) + len(trace.accepted)), float(len(trace.accepted))


def _per_response(trace: Trace) -> tuple[float, float]:
    """Mean of A + 1 over the request's rounds, overshoot counted; mean over requests: z-lab's evaluation.

    Equal to it for answers of several tokens that end by themselves; of one cut at ``max_new_tokens`` z-lab counts
    another round where the round before filled it exactly.
    Example: accepted (4, 1) and (0, 1, 2) -> (3.5 + 2) / 2 = 2.75.
    """
    return 1 + sum(trace.accepted) / len(trace.accepted), 1.0


def _eos_truncated(trace: Trace) -> tuple[float, float]:
    """Tokens that rounds emitted, cut at the end, over rounds, all requests together: DeepSpec's.

    Equal to it for answers of several tokens that end by themselves; of one cut at ``max_new_tokens`` DeepSpec counts
    the last round whole, and another round where the round before filled it exactly. The prefill token comes from no
    round. Example: 8 tokens in 2 rounds and 4 in 3 -> (7 + 3) / 5 = 2.00.
    """
    return float(trace.tokens - 1), float(len(trace.accepted))


TAU: dict[str, Callable[[Trace], tuple[float, float]]] = {
    "engine": _engine,
    "pooled": _pooled,
    "per_response": _per_response,
    "eos_truncated": _eos_truncated,
}
"""Definitions of mean emitted length by name: each maps a request to (numerator, denominator), tau = sum / sum."""


def terms(traces: Sequence[Trace], definition: str = "engine") -> dict[str, tuple[float, float]]:
    """Numerator and denominator of tau per prompt, summed over its turns (a conversation is one statistical cluster).

    Requests without a round (one token long) say nothing about a drafter and are omitted. Errors: InputError for an
    unknown definition.
    """
    check_definition(definition)
    sums: dict[str, tuple[float, float]] = {}
    for trace in traces:
        if trace.accepted:
            a, b = TAU[definition](trace)
            x, y = sums.get(trace.prompt_id, (0.0, 0.0))
            sums[trace.prompt_id] = (x + a, y + b)
    return sums


def mean(traces: Sequence[Trace], definition: str = "engine") -> float:
    """Mean emitted length by one of the definitions in use; NaN when no request had a round."""
    pairs = terms(traces, definition).values()
    total = sum(b for _, b in pairs)
    return sum(a for a, _ in pairs) / total if total else float("nan")


def survival(traces: Sequence[Trace]) -> list[float]:
    """P(A >= k) for k = 0 .. proposals, over all rounds: S_0 = 1 and 1 + S_1 + S_2 + ... is the pooled tau."""
    reached = [sum(at_depth) for at_depth in zip_longest(*(t.reached for t in traces), fillvalue=0)]
    return [n / reached[0] for n in reached] if any(reached) else []


def alpha(traces: Sequence[Trace]) -> list[float]:
    """Conditional acceptance alpha_k = #{A >= k} / #{A >= k-1} for k = 1 .. proposals; NaN if no round reached depth
    k - 1."""
    alive = survival(traces)
    return [b / a if a else float("nan") for a, b in pairwise(alive)]


def common_starts(a: Trace, b: Trace) -> list[tuple[int, int]]:
    """Accepted tokens of two drafters in the rounds that both begin at the same token of one answer.

    Only these compare the two on the same task: a drafter that accepts more begins its rounds elsewhere.
    """
    ours, theirs = (
        dict(zip(accumulate((n + 1 for n in t.accepted), initial=0), t.accepted, strict=False)) for t in (a, b)
    )
    return [(accepted, theirs[start]) for start, accepted in ours.items() if start in theirs]


def histogram(traces: Sequence[Trace]) -> list[int]:
    """Number of rounds with A = 0, 1, ..., proposals."""
    counts = [0] * (max((t.proposed for t in traces), default=0) + 1)
    for trace in traces:
        for a in trace.accepted:
            counts[a] += 1
    return counts


def full_blocks(traces: Sequence[Trace]) -> float:
    """Share of rounds in which every proposal was accepted."""
    rounds = [(a, t.proposed) for t in traces for a in t.accepted]
    return sum(a == p for a, p in rounds) / len(rounds) if rounds else float("nan")


def tokens_per_pass(traces: Sequence[Trace]) -> float:
    """Completion tokens per target pass, the prefill pass of each request included."""
    passes = sum(len(t.accepted) + 1 for t in traces)
    return sum(t.tokens for t in traces) / passes if passes else float("nan")
