"""Intervals: equal to a slow reference, paired, keyed, and covering what they claim to cover."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest

from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Sample,
    alpha_sample,
    average,
    average_difference,
    common_alpha_samples,
    difference,
    equivalent,
    interval,
    replicates,
    sample,
)
from specauf_cli.types import Trace

PROPOSED = 7


def make(numerator: np.ndarray, denominator: np.ndarray | None = None, first_seed: int = 0) -> Sample:
    """A sample of arrays ``[S, P]``; without a denominator each prompt counts once."""
    seeds, prompts = numerator.shape
    names = tuple(f"p{i:04d}" for i in range(prompts))
    bottom = np.ones(numerator.shape) if denominator is None else denominator
    return Sample(tuple(range(first_seed, first_seed + seeds)), names, numerator, bottom)


def noisy(seeds: int = 3, prompts: int = 30, seed: int = 0, shift: float = 0.0) -> Sample:
    draw = np.random.default_rng(seed)
    return make(draw.uniform(1, 8, (seeds, prompts)) + shift, draw.integers(1, 4, (seeds, prompts)).astype(float))


def traces(prompts: int = 12, seed: int = 0, ease: float = 2.0, turns: int = 1) -> list[Trace]:
    draw = random.Random(seed)
    made = []
    for i in range(prompts * turns):
        accepted = tuple(min(int(draw.expovariate(1 / ease)), PROPOSED) for _ in range(draw.randint(2, 9)))
        tokens = 1 + sum(accepted) + len(accepted)
        made.append(Trace(f"p{i // turns}", i % turns, accepted, PROPOSED, tokens, True))
    return made


def drawn(key: str, seed: int, resamples: int, size: int, draws: int) -> list[list[int]]:
    """The promised draws, derived again: a generator keyed by the seed and a hash of the name."""
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    found: list[list[int]] = np.random.default_rng([seed, name]).integers(size, size=(resamples, draws)).tolist()
    return found


def slow(sample: Sample, benchmark: str, seed: int, resamples: int) -> list[float]:
    """Resamples by plain loops over what was drawn."""
    top, bottom = sample.numerator.tolist(), sample.denominator.tolist()
    prompts = drawn(f"prompts of {benchmark}", seed, resamples, len(sample.prompts), len(sample.prompts))
    seeds = drawn("seeds", seed, resamples, len(sample.seeds), max(1, len(sample.seeds) - 1))
    found = []
    for chosen, runs in zip(prompts, seeds, strict=True):
        ratios = [sum(top[s][p] for p in chosen) / sum(bottom[s][p] for p in chosen) for s in runs]
        found.append(sum(ratios) / len(ratios))
    return found


# --- what is computed ---


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_replicates_equal_a_slow_reference(seeds: int) -> None:
    one = noisy(seeds, 17)
    found = replicates(one, "gsm8k", seed=4, resamples=300)
    assert found.shape == (300,)
    assert np.abs(found - np.array(slow(one, "gsm8k", 4, 300))).max() < 1e-12


def test_intervals_equal_a_slow_reference() -> None:
    a, b = {"x": noisy(seed=1), "y": noisy(seed=2, prompts=9)}, {"x": noisy(seed=3), "y": noisy(seed=4, prompts=9)}
    slow_a, slow_b = ([np.array(slow(m[n], n, 0, 500)) for n in ("x", "y")] for m in (a, b))
    for found, expected, value in (
        (interval(a["x"], "x", resamples=500), slow_a[0], a["x"].tau),
        (difference(a["x"], b["x"], "x", resamples=500), slow_a[0] - slow_b[0], a["x"].tau - b["x"].tau),
        (average(a, resamples=500), (slow_a[0] + slow_a[1]) / 2, (a["x"].tau + a["y"].tau) / 2),
        (
            average_difference(a, b, resamples=500),
            (slow_a[0] + slow_a[1] - slow_b[0] - slow_b[1]) / 2,
            (a["x"].tau + a["y"].tau - b["x"].tau - b["y"].tau) / 2,
        ),
    ):
        low, high = np.quantile(expected, [0.025, 0.975])
        assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-12)
        assert found.error == pytest.approx(expected.std(ddof=1), abs=1e-12)
        assert found.half_width == pytest.approx((high - low) / 2, abs=1e-12)
        assert found.seeds == 3


def test_a_sample_of_runs_holds_the_terms_of_tau() -> None:
    runs = {7: traces(seed=1), 3: traces(seed=2)}
    for definition in tau.TAU:
        made = sample(runs, definition)
        assert made.seeds == (3, 7)
        assert made.prompts == tuple(sorted(f"p{i}" for i in range(12)))
        expected = (tau.mean(runs[3], definition) + tau.mean(runs[7], definition)) / 2
        assert made.tau == pytest.approx(expected, abs=1e-12)
        assert interval(made, "x").value == made.tau
    assert len(replicates(sample(runs), "x")) == RESAMPLES == 10_000


def test_a_prompt_without_rounds_in_one_seed_is_zero_there() -> None:
    made = sample({0: traces(3), 1: traces(2)}, "pooled")
    assert made.prompts == ("p0", "p1", "p2")
    assert made.denominator[1, 2] == made.numerator[1, 2] == 0
    assert made.tau == pytest.approx((tau.mean(traces(3), "pooled") + tau.mean(traces(2), "pooled")) / 2)


def test_a_conversation_of_two_turns_is_one_cluster() -> None:
    talks = sample({0: traces(prompts=10, turns=2)})
    assert talks.prompts == tuple(sorted(f"p{i}" for i in range(10)))
    assert (talks.denominator == 2).all()
    # Turns that resemble each other carry the information of one: the interval must not shrink with their number.
    once = traces(prompts=40)
    twice = [replace(t, turn=turn) for t in once for turn in (0, 1)]
    split = [replace(t, prompt_id=f"{t.prompt_id}#{t.turn}") for t in twice]
    one, clustered, apart = (interval(sample({0: made}), "x") for made in (once, twice, split))
    assert (clustered.low, clustered.high) == pytest.approx((one.low, one.high), abs=1e-12)
    assert apart.half_width < 0.8 * clustered.half_width


def test_alpha_is_a_ratio_of_sums_as_well() -> None:
    runs = {0: traces(30, seed=1), 1: traces(30, seed=2)}
    for k in range(1, 5):
        made = alpha_sample(runs, k)
        assert made.tau == pytest.approx((tau.alpha(runs[0])[k - 1] + tau.alpha(runs[1])[k - 1]) / 2, abs=1e-12)
        found = interval(made, "x")
        assert 0 <= found.low <= found.value <= found.high <= 1
        of_all = alpha_sample(runs, k, given=0).tau
        assert of_all == pytest.approx((tau.survival(runs[0])[k] + tau.survival(runs[1])[k]) / 2, abs=1e-12)
    easier = alpha_sample({0: traces(30, seed=1, ease=6.0), 1: traces(30, seed=2, ease=6.0)}, 1)
    assert difference(easier, alpha_sample(runs, 1), "x").separable


# --- pairing and keys ---


def test_alpha_on_common_rounds_has_one_denominator_and_leaves_out_other_rounds() -> None:
    def runs(*accepted: tuple[int, ...]) -> list[Trace]:
        return [Trace("p", turn, a, 7, 20, ended=True) for turn, a in enumerate(accepted)]

    ours = {0: runs((2, 0, 3), (1,)), 1: runs((5,)), 2: runs((9,))}
    theirs = {0: runs((0, 1, 4, 0), (3,)), 1: runs((0,), (7,))}
    one, other = common_alpha_samples(ours, theirs, 1)  # of seed 0: (2, 0), (0, 4), (1, 3); of seed 1: (5, 0)
    assert (one.seeds, one.prompts) == ((0, 1), ("p",))
    assert one.denominator.tolist() == other.denominator.tolist() == [[3], [1]]
    assert (one.numerator.tolist(), other.numerator.tolist()) == ([[2], [1]], [[2], [0]])
    with pytest.raises(InputError):  # no round of seed 1 in which both accept one token
        common_alpha_samples(ours, theirs, 2)
    alone = {0: traces(prompts=12)}
    for k in (1, 2, 3):
        mine, same = common_alpha_samples(alone, alone, k)
        assert mine.tau == same.tau == alpha_sample(alone, k).tau


def test_a_method_differs_from_itself_by_exactly_nothing() -> None:
    for seeds in (1, 3):
        one = {"x": noisy(seeds), "y": noisy(seeds, prompts=11)}
        for found in (difference(one["x"], one["x"], "x"), average_difference(one, one)):
            assert (found.value, found.low, found.high, found.error) == (0, 0, 0, 0)
            assert not found.separable
            assert equivalent(found, 1e-9)


def test_pairing_removes_what_prompts_have_in_common() -> None:
    draw = np.random.default_rng(0)
    prompts = draw.normal(4, 1.5, 60)
    a, b = make((prompts + 0.2 + draw.normal(0, 0.05, 60))[None]), make(prompts[None])
    paired = difference(a, b, "x")
    unpaired = np.hypot(interval(a, "x").error, interval(b, "x").error)
    assert paired.error < unpaired / 20
    assert paired.separable
    assert paired.value == pytest.approx(0.2, abs=0.03)


def test_results_do_not_depend_on_the_order_of_calls_or_benchmarks() -> None:
    a, b = {"x": noisy(seed=1), "y": noisy(seed=2)}, {"x": noisy(seed=3), "y": noisy(seed=4)}
    first = [interval(a["x"], "x"), difference(a["y"], b["y"], "y"), average(a), average_difference(a, b)]
    turned = [dict(reversed(m.items())) for m in (a, b)]
    second = [average_difference(*turned), average(turned[0]), difference(a["y"], b["y"], "y"), interval(a["x"], "x")]
    assert first == second[::-1]


def test_the_order_of_traces_and_seeds_does_not_matter() -> None:
    runs = {s: traces(seed=s) for s in range(3)}
    mixed = {s: random.Random(0).sample(runs[s], len(runs[s])) for s in (2, 0, 1)}
    assert interval(sample(runs), "x") == interval(sample(mixed), "x")


def test_benchmarks_and_bootstrap_seeds_have_draws_of_their_own_but_share_the_draw_of_seeds() -> None:
    one = noisy(1)
    assert not np.array_equal(replicates(one, "x"), replicates(one, "y"))
    assert not np.array_equal(replicates(one, "x"), replicates(one, "x", seed=1))
    assert np.corrcoef(replicates(one, "x"), replicates(one, "y"))[0, 1] < 0.05
    trained = make(np.array([[1.0] * 20, [2.0] * 20, [4.0] * 20]))  # only the seed matters
    assert np.array_equal(replicates(trained, "x"), replicates(trained, "y"))


def test_a_difference_takes_the_seeds_and_prompts_both_have() -> None:
    full = noisy(3, 30)
    part = Sample(full.seeds[1:], full.prompts[5:], full.numerator[1:, 5:] + 0.5, full.denominator[1:, 5:])
    found = difference(part, full, "x")
    assert (found.seeds, found.prompts) == (2, 25)
    assert found == difference(part, full.only(full.seeds[1:], full.prompts[5:]), "x")
    assert difference(full, part, "x").value == -found.value


# --- what the numbers mean ---


def acceptance(draw: np.random.Generator, prompts: int, factors: tuple[float, ...]) -> list[Sample]:
    """Methods on the same prompts: each has an acceptance probability, times the method's factor, for all its
    rounds."""
    ease, rounds = draw.beta(6, 3, prompts), draw.integers(3, 12, prompts)
    found = []
    for factor in factors:
        p = (ease * factor)[:, None]
        accepted = np.minimum(draw.geometric(1 - p, (prompts, 11)) - 1, PROPOSED)
        accepted = np.where(np.arange(11) < rounds[:, None], accepted + 1, 0).sum(axis=1)
        found.append(make(accepted[None].astype(float), rounds[None].astype(float)))
    return found


def true_tau(factor: float) -> float:
    """1 + sum_k E[p^k], the moments of the beta distribution."""
    moment, total = 1.0, 1.0
    for k in range(PROPOSED):
        moment *= (6 + k) / (9 + k) * factor
        total += moment
    return total


def test_intervals_cover_the_true_tau_and_the_true_difference() -> None:
    draw, own, both, count = np.random.default_rng(0), 0, 0, 400
    for i in range(count):
        a, b = acceptance(draw, 60, (1.0, 0.93))
        found = interval(a, "x", seed=i, resamples=800)
        own += found.low <= true_tau(1.0) <= found.high
        found = difference(a, b, "x", seed=i, resamples=800)
        both += found.low <= true_tau(1.0) - true_tau(0.93) <= found.high
    assert 0.90 <= own / count <= 0.98
    assert 0.90 <= both / count <= 0.98


def trained(draw: np.random.Generator, seeds: int, prompts: int, spread: float, noise: float) -> Sample:
    ease = draw.normal(4, 1, prompts)
    return make(ease + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, noise, (seeds, prompts)))


def test_with_enough_seeds_intervals_cover_training_again() -> None:
    draw, hits, count = np.random.default_rng(0), 0, 400
    for i in range(count):
        found = interval(trained(draw, 6, 50, 0.2, 0.3), "x", seed=i, resamples=800)
        hits += found.low <= 4 <= found.high
    assert 0.90 <= hits / count <= 0.98


@pytest.mark.parametrize(
    ("seeds", "spread", "expected"),
    [(2, 0.2, 0.90), (3, 0.2, 0.93), (5, 0.2, 0.94), (2, 0.5, 0.77), (3, 0.5, 0.88), (5, 0.5, 0.92)],
)
def test_with_few_seeds_intervals_cover_less(seeds: int, spread: float, expected: float) -> None:
    """The numbers that ``statistics`` and docs/statistics.md give; beside a spread of 1 over prompts and noise of
    0.3."""
    draw, hits, count = np.random.default_rng(0), 0, 250
    for i in range(count):
        found = interval(trained(draw, seeds, 50, spread, 0.3), "x", seed=i, resamples=400)
        hits += found.low <= 4 <= found.high
    assert hits / count == pytest.approx(expected, abs=0.05)


def test_with_few_prompts_intervals_cover_less() -> None:
    draw, hits, count = np.random.default_rng(0), 0, 400
    for i in range(count):
        (only,) = acceptance(draw, 8, (1.0,))
        found = interval(only, "x", seed=i, resamples=800)
        hits += found.low <= true_tau(1.0) <= found.high
    assert hits / count == pytest.approx(0.87, abs=0.04)


def test_seeds_that_differ_widen_the_interval() -> None:
    draw = np.random.default_rng(0)
    prompts = draw.normal(4, 0.5, 60)
    alike, apart = make(np.stack([prompts] * 3)), make(np.stack([prompts - 0.5, prompts, prompts + 0.5]))
    one = make(prompts[None])
    assert interval(alike, "x").half_width == pytest.approx(interval(one, "x").half_width, rel=0.01)
    assert interval(apart, "x").half_width > 2 * interval(one, "x").half_width
    assert interval(apart, "x").value == pytest.approx(interval(one, "x").value)


@pytest.mark.parametrize("seeds", [2, 3])
def test_with_few_seeds_an_interval_reaches_the_seeds_seen_and_no_further(seeds: int) -> None:
    taus = [3.0, 3.4, 3.1][:seeds]
    found = interval(make(np.repeat(np.array(taus)[:, None], 20, axis=1)), "x")
    assert (found.low, found.high) == pytest.approx((min(taus), max(taus)))


def test_benchmarks_are_averaged_unweighted_and_independently() -> None:
    draw = np.random.default_rng(0)
    few, much = make(draw.normal(3, 1, (1, 20))), make(draw.normal(5, 1, (1, 400)))
    found = average({"x": few, "y": much})
    assert found.value == pytest.approx((few.tau + much.tau) / 2)
    assert found.prompts == 420
    assert found.error == pytest.approx(np.hypot(interval(few, "x").error, interval(much, "y").error) / 2, rel=0.05)
    # The draw of seeds is shared: with nothing but seeds varying, more benchmarks do not narrow the interval.
    seeds = make(np.repeat(np.array([[1.0], [2.0], [4.0], [3.0]]), 20, axis=1))
    assert average({"x": seeds, "y": seeds}).error == pytest.approx(interval(seeds, "x").error, abs=1e-12)


def test_the_minimum_detectable_difference_is_found_four_times_in_five() -> None:
    draw, count, prompts = np.random.default_rng(0), 400, 60
    mdd = float(np.mean([difference(*pair(draw, prompts, 0.0), "x", resamples=800).detectable for _ in range(50)]))
    assert mdd == pytest.approx(2.8016 * 0.4 * np.sqrt(2 / prompts), rel=0.05)
    for effect, low, high in ((mdd, 0.72, 0.88), (0.0, 0.0, 0.09), (2 * mdd, 0.99, 1.0)):
        found = [difference(*pair(draw, prompts, effect), "x", seed=i, resamples=800).separable for i in range(count)]
        assert low <= np.mean(found) <= high


def pair(draw: np.random.Generator, prompts: int, effect: float) -> tuple[Sample, Sample]:
    ease = draw.normal(4, 1, prompts)
    a, b = draw.normal(0, 0.4, (2, prompts))
    return make((ease + a + effect)[None]), make((ease + b)[None])


def test_equivalence_is_an_interval_within_the_margin() -> None:
    def spans(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high, 0.1, 40, 3)

    assert equivalent(spans(-0.04, 0.05), 0.05)
    assert equivalent(spans(0.01, 0.03), 0.05)  # separable and yet equivalent
    assert spans(0.01, 0.03).separable
    assert not equivalent(spans(-0.04, 0.06), 0.05)
    assert not equivalent(spans(-0.06, 0.01), 0.05)  # not separable is not equivalent
    assert not spans(-0.06, 0.01).separable
    assert spans(-0.3, -0.1).separable
    assert not spans(0.0, 0.1).separable


# --- where there is no answer ---


def test_a_resample_without_a_ratio_is_left_out_and_counted() -> None:
    counted = np.zeros((2, 12))
    counted[0] = 1
    counted[1, :4] = 1  # with seed 1 only four prompts have anything to count
    thin = make(counted * 3.0, counted)
    found = replicates(thin, "x")
    missing = int(np.isnan(found).sum())
    assert 0 < missing < 0.05 * RESAMPLES
    prompts, seeds = drawn("prompts of x", 0, RESAMPLES, 12, 12), drawn("seeds", 0, RESAMPLES, 2, 1)
    expected = [min(p) >= 4 and 1 in s for p, s in zip(prompts, seeds, strict=True)]  # a seed not drawn does no harm
    assert np.array_equal(np.isnan(found), expected)
    for made in (interval(thin, "x"), difference(thin, make(np.full((2, 12), 2.0)), "x")):
        assert made.undefined == missing
        assert made.low == pytest.approx(made.high) == pytest.approx(made.value)
    counted[1, 1:] = 0
    with pytest.raises(InputError, match=r"x: [0-9]+ of 10000 resamples have no ratio"):
        interval(make(counted * 3.0, counted), "x")


def test_one_prompt_says_nothing_about_others() -> None:
    one, two = make(np.array([[4.0]])), make(np.array([[3.0]]))
    for found in (interval(one, "x"), average({"x": one, "y": noisy(1)})):
        assert (found.low, found.high, found.half_width) == (-np.inf, np.inf, np.inf)
    apart = difference(one, two, "x")
    assert apart.value == 1
    assert not apart.separable
    assert not equivalent(apart, 10.0)


def test_errors_are_one_line() -> None:
    a = noisy(2)
    other = replace(a, prompts=tuple(f"q{i}" for i in range(30)))
    done = {0: traces()}
    for message, call in (
        ("x: no seed in common", lambda: difference(a, replace(a, seeds=(8, 9)), "x")),
        ("x: no prompt in common", lambda: difference(a, other, "x")),
        ("only one of the two has y; give both the same", lambda: average_difference({"x": a}, {"x": a, "y": a})),
        ("no benchmark to average over", lambda: average({})),
        (r"seeds \(0, 1\) of x, but \(0, 1, 2\) of y", lambda: average({"x": a, "y": noisy(3)})),
        ("margin=0.0 must be positive", lambda: equivalent(interval(a, "x"), 0.0)),
        ("no run to compute statistics of", lambda: sample({})),
        ("seed 1: nothing to count in 12 prompts", lambda: sample({**done, 1: []})),
        ("seed 0: nothing to count in 0 prompts", lambda: sample({0: [Trace("p", 0, (), 7, 1, True)]})),
        ("Did you mean 'pooled'", lambda: sample(done, "poled")),
        (r"alpha_8: a round proposes 7 tokens, so k must be in 1 \.\. 7", lambda: alpha_sample(done, 8)),
        ("alpha_0", lambda: alpha_sample(done, 0)),
        ("seed 0: nothing to count", lambda: alpha_sample({0: [Trace("p", 0, (0, 0), 7, 3, True)]}, 2)),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_error_of_seeds_alone_is_the_unbiased_standard_error() -> None:
    taus = np.array([3.0, 3.4, 3.1, 3.9])
    found = interval(make(np.repeat(taus[:, None], 20, axis=1)), "x")
    assert found.error == pytest.approx(taus.std(ddof=1) / np.sqrt(len(taus)), rel=0.03)
