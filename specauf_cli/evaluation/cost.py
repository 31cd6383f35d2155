"""What timed requests and rounds say: tokens a second, the cost ratio R of a round, and the speed-up tau / R.

    R = (draft + verify(P + 1) + rest of a round) / (a plain step)        seconds over seconds, both of this machine
    speed-up = tau / R                                                    tau pooled: tokens that a round emits

A round emits tau tokens and costs R plain steps; a plain step emits one. So a drafter with tau < R makes decoding
slower, however good its acceptance is. Intervals are 95 % percentile bootstraps: over prompts where whole requests were
timed, paired, so that what makes a prompt slow for all methods cancels; over repetitions where rounds were timed alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from specauf_cli.errors import InputError
from specauf_cli.evaluation.statistics import CONFIDENCE, RESAMPLES, Interval, Sample, from_terms, replicates
from specauf_cli.store.speed import PLAIN, SpeedRecord, TimedRequest, TimedRounds

QUANTILE_RESAMPLES = 2_000
"""Resamples of a quantile, which takes a sort each."""
LOOPING = 0.2
"""Share of repeated 4-grams from which on the target's answers are said to repeat themselves."""


def per_prompt(
    record: SpeedRecord, method: str, top: Callable[[TimedRequest], float], bottom: Callable[[TimedRequest], float]
) -> Sample:
    """A ratio of sums over the timed requests of a method, prompts being the clusters.

    Errors: InputError when there is nothing to divide by: no request had a round.
    """
    sums: dict[str, tuple[float, float]] = {}
    for request in record.requests:
        if request.method == method:
            prompt = f"{request.benchmark}/{request.prompt}"
            x, y = sums.get(prompt, (0.0, 0.0))
            sums[prompt] = (x + top(request), y + bottom(request))
    return from_terms({0: sums})


def emitted(request: TimedRequest) -> float:
    """Tokens that its rounds emitted, cut at the end: the first one comes from the prefill."""
    return float(request.tokens - 1)


def rounds(request: TimedRequest) -> float:
    """Verification rounds; plain steps where nothing is proposed."""
    return float(len(request.accepted))


def speed(record: SpeedRecord, method: str) -> Sample:
    """Tokens a second after the prefill."""
    return per_prompt(record, method, emitted, lambda r: r.decode)


def round_seconds(record: SpeedRecord, method: str) -> Sample:
    """Seconds of a round: draft, verification and rest. Of plain decoding: of a step."""
    return per_prompt(record, method, lambda r: r.draft + r.verify + r.rest, rounds)


def pooled_tau(record: SpeedRecord, method: str) -> Sample:
    """Tokens that a round emits, those past the end counted."""
    return per_prompt(record, method, lambda r: sum(r.accepted) + rounds(r), rounds)


def quotient(top: Sequence[Sample], bottom: Sequence[Sample]) -> Interval:
    """Product of the ``top`` over product of the ``bottom``, paired: all are resampled by the same draws of prompts."""
    samples = [*top, *bottom]
    prompts = samples[0].prompts
    assert all(s.prompts == prompts for s in samples), "methods take turns on the same prompts"
    value = _over([s.tau for s in top], [s.tau for s in bottom])
    if len(prompts) == 1:
        return Interval(float(value), -np.inf, np.inf, np.inf, 1, 1)
    drawn = _over([replicates(s, "speed") for s in top], [replicates(s, "speed") for s in bottom])
    return _interval(float(value), drawn, len(prompts))


def _over(top: Sequence[np.ndarray | float], bottom: Sequence[np.ndarray | float]) -> np.ndarray:
    result = np.ones(())
    for factor in top:
        result = result * factor
    for factor in bottom:
        result = result / factor
    return np.asarray(result)


def _interval(value: float, drawn: np.ndarray, prompts: int) -> Interval:
    defined = drawn[np.isfinite(drawn)]
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(
        value, float(low), float(high), float(defined.std(ddof=1)), prompts, 1, undefined=len(drawn) - len(defined)
    )


@dataclass(frozen=True)
class MethodSpeed:
    """One method on the timed requests, beside plain decoding. Times per token in seconds.

    ``ratio`` is R, ``parts`` its draft, verification and rest; ``predicted`` is tau / R, ``measured`` the ratio of
    tokens a second. The two differ by what a loop does outside its rounds and by tokens accepted past the end.
    """

    method: str
    speed: Interval
    median: Interval
    slowest: Interval
    tau: Interval
    ratio: Interval
    parts: dict[str, float]
    predicted: Interval
    measured: Interval

    @property
    def gap(self) -> float:
        """Measured over predicted, minus one."""
        return self.measured.value / self.predicted.value - 1


def method_speed(record: SpeedRecord, method: str) -> MethodSpeed:
    """What the timed requests say of one method."""
    plain, own = round_seconds(record, PLAIN), round_seconds(record, method)
    tau = pooled_tau(record, method)
    parts: dict[str, Callable[[TimedRequest], float]] = {
        "draft": lambda r: r.draft,
        "verify": lambda r: r.verify,
        "rest": lambda r: r.rest,
    }
    return MethodSpeed(
        method,
        quotient([speed(record, method)], []),
        token_time(record, method, 0.5),
        token_time(record, method, 0.95),
        quotient([tau], []),
        quotient([own], [plain]),
        {name: per_prompt(record, method, part, rounds).tau / plain.tau for name, part in parts.items()},
        quotient([tau, plain], [own]),
        quotient([speed(record, method)], [speed(record, PLAIN)]),
    )


def token_time(record: SpeedRecord, method: str, share: float) -> Interval:
    """A quantile over requests of the seconds per token after the prefill; requests of one token are left out."""
    by_prompt: dict[str, list[float]] = {}
    for request in record.requests:
        if request.method == method and request.tokens > 1:
            times = by_prompt.setdefault(f"{request.benchmark}/{request.prompt}", [])
            times.append(request.decode / emitted(request))
    return quantile(by_prompt, share)


def quantile(by_prompt: Mapping[str, Sequence[float]], share: float) -> Interval:
    """A quantile over all values, with an interval over prompts. Errors: InputError when there is no value."""
    if not by_prompt:
        raise InputError("no request is longer than one token, so there is no time per token")
    groups = [np.array(by_prompt[p]) for p in sorted(by_prompt)]
    value = float(np.quantile(np.concatenate(groups), share))
    if len(groups) == 1:
        return Interval(value, -np.inf, np.inf, np.inf, 1, 1)
    draws = np.random.default_rng([0, len(groups)]).integers(len(groups), size=(QUANTILE_RESAMPLES, len(groups)))
    drawn = np.array([np.quantile(np.concatenate([groups[i] for i in draw]), share) for draw in draws])
    return _interval(value, drawn, len(groups))


@dataclass(frozen=True)
class CurvePoint:
    """Rounds with at most ``proposals`` draft tokens, timed alone at one batch size; tau by an exact replay.

    ``parts``: draft, verification and rest of a round, in plain steps of that batch size.
    """

    proposals: int
    tau: Interval
    ratio: Interval
    parts: dict[str, float]
    speedup: Interval


def curve(record: SpeedRecord, method: str, batch_size: int) -> list[CurvePoint]:
    """tau(P), R(P) and tau(P) / R(P) for every number of proposals that was timed at this batch size."""
    timed = [r for r in record.rounds if r.batch_size == batch_size]
    plain = next(r for r in timed if r.method == PLAIN)
    points = []
    for each in sorted((r for r in timed if r.method == method), key=lambda r: r.proposals):
        terms = record.method(method).curve[str(each.proposals)]
        tau = from_terms({0: {p: (float(a), float(b)) for p, (a, b) in terms.items()}})
        ratio, drawn = round_ratio(each, plain)
        step = float(np.median(plain.verify))
        parts = {name: float(np.median(getattr(each, name))) / step for name in ("draft", "verify", "rest")}
        taus = replicates(tau, "speed") if len(tau.prompts) > 1 else np.full(RESAMPLES, tau.tau)
        points.append(
            CurvePoint(
                each.proposals,
                quotient([tau], []),
                ratio,
                parts,
                _interval(tau.tau / ratio.value, taus / drawn, len(tau.prompts)),
            )
        )
    return points


def best(points: Sequence[CurvePoint]) -> CurvePoint:
    """The point with the largest tau(P) / R(P)."""
    return max(points, key=lambda p: p.speedup.value)


def round_ratio(round_: TimedRounds, plain: TimedRounds) -> tuple[Interval, Float[np.ndarray, " resamples"]]:
    """R of a round timed alone: median seconds over those of a plain step, with its resamples over repetitions."""
    own = np.array(round_.draft) + np.array(round_.verify) + np.array(round_.rest)
    step = np.array(plain.verify)
    value = float(np.median(own) / np.median(step))
    draws = np.random.default_rng([1, len(own)]).integers(len(own), size=(RESAMPLES, len(own)))
    drawn = np.median(own[draws], axis=1) / np.median(step[draws], axis=1)
    return _interval(value, drawn, len(own)), drawn


def as_replayed(record: SpeedRecord, method: str) -> bool:
    """Whether the live rounds of a method are as many as those of its replay, and emitted as much, for every prompt.

    True for plain decoding, which has no replay.
    """
    known = record.method(method)
    if known.kind == "plain":
        return True
    repeats = len({r.repeat for r in record.requests})
    live: dict[str, tuple[int, int]] = {}
    for request in record.requests:
        if request.method == method:
            prompt, count = f"{request.benchmark}/{request.prompt}", len(request.accepted)
            tokens, rounds_ = live.get(prompt, (0, 0))
            live[prompt] = (tokens + sum(request.accepted) + count, rounds_ + count)
    expected = known.curve.get(str(known.proposals), {})
    return live == {prompt: (repeats * tokens, repeats * count) for prompt, (tokens, count) in expected.items()}
