"""The profile that Model-Optimizer reads: its own worked example, its checks, and what engines simulate from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.synthetic import benchmark, record
from specauf_cli.errors import InputError
from specauf_cli.interchange.acceptance import simulation_lines, speculation_profile

ROUNDS = st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=8), min_size=1, max_size=5)


def test_the_worked_example_of_the_schema() -> None:
    """100 rounds: 40 emitted one token, 30 two, 30 three (its ``test_offset_and_densification``)."""
    rounds = [0] * 40 + [1] * 30 + [2] * 30
    profile = speculation_profile(record("auf", [benchmark("mt_bench", [rounds])]), 0.0)
    assert profile["marginal_accept_rates"] == [0.6, 0.3, *[0.0] * 13]
    assert profile["conditional_accept_rates"] == [0.6, 0.5, *[0.0] * 13]
    assert profile["mean_accept_length"] == 1.9
    assert profile["acceptance_length_histogram"] == {"1": 40, "2": 30, "3": 30}
    assert profile["per_category"] == {"mt_bench": {"mean_accept_length": 1.9}}
    sglang, vllm = simulation_lines(profile)
    assert sglang == "SGLang: SGLANG_SIMULATE_ACC_LEN=1.900 SGLANG_SIMULATE_ACC_METHOD=match-expected"
    assert "[0.6,0.3,0,0," in vllm


@given(ROUNDS)
def test_the_checks_of_the_schema_hold(rounds: list[list[int]]) -> None:
    profile = speculation_profile(record("auf", [benchmark("mt_bench", rounds)]), 0.0)
    marginal = profile["marginal_accept_rates"]
    assert len(marginal) == len(profile["conditional_accept_rates"]) == profile["num_speculative_tokens"] == 15
    assert profile["validation"]["mean_consistency"]["passed"]
    assert marginal == sorted(marginal, reverse=True)
    product = 1.0
    for conditional, joint in zip(profile["conditional_accept_rates"], marginal, strict=True):
        product *= conditional
        assert product == pytest.approx(joint, abs=1e-4)


def test_a_temperature_that_was_not_measured_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"no round at T = 0.5; measured: T = 0, 1"):
        speculation_profile(record("auf", [benchmark("a", [[1]], 0.0), benchmark("a", [[1]], 1.0)]), 0.5)
