"""The referee's comparisons: what a server answered and counted in, a verdict out. Pure functions, no server.

Counts are compared along the server's own answer. Drafts are greedy, so along given tokens every round is known: A is
the length of the longest prefix of the draft that equals the tokens that follow, at T = 0 and, since a greedy draft is
accepted with its target probability, at T > 0 too. Only past the end of an answer the target's tokens may be unknown:
the last round is then ``open``.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specauf_cli.engines import counts
from specauf_cli.engines.answers import Answer
from specauf_cli.evaluation import statistics, tau
from specauf_cli.store.referee import (
    LARGEST_Z,
    Average,
    Difference,
    Judged,
    JudgedRequest,
    Pair,
    Sampling,
    Verdict,
)
from specauf_cli.types import Trace

ROUNDING: dict[Literal["fp32", "bf16"], float] = {"fp32": 1e-4, "bf16": 2**-5}
"""Largest gap between two logits, as a share of the largest absolute logit, that rounding alone explains.

fp32 keeps 24 bits: different kernels and batches agree to about 1e-5 of the largest logit after some tens of layers.
bf16 keeps 8 bits (a relative spacing of 2**-8), of which sums over layers lose some: 2**-5.
"""

OWN_DEFINITION = {"sglang": "engine", "vllm": "pooled"}
"""The definition of tau of this project that each engine's own one is."""


@dataclass(frozen=True)
class Followed:
    """The rounds of a drafter along one answer. ``accepted`` and ``drafted`` tokens per round; ``open``: the last round
    agreed with every token that is known, and may have accepted more. ``last``: tokens of the answer from the last
    round."""

    accepted: tuple[int, ...]
    drafted: tuple[int, ...]
    open: bool
    last: int

    @property
    def counted(self) -> tuple[int, ...]:
        """Accepted tokens of the rounds that engines count: those that drafted something."""
        return tuple(a for a, d in zip(self.accepted, self.drafted, strict=True) if d)


def followed(trace: Trace, drafted: Sequence[int], known: int) -> Followed:
    """The rounds of ``trace``, a replay along an answer of which ``known`` tokens are known (the rest was filled up).

    ``drafted``: draft tokens of every round.
    """
    emitted, accepted, is_open, last = 1, list[int](), False, 0
    for count, width in zip(trace.accepted, drafted, strict=True):
        agreed = min(count, known - emitted)
        is_open = agreed == known - emitted and agreed < width
        last = min(agreed + 1, trace.tokens - emitted)
        accepted.append(agreed)
        emitted += count + 1
    return Followed(tuple(accepted), tuple(drafted), is_open, last)


def same_counts(ours: Followed, answer: Answer, *, cuts: bool) -> bool | None:
    """Whether a server's counts of one answer are those of ``ours``; None where it gives none.

    ``cuts``: the engine may count of the last round only what the answer kept of it (SGLang's scheduler without overlap
    does, ``dflash_info.py``: ``appended - 1``).
    """
    if answer.rounds is None:
        return None
    rounds = ours.counted
    if answer.rounds != len(rounds):
        return False
    if not rounds:
        return not answer.accepted
    last_counts = bool(ours.drafted[-1])
    open_ = ours.open and last_counts

    def possible(count: int) -> bool:
        if cuts and last_counts and count == max(0, ours.last - 1):
            return True
        return count >= rounds[-1] if open_ else count == rounds[-1]

    if answer.steps is not None:
        return answer.steps[:-1] == rounds[:-1] and possible(answer.steps[-1])
    if answer.histogram is not None:
        rest = Counter({k: n for k, n in enumerate(answer.histogram) if n})
        rest.subtract(Counter(rounds[:-1]))
        left = {k: n for k, n in rest.items() if n}
        return list(left.values()) == [1] and possible(next(iter(left)))
    if answer.accepted is not None:
        return possible(answer.accepted - sum(rounds[:-1]))
    return True


def same_group(ours: Sequence[Followed], drafts: int, accepted: int) -> bool:
    """Whether the counts of several answers together are the sums of ``ours``."""
    rounds = [f.counted for f in ours]
    least = sum(map(sum, rounds))
    return drafts == sum(map(len, rounds)) and (accepted == least or (accepted > least and any(f.open for f in ours)))


def tie(gap: float | None, scale: float | None) -> Literal["fp32", "bf16"] | None:
    """The finest precision in whose rounding two logits ``gap`` apart are equal, None if in neither.

    ``scale``: the largest absolute logit.
    """
    if gap is None or scale is None:
        return None
    return next((name for name, share in ROUNDING.items() if gap <= share * scale), None)


def within(gap: float | None, scale: float | None, precision: str) -> bool:
    """Whether rounding in ``precision`` explains a gap."""
    found = tie(gap, scale)
    return found == "fp32" or (found is not None and precision == "bf16")


def verdict(
    requests: Sequence[JudgedRequest],
    groups: Sequence[bool | None],
    *,
    precision: str,
    sampling: Sampling | None,
    difference: Difference | None,
) -> Verdict:
    """The verdict on one benchmark at one temperature; ``precision`` is that of the server.

    At T > 0 no answer is compared: counts decide, and whether the answers can be the target's own draws; where the
    server counts no single request, the interval of the difference decides.
    """
    counted = [x for x in (*(r.same_counts for r in requests), *groups) if x is not None]
    answers = [r for r in requests if r.same_answer is False]
    if sampling is not None and abs(sampling.z) > LARGEST_Z:
        return "differs"
    if not counted and not any(r.same_answer is not None for r in requests):
        return "differs" if difference is not None and difference.separable else "equal"
    if all(counted) and not answers:
        return "equal"
    ties = all(within(r.gap, r.scale, precision) for r in answers)
    # In bf16 a draft's logits tie as the target's do, so single counts differ too; on average they must not.
    close = all(counted) or (precision == "bf16" and difference is not None and not difference.separable)
    return "rounding" if ties and close else "differs"


def taus(requests: Sequence[JudgedRequest], backend: str, *, pooled_only: bool) -> tuple[Pair, ...]:
    """tau of the server and of the replay, by the engine's definition and by ours, requests counted one by one.

    ``pooled_only``: rounds without a draft are not counted, so completion tokens / rounds means nothing.
    """
    names = ["pooled"] if pooled_only else list(dict.fromkeys([OWN_DEFINITION[backend], "engine", "pooled"]))
    return tuple(Pair(n, _ratio(server_terms(requests, n)), _ratio(replayed_terms(requests, n))) for n in names)


def server_terms(requests: Sequence[JudgedRequest], definition: str) -> dict[str, tuple[float, float]]:
    """Numerator and denominator of the server's tau per prompt, by ``engine`` or ``pooled``."""
    sums: dict[str, tuple[float, float]] = {}
    engine = next(name for name, own in OWN_DEFINITION.items() if own == definition)
    for r in requests:
        if r.rounds is None or (definition == "pooled" and r.accepted is None):
            continue
        row = Answer(None, "", r.tokens, False, r.rounds, r.accepted, None)
        top, bottom = counts.terms(engine, row)
        if bottom:
            x, y = sums.get(r.prompt_id, (0.0, 0.0))
            sums[r.prompt_id] = (x + top, y + bottom)
    return sums


def replayed_terms(requests: Sequence[JudgedRequest], definition: str) -> dict[str, tuple[float, float]]:
    """The same of the replay along the target's own answers."""
    traces = [
        Trace(r.prompt_id, r.turn, r.replayed, max(r.replayed, default=0), r.replayed_tokens, True)
        for r in requests
        if r.replayed is not None and r.replayed_tokens is not None
    ]
    return tau.terms(traces, definition)


def _ratio(terms: Mapping[str, tuple[float, float]]) -> float | None:
    bottom = sum(b for _, b in terms.values())
    return sum(a for a, _ in terms.values()) / bottom if bottom else None


def difference(
    benchmarks: Mapping[str, Sequence[JudgedRequest]], definition: str, *, seed: int = 0
) -> Difference | None:
    """Mean over ``benchmarks`` (requests by name) of the server's tau minus the replay's, paired by prompt; None where
    single prompts were not counted."""
    theirs, ours = {}, {}
    for name, requests in benchmarks.items():
        pairs = server_terms(requests, definition), replayed_terms(requests, definition)
        if not set(pairs[0]) & set(pairs[1]):
            return None
        theirs[name], ours[name] = (statistics.from_terms({0: terms}) for terms in pairs)
    found = statistics.average_difference(theirs, ours, seed=seed)
    finite = math.isfinite(found.low)
    return Difference(
        definition, found.value, found.low if finite else None, found.high if finite else None, found.prompts
    )


def averages(judged: Sequence[Judged], definition: str, *, seed: int) -> tuple[Average, ...]:
    """The mean over benchmarks at every temperature; none where there is one benchmark, or no tau."""
    found = []
    for temperature in dict.fromkeys(b.temperature for b in judged):
        chosen = [b for b in judged if b.temperature == temperature]
        if len(chosen) < 2 or not all(b.taus for b in chosen):
            continue
        names = [pair.definition for pair in chosen[0].taus]
        pairs = [[next(p for p in b.taus if p.definition == name) for b in chosen] for name in names]
        taus_ = tuple(
            Pair(name, _mean([p.server for p in row]), _mean([p.ours for p in row]))
            for name, row in zip(names, pairs, strict=True)
        )
        together = difference({b.benchmark: b.requests for b in chosen}, definition, seed=seed)
        found.append(Average(temperature, taus_, together))
    return tuple(found)


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def worst(verdicts: Sequence[Verdict], order: Sequence[Verdict]) -> Verdict:
    """The worst of several verdicts."""
    return max(verdicts, key=order.index)
