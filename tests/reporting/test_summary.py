"""What ``specauf eval`` and ``specauf compare`` print about records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Rounds, benchmark, heldout, record
from specauf_cli.errors import InputError
from specauf_cli.reporting import summary
from specauf_cli.store.records import BenchmarkResult, RunRecord
from specauf_cli.types import Trace

WORKED = (Trace("a", 0, (4, 1), 15, 7, True), Trace("b", 0, (0, 1, 2), 15, 5, True))
"""7 tokens in 2 rounds (8 without the cut at the end), 5 in 3 (7 without)."""


def worked(**changes: object) -> BenchmarkResult:
    return benchmark("gsm8k", [[0]], prompts=2, traces=WORKED, **changes)


def noisy(column: str, *, shift: int = 0, draw: int = 0, temperature: float = 0.0) -> BenchmarkResult:
    rng = np.random.default_rng([draw, len(column)])
    rounds: Rounds = (rng.integers(0, 9, size=(8, 5)) + rng.integers(0, 4, size=(8, 1)) + shift).tolist()
    return benchmark(column, rounds, temperature)


def about(text: list[str], start: str, temperature: float = 0.0) -> str:
    (found,) = (x for x in text if x.strip().startswith(start) and f"T={temperature:g}" in x)
    return found


@pytest.mark.parametrize(
    ("definition", "tau"),
    [
        ("engine", (7 / 2 + 5 / 3) / 2),
        ("pooled", 1 + 8 / 5),
        ("per_response", (7 / 2 + 2) / 2),
        ("eos_truncated", (6 + 4) / 5),
    ],
)
def test_of_record_shows_tau_by_the_definition_asked_for(definition: str, tau: float) -> None:
    text = summary.of_record(record("auf", [worked()]), definition)
    assert f"tau {tau:6.3f} ± " in about(text, "GSM8K")
    assert f"tau {tau:6.3f} ± " in about(text, "average")
    assert "(2 prompts)" in about(text, "GSM8K")
    assert f"tau ({definition})" in text[1]


def test_of_record_averages_benchmarks_without_weights_at_each_temperature() -> None:
    made = [benchmark(c, [[n]] * p, t) for c, n, p, t in (("a", 1, 2, 0.0), ("b", 4, 9, 0.0), ("a", 8, 3, 1.0))]
    text = summary.of_record(record("auf", made), "pooled")
    assert "tau  3.500 ± 0.000" in about(text, "average", 0.0)
    assert "tau  9.000 ± 0.000" in about(text, "average", 1.0)


def test_averages_say_of_how_many_benchmarks_they_are() -> None:
    several = [benchmark(name, [[1]], t) for name in ("a", "b") for t in (0.0, 1.0)]
    assert "T=1 tau 2.000  of 2 benchmarks  block-mask" in summary.averages(record("auf", several), "pooled")
    assert f"  of {several[0].title} alone  " in summary.averages(record("auf", several[:2]), "pooled")


def test_of_record_counts_audit_and_block_mask_accuracy_of_the_whole_record() -> None:
    audit = {"requests": 5, "identical": 4, "same_rounds": 3, "first_difference": None}
    made = record("auf", [worked(audit=audit), worked(audit=audit, temperature=1.0)], blocks=heldout([10, 30], [4, 5]))
    text = "\n".join(summary.of_record(made, "engine"))
    assert "audit: 8 of 10 live outputs equal the target's own token for token, 6 have the recorded rounds" in text
    assert "block-mask accuracy 22.5 %" in text
    assert "dflash-auf-s0  (auf, seed 0, laptop)" in text


def test_of_record_shows_all_starts_under_their_own_name_and_only_when_asked() -> None:
    starts = {"histogram": [2, 0, 3, 5], "valid": [10] * 3, "correct": [8] * 3}
    made = record("auf", [worked(starts=starts)])
    row = about(summary.of_record(made, "engine", all_starts=True), "GSM8K")
    # ten starts: eight accept the first token, all eight the second, five the third
    assert row.endswith("all starts: mean accepted 2.100, alpha 0.80 1.00 0.62")
    assert row.count("tau") == 1
    assert "all starts" not in "\n".join(summary.of_record(made, "engine"))
    live = record("auf", [worked()])  # decode mode measures no other starts
    assert "all starts" not in "\n".join(summary.of_record(live, "engine", all_starts=True))


def test_of_record_gives_a_dash_for_a_depth_no_start_reached() -> None:
    made = record("auf", [worked(starts={"histogram": [3, 1, 0, 0, 0], "valid": [4] * 4, "correct": [1] * 4})])
    assert summary.of_record(made, "engine", all_starts=True)[2].endswith("alpha 0.25 0.00 – –")


def test_of_record_refuses_an_unknown_definition() -> None:
    with pytest.raises(InputError, match="Did you mean 'pooled'"):
        summary.of_record(record("auf", [worked()]), "poled")


def pair(*, shift: int = 0, draw: int = 0, seed: int = 0) -> tuple[RunRecord, RunRecord]:
    base = record("decay", [noisy("gsm8k"), noisy("mbpp")])
    other = [noisy("gsm8k", shift=shift, draw=draw), noisy("mbpp", shift=shift, draw=draw)]
    return base, record("auf", other, seed=seed)


def compare(measured: Sequence[RunRecord], definition: str) -> list[str]:
    """Of every run one record."""
    return summary.comparison([[r] for r in measured], definition)


def measured_with(made: RunRecord, **settings: object) -> RunRecord:
    return replace(made, config={**made.config, "evaluation": {**made.config["evaluation"], **settings}})


def test_comparison_refuses_runs_measured_with_other_settings() -> None:
    base, other = pair(shift=1)
    short = measured_with(other, max_new_tokens=8, precision="bf16")
    with pytest.raises(InputError, match=r"measured differently \(precision bf16 and fp32, max_new_tokens 8 and \w+\)"):
        compare([measured_with(base, precision="fp32"), short], "engine")
    both = summary.comparison([[base], [other, short]], "engine")  # the newest two that are alike
    assert "+1.000 ± 0.000" in about(both, "average")


@pytest.mark.parametrize("seed", [0, 4])  # one drafter against another: their training seeds may differ
def test_comparison_is_paired_by_prompt(seed: int) -> None:
    """Prompts differ by tokens, the other run adds exactly one to each: nothing is left to chance."""
    text = compare(pair(shift=1, seed=seed), "engine")
    assert text[0] == "baseline: dflash-decay-s0 (decay, seed 0), tau (engine)"
    assert text[1] == f"\ndflash-auf-s{seed} (auf, seed {seed}) minus baseline"
    for name in ("GSM8K", "MBPP", "average"):
        assert about(text, name).endswith("+1.000 ± 0.000  (detectable 0.000)")
    back = compare(pair(shift=1)[::-1], "engine")
    assert "-1.000 ± 0.000" in about(back, "average")


def test_comparison_says_not_separable() -> None:
    for made in (pair(), pair(draw=1)):
        text = compare(made, "engine")
        for name in ("GSM8K", "MBPP", "average"):
            assert about(text, name).endswith("  not separable")
    assert "+0.000 ± 0.000  (detectable 0.000)  not separable" in about(compare(pair(), "engine"), "average")
    assert "not separable" not in "\n".join(compare(pair(draw=1, shift=4), "engine"))


def test_comparison_uses_the_definition() -> None:
    made = record("decay", [worked()]), record("auf", [worked(temperature=0.0)])
    longer = replace(made[1], benchmarks=(replace(worked(), traces=(WORKED[0], replace(WORKED[1], tokens=6))),))
    assert "+0.167 ± " in about(compare([made[0], longer], "engine"), "average")
    assert "+0.200 ± " in about(compare([made[0], longer], "eos_truncated"), "average")
    assert "+0.000 ± 0.000" in about(compare([made[0], longer], "pooled"), "average")


def test_comparison_goes_over_what_both_have_at_each_temperature() -> None:
    base = record("decay", [noisy("gsm8k"), noisy("gsm8k", temperature=1.0), noisy("mbpp")])
    ours = [noisy("gsm8k", shift=1), noisy("gsm8k", shift=2, temperature=1.0), noisy("alpaca", shift=4)]
    text = compare([base, record("auf", ours)], "engine")
    assert len(text) == 6
    assert "+1.000" in about(text, "GSM8K")
    assert "+2.000" in about(text, "GSM8K", 1.0)
    assert "+1.000" in about(text, "average")
    assert "+2.000" in about(text, "average", 1.0)


def test_comparison_takes_every_further_run_against_the_first() -> None:
    base, one = pair(shift=1)
    two = replace(pair(shift=2)[1], run="third")
    text = "\n".join(compare([base, one, two], "engine"))
    assert text.count("minus baseline") == 2
    assert "+1.000" in text.split("third")[0]
    assert "+2.000" in text.split("third")[1]


def test_comparison_refuses_runs_measured_on_different_prompts() -> None:
    base, other = pair()
    changed = replace(other, benchmarks=(other.benchmarks[0], replace(other.benchmarks[1], prompts_sha256="else")))
    with pytest.raises(InputError, match="MBPP: dflash-auf-s0 and dflash-decay-s0 were measured on different prompts"):
        compare([base, changed], "engine")


@pytest.mark.parametrize("ours", [noisy("mbpp"), noisy("gsm8k", temperature=1.0)])
def test_comparison_refuses_runs_without_a_common_benchmark(ours: BenchmarkResult) -> None:
    with pytest.raises(
        InputError, match="dflash-auf-s0 and dflash-decay-s0 share no benchmark at the same temperature"
    ):
        compare([record("decay", [noisy("gsm8k")]), record("auf", [ours])], "engine")
