"""The result of one case, from the referee's record of its server."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engine.case import Case
from specauf_cli.engines.verdict import replayed_terms, server_terms
from specauf_cli.evaluation.statistics import Sample, average_difference, from_terms
from specauf_cli.store.engine import AtTemperature, EngineCase, JudgedBenchmark, Reproduced, Share
from specauf_cli.store.provenance import now
from specauf_cli.store.referee import VERDICTS, First, Judged, RefereeRecord

DEFINITION = "pooled"
"""Of tau: vLLM's own."""


def result(case: Case, record: RefereeRecord, *, seconds: float, **known: Any) -> EngineCase:
    """``known``: the fields of ``EngineCase`` that the record does not have."""
    temperatures = sorted({b.temperature for b in record.benchmarks})
    return EngineCase(
        name=case.name,
        title=case.title,
        layout=case.layout,
        without=case.without,
        changed=case.config,
        expected=case.verdict,
        verdict=record.verdict,
        cause=record.cause,
        tried=tuple(Reproduced(t.title, t.reproduced, t.examined) for t in record.tried),
        first=in_words(record.first) if record.first else None,
        reported=record.reported,
        temperatures=tuple(at([b for b in record.benchmarks if b.temperature == t]) for t in temperatures),
        environment=record.environment,
        code=record.code,
        seconds=round(seconds, 1),
        written=now(),
        **known,
    )


def at(benchmarks: Sequence[Judged]) -> AtTemperature:
    """All benchmarks of one temperature."""
    theirs, ours = ({b.benchmark: terms(b.requests, DEFINITION) for b in benchmarks} for terms in TERMS)
    samples = [{n: from_terms({0: t}) for n, t in side.items() if t} for side in (theirs, ours)]
    engine, replay = (averaged(side, len(benchmarks)) for side in samples)
    difference = None
    if engine is not None and replay is not None:
        found = average_difference(*samples)
        difference = (round(found.value, 5), round(found.low, 5), round(found.high, 5))
    zs = [abs(b.sampling.z) for b in benchmarks if b.sampling is not None]
    return AtTemperature(
        temperature=benchmarks[0].temperature,
        verdict=max((b.verdict for b in benchmarks), key=VERDICTS.index),
        answers=total([b.answers for b in benchmarks]),
        counts=total([b.counts for b in benchmarks]),
        engine=engine,
        replay=replay,
        difference=difference,
        sampling=round(max(zs), 2) if zs else None,
        benchmarks=tuple(of_benchmark(b, samples) for b in benchmarks),
    )


TERMS = (server_terms, replayed_terms)


def of_benchmark(judged: Judged, samples: Sequence[Mapping[str, Sample]]) -> JudgedBenchmark:
    """One benchmark; ``samples``: of the server and of the replay."""
    engine, replay = (side[judged.benchmark].tau if judged.benchmark in side else None for side in samples)
    return JudgedBenchmark(
        judged.benchmark,
        judged.answers,
        judged.counts,
        None if engine is None else round(engine, 5),
        None if replay is None else round(replay, 5),
    )


def averaged(samples: Mapping[str, Sample], benchmarks: int) -> float | None:
    """Unweighted mean of tau; None unless every benchmark has one."""
    if len(samples) < benchmarks:
        return None
    return round(sum(s.tau for s in samples.values()) / benchmarks, 5)


def total(shares: Sequence[Share]) -> Share:
    """Sums of equal and of compared ones."""
    return sum(a for a, _ in shares), sum(n for _, n in shares)


def in_words(first: First) -> str:
    """The first difference: where, and which tokens or counts."""
    where = f"{first.benchmark}, T = {first.temperature:g}, {first.prompt_id}, turn {first.turn + 1}"
    where += f", token {first.position}" if first.position is not None else ""
    if first.ours is None or first.theirs is None:
        return f"{where}: other counts"
    gap = f", logit gap {first.gap:.3g}" if first.gap is not None else ""
    return f"{where}: {first.theirs[1]!r} instead of {first.ours[1]!r}{gap}"
