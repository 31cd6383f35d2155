"""Error bars: a paired bootstrap over prompts and seeds for every ratio of sums (tau, alpha_k, accuracy).

The random factors are the prompts and the training seed, so these two are resampled, not rounds: rounds of one
conversation depend on each other. A resample r draws P prompts and S - 1 seeds with replacement, which
gives each prompt p a count w[r, p] and each seed s a share v[r, s], and the statistic is computed again:

    tau[r] = sum_s v[r, s] * (sum_p w[r, p] * numerator[s, p]) / (sum_p w[r, p] * denominator[s, p])

The 2.5 % and 97.5 % quantiles of tau[r] are the interval (percentile bootstrap: Efron & Tibshirani, An Introduction to
the Bootstrap, 1993, ch. 13; whole clusters: Davison & Hinkley, Bootstrap Methods, 1997, section 3.8). With one seed
only prompts are drawn. With more, all seeds share the same prompts, so prompts and seeds are drawn independently
(Owen, The pigeonhole bootstrap, 2007). S - 1 seeds are drawn, not S: with few seeds a full draw would understate the
variance by (S - 1) / S (Rao & Wu, Resampling inference with complex survey data, 1988).

Every method gets the same draws, so variation shared by both methods cancels in the interval of a difference (paired
comparison). Draws depend on the bootstrap's seed, the benchmark's name and the sizes only, never on the order of calls.
Benchmarks have different prompts and are drawn separately, but share the draw of seeds: a seed is one trained drafter.

Limits. With one seed the interval is about that drafter, not about training again. With few seeds it is too narrow:
simulated, a nominal 95 % interval covers 90, 93 and 94 % with two, three and five seeds if seeds vary a fifth as much
as prompts, and 77, 88 and 92 % if half as much. With 8 prompts it covers 87 %. The tests repeat these simulations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.types import Trace

RESAMPLES = 10_000
CONFIDENCE = 0.95
DETECTABLE = 1.959964 + 0.841621
"""A true difference of this many standard errors is separable in 80 % of repetitions (normal, two-sided 5 %)."""

UNDEFINED = 0.05
"""Largest share of resamples without a ratio that an interval may omit."""


Terms = dict[int, dict[str, tuple[float, float]]]
"""Numerator and denominator of a ratio by seed and prompt."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One method on one benchmark: a numerator and a denominator per seed ``s`` and prompt ``p``.

    Both are zero for a prompt without a request that has a round. Errors: InputError when a seed's denominators are
    all zero, since its ratio does not exist.
    """

    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    numerator: Float[np.ndarray, "seeds prompts"]
    denominator: Float[np.ndarray, "seeds prompts"]

    def __post_init__(self) -> None:
        assert self.numerator.shape == self.denominator.shape == (len(self.seeds), len(self.prompts))
        for seed, total in zip(self.seeds, self.denominator.sum(axis=1), strict=True):
            if not total > 0:
                raise InputError(f"seed {seed}: nothing to count in {len(self.prompts)} prompts, so there is no ratio")

    @property
    def tau(self) -> float:
        """Mean over seeds of sum of numerators / sum of denominators: tokens, or a probability (``alpha_sample``)."""
        return float((self.numerator.sum(axis=1) / self.denominator.sum(axis=1)).mean())

    def only(self, seeds: Sequence[int], prompts: Sequence[str]) -> "Sample":
        """The same with these seeds and prompts only, in this order."""
        rows, columns = [self.seeds.index(s) for s in seeds], {p: i for i, p in enumerate(self.prompts)}
        chosen = np.ix_(rows, [columns[p] for p in prompts])
        return Sample(tuple(seeds), tuple(prompts), self.numerator[chosen], self.denominator[chosen])


def sample(runs: Mapping[int, Sequence[Trace]], definition: str = "engine") -> Sample:
    """The terms of tau of a method's ``runs`` (seed -> traces of one benchmark), for the union of their prompts.

    Errors: InputError for an unknown definition, no run, or a run without a round.
    """
    return from_terms({seed: tau.terms(traces, definition) for seed, traces in runs.items()})


def alpha_sample(runs: Mapping[int, Sequence[Trace]], k: int, *, given: int | None = None) -> Sample:
    """Conditional acceptance alpha_k as a ratio of sums: rounds with A >= k over rounds with A >= k - 1, per prompt.

    ``given``: another depth than k - 1; 0 makes it P(A >= k), the share of all rounds.
    Errors: InputError when ``k`` is not in 1 .. proposals or no round of a seed accepted k - 1 tokens.
    """
    reached = k - 1 if given is None else given
    most = max((t.proposed for traces in runs.values() for t in traces), default=0)
    if not 1 <= k <= most:
        raise InputError(f"alpha_{k}: a round proposes {most} tokens, so k must be in 1 .. {most}")
    terms: Terms = {}
    for seed, traces in runs.items():
        pairs = terms[seed] = {}
        for trace in traces:
            x, y = pairs.get(trace.prompt_id, (0.0, 0.0))
            pairs[trace.prompt_id] = (x + trace.at_least(k), y + trace.at_least(reached))
    return from_terms(terms)


def common_alpha_samples(
    ours: Mapping[int, Sequence[Trace]], theirs: Mapping[int, Sequence[Trace]], k: int
) -> tuple[Sample, Sample]:
    """alpha_k of two methods on the same rounds: those that both begin at the same token, and in which both accept at
    least k - 1 draft tokens. The two samples have the same denominators.

    Both have answers of one target. Errors: InputError when no such round of a seed is left.
    """
    above: tuple[Terms, Terms] = ({}, {})
    for seed in sorted(set(ours) & set(theirs)):
        other = {(t.prompt_id, t.turn): t for t in theirs[seed]}
        for mine in ours[seed]:
            if (request := (mine.prompt_id, mine.turn)) in other:
                rounds = [pair for pair in tau.common_starts(mine, other[request]) if min(pair) >= k - 1]
                for which, terms in enumerate(above):
                    pairs = terms.setdefault(seed, {})
                    x, y = pairs.get(mine.prompt_id, (0.0, 0.0))
                    pairs[mine.prompt_id] = (x + sum(pair[which] >= k for pair in rounds), y + len(rounds))
    return from_terms(above[0]), from_terms(above[1])


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval and standard ``error``, in the value's own unit.

    ``prompts`` (all benchmarks together) and ``seeds`` are the counts it is based on; ``undefined`` resamples had no
    ratio and were omitted. With one prompt ``low``, ``high`` and ``error`` are infinite.
    """

    value: float
    low: float
    high: float
    error: float
    prompts: int
    seeds: int
    undefined: int = 0

    @property
    def half_width(self) -> float:
        """Half the length of the interval, printed after ``±``; ``value`` need not be exactly in the middle."""
        return (self.high - self.low) / 2

    @property
    def separable(self) -> bool:
        """For a difference: the interval does not contain 0."""
        return self.low > 0 or self.high < 0

    @property
    def detectable(self) -> float:
        """For a difference: the smallest true one that is found separable with 80 % power, (1.96 + 0.84) * error."""
        return DETECTABLE * self.error


class _Content(NamedTuple):
    """What the resamples of a sample depend on, to be looked up by: sizes, and numerators, then denominators, in 8-byte
    floats."""

    terms: bytes
    seeds: int
    prompts: int


def _content(sample: Sample) -> _Content:
    both = np.stack([sample.numerator, sample.denominator]).astype(np.float64)
    return _Content(both.tobytes(), *sample.numerator.shape)


def replicates(
    sample: Sample, benchmark: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, " resamples"]:
    """The statistic in every resample (formula at the top of this file); the same draws for every method.

    NaN marks a resample in which a drawn seed has only prompts without a round; intervals omit those, in pairs, and
    count them (``Interval.undefined``). Units: those of ``sample.tau``.
    """
    return _replicates(benchmark, _content(sample), seed, resamples)


@lru_cache(maxsize=1024)  # 80 MB; a table compares each row with several others, and a report shows the table again
def _replicates(benchmark: str, content: _Content, seed: int, resamples: int) -> Float[np.ndarray, " resamples"]:
    """``replicates`` of a sample with this content."""
    seeds, prompts = content.seeds, content.prompts
    terms = np.frombuffer(content.terms).reshape(2 * seeds, prompts)
    w = _counts(f"prompts of {benchmark}", seed, resamples, prompts, prompts).astype(np.float64)
    top, bottom = np.hsplit(w @ terms.T, 2)
    # Whether the ratio is defined is decided first and explicitly: no division by zero.
    ratio = np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)
    v = _counts("seeds", seed, resamples, seeds, max(1, seeds - 1)) / max(1, seeds - 1)
    # A seed that was not drawn (v = 0) must not spoil the resample: 0 * NaN is NaN.
    mean: Float[np.ndarray, " resamples"] = np.where(v > 0, v * ratio, 0.0).sum(axis=1)
    mean.flags.writeable = False
    return mean


def interval(sample: Sample, benchmark: str, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interval of one method's tau on one benchmark. Errors: InputError when over 5 % of resamples have no ratio."""
    return average({benchmark: sample}, seed=seed, resamples=resamples)


def difference(a: Sample, b: Sample, benchmark: str, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Paired interval of ``a.tau - b.tau`` over the seeds and prompts that both have; see ``Interval.seeds, prompts``.

    Errors: InputError when no seed or no prompt is common, or over 5 % of resamples have no ratio.
    """
    return average_difference({benchmark: a}, {benchmark: b}, seed=seed, resamples=resamples)


def average(samples: Mapping[str, Sample], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interval of the unweighted mean of tau over benchmarks (name -> sample).

    Errors: InputError when there is no benchmark, seeds differ between them, or over 5 % of resamples have no ratio.
    """
    return _summary(samples, {}, seed, resamples)


def average_difference(
    a: Mapping[str, Sample], b: Mapping[str, Sample], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Paired interval of the unweighted mean over benchmarks of ``a.tau - b.tau``, over common seeds and prompts.

    Errors: InputError when the benchmarks are not the same, or as in ``average`` and ``difference``.
    """
    if set(a) != set(b):
        raise InputError(f"only one of the two has {', '.join(sorted(set(a) ^ set(b)))}; give both the same benchmarks")
    ours, theirs = {}, {}
    for name in a:
        seeds = sorted(set(a[name].seeds) & set(b[name].seeds))
        prompts = sorted(set(a[name].prompts) & set(b[name].prompts))
        if not seeds or not prompts:
            raise InputError(f"{name}: no {'prompt' if seeds else 'seed'} in common, so there is nothing to pair")
        ours[name], theirs[name] = a[name].only(seeds, prompts), b[name].only(seeds, prompts)
    return _summary(ours, theirs, seed, resamples)


def equivalent(interval: Interval, margin: float) -> bool:
    """Whether a difference is negligible: its whole interval is within ± ``margin`` (unit of the difference).

    With a 95 % interval both one-sided tests hold at 2.5 %, stricter than the usual 5 % (Schuirmann 1987). Errors:
    InputError for a margin that is not positive.
    """
    if not margin > 0:
        raise InputError(f"margin={margin} must be positive")
    return -margin <= interval.low and interval.high <= margin


def from_terms(terms: Terms) -> Sample:
    """Terms per seed and prompt as arrays, seeds and prompts sorted. Errors: InputError when there is no run."""
    if not terms:
        raise InputError("no run to compute statistics of")
    seeds, prompts = sorted(terms), sorted({p for pairs in terms.values() for p in pairs})
    both = np.array([terms[s].get(p, (0.0, 0.0)) for s in seeds for p in prompts], dtype=np.float64)
    both = both.reshape(len(seeds), len(prompts), 2)
    return Sample(tuple(seeds), tuple(prompts), both[..., 0].copy(), both[..., 1].copy())


@lru_cache(maxsize=8)  # methods share draws, so a table asks for the same ones over and over
def _counts(key: str, seed: int, resamples: int, size: int, draws: int) -> Integer[np.ndarray, "resamples size"]:
    """How often each of ``size`` things is drawn in each resample of ``draws``; rows sum to ``draws``."""
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")  # hash() differs between processes
    drawn = np.random.default_rng([seed, name]).integers(size, size=(resamples, draws))
    drawn += size * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)
    counts = counts.astype(np.min_scalar_type(size))  # they are kept: a byte or two each instead of eight
    counts.flags.writeable = False
    return counts


def _summary(samples: Mapping[str, Sample], minus: Mapping[str, Sample], seed: int, resamples: int) -> Interval:
    """Interval of the mean over benchmarks of tau, less that of ``minus`` (aligned with ``samples``, or empty)."""
    names = sorted(samples)  # sorted: floating-point sums must not depend on the caller's order
    if not names:
        raise InputError("no benchmark to average over")
    seeds = samples[names[0]].seeds
    for name in names:
        if samples[name].seeds != seeds:
            raise InputError(f"seeds {seeds} of {names[0]}, but {samples[name].seeds} of {name}: no average over these")
    sizes = [len(samples[name].prompts) for name in names]
    value = float(np.mean([samples[n].tau - (minus[n].tau if minus else 0.0) for n in names]))
    if min(sizes) == 1:
        return Interval(value, -np.inf, np.inf, np.inf, sum(sizes), len(seeds))
    parts = tuple((n, _content(samples[n]), _content(minus[n]) if minus else None) for n in names)
    low, high, error, undefined = _spread(parts, seed, resamples)
    return Interval(value, low, high, error, sum(sizes), len(seeds), undefined)


@lru_cache(maxsize=16_384)  # pages, claims and the report ask for the same intervals again
def _spread(
    parts: tuple[tuple[str, _Content, _Content | None], ...], seed: int, resamples: int
) -> tuple[float, float, float, int]:
    """Limits of the interval of the mean over benchmarks, its standard error, and the resamples without a ratio.

    ``parts``: name, what is averaged, and what is taken from it (or None). Errors: InputError as in ``average``.
    """
    resampled = np.zeros(resamples)
    for name, ours, theirs in parts:
        resampled += _replicates(name, ours, seed, resamples) / len(parts)
        if theirs is not None:
            resampled -= _replicates(name, theirs, seed, resamples) / len(parts)
    defined = resampled[~np.isnan(resampled)]
    undefined = resamples - len(defined)
    if undefined > UNDEFINED * resamples:
        names = ", ".join(name for name, _, _ in parts)
        raise InputError(f"{names}: {undefined} of {resamples} resamples have no ratio; too few prompts count")
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high), float(defined.std(ddof=1)), undefined
