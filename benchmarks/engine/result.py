"""The result of one case, from the referee's record of its server."""

from collections.abc import Sequence
from typing import Any

from benchmarks.engine.case import Case
from specauf_cli.reporting.referee import SAMPLING
from specauf_cli.store.engine import AtTemperature, EngineCase, JudgedBenchmark, Reproduced, Share
from specauf_cli.store.provenance import now
from specauf_cli.store.referee import VERDICTS, First, Pair, RefereeRecord

DEFINITION = "pooled"
"""Of tau: vLLM's own."""

BEST = 5
"""Faults that were tried, of which a result keeps those that reproduce most."""


def result(case: Case, record: RefereeRecord, *, seconds: float, **known: Any) -> EngineCase:
    """``known``: the fields of ``EngineCase`` that the record does not have."""
    best = sorted(record.tried, key=lambda t: -t.reproduced)[:BEST]
    temperatures = sorted({b.temperature for b in record.benchmarks})
    return EngineCase(
        name=case.name,
        title=case.title,
        layout=case.layout,
        target=case.target,
        runner=case.runner,
        without=case.without,
        changed=case.config,
        expected=case.verdict,
        verdict=record.verdict,
        cause=record.cause or (SAMPLING if record.only_sampling else None),
        tried=tuple(Reproduced(t.title, t.reproduced, t.examined) for t in best),
        first=in_words(record.first) if record.first else None,
        reported=record.reported,
        temperatures=tuple(at(record, t) for t in temperatures),
        environment=record.environment,
        code=record.code,
        seconds=round(seconds, 1),
        written=now(),
        **known,
    )


def at(record: RefereeRecord, temperature: float) -> AtTemperature:
    """All benchmarks at one temperature."""
    benchmarks = [b for b in record.benchmarks if b.temperature == temperature]
    average = next((a for a in record.averages if a.temperature == temperature), None)
    engine, replay = taus(average.taus if average else ())
    found = average.difference if average else None
    interval = None
    if found is not None and found.low is not None and found.high is not None:
        interval = (round(found.value, 5), round(found.low, 5), round(found.high, 5))
    zs = [abs(b.sampling.z) for b in benchmarks if b.sampling is not None]
    return AtTemperature(
        temperature=temperature,
        verdict=max((b.verdict for b in benchmarks), key=VERDICTS.index),
        answers=total([b.answers for b in benchmarks]),
        counts=total([b.counts for b in benchmarks]),
        engine=engine,
        replay=replay,
        difference=interval,
        sampling=round(max(zs), 2) if zs else None,
        benchmarks=tuple(JudgedBenchmark(b.benchmark, b.answers, b.counts, *taus(b.taus)) for b in benchmarks),
    )


def taus(pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
    """tau of the server and of the replay by vLLM's own definition; None where there is none."""
    found = next((p for p in pairs if p.definition == DEFINITION), None)
    if found is None:
        return None, None
    server, ours = (None if tau is None else round(tau, 5) for tau in (found.server, found.ours))
    return server, ours


def total(shares: Sequence[Share]) -> Share:
    """Sums of equal and of compared ones."""
    return sum(a for a, _ in shares), sum(n for _, n in shares)


def in_words(first: First) -> str:
    """The first difference: where, and which tokens or counts."""
    where = f"{first.benchmark}, T = {first.temperature:g}, {first.prompt_id}, turn {first.turn + 1}"
    where += f", token {first.position + 1}" if first.position is not None else ""
    if first.ours is None or first.theirs is None:
        return f"{where}: other counts"
    gap = f", logit gap {first.gap:.3g}" if first.gap is not None else ""
    return f"{where}: {first.theirs[1]!r} instead of {first.ours[1]!r}{gap}"
