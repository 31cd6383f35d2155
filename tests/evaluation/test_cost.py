"""Statistics of made-up timings, exactly; and the algebra of R."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.timings import PLAIN, speed_record, timed_request, timed_rounds
from specauf_cli.errors import InputError
from specauf_cli.evaluation import cost


def test_tokens_a_second_and_R_are_ratios_of_sums() -> None:
    record = speed_record(
        [
            timed_request(PLAIN, "a", (0,) * 8, verify=1.0),
            timed_request(PLAIN, "b", (0,) * 4, verify=1.0),
            timed_request("run", "a", (3, 3), draft=0.25, verify=1.25, rest=0.5),
            timed_request("run", "b", (0, 0, 1), draft=0.25, verify=1.25, rest=0.5),
        ]
    )
    plain, run = cost.method_speed(record, PLAIN), cost.method_speed(record, "run")
    assert plain.speed.value == 1
    assert plain.ratio.value == plain.tau.value == plain.measured.value == plain.predicted.value == 1
    assert run.ratio.value == 2
    assert run.ratio.low == run.ratio.high == 2, "every round costs the same, so R is certain"
    assert run.parts == {"draft": 0.25, "verify": 1.25, "rest": 0.5}
    assert run.tau.value == (8 + 4) / 5
    assert run.speed.value == 12 / 10
    assert run.predicted.value == pytest.approx(2.4 / 2)
    assert run.measured.value == pytest.approx(1.2)
    assert run.gap == pytest.approx(0)


@settings(max_examples=5)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=2, max_size=5), st.floats(0.1, 10))
def test_tau_over_R_is_the_measured_speedup_where_nothing_is_cut_or_lost(
    rows: Sequence[list[int]], seconds: float
) -> None:
    requests = []
    for i, row in enumerate(rows):
        tokens = sum(row) + len(row)
        requests.append(timed_request(PLAIN, f"p{i}", (0,) * tokens, verify=1.5))
        requests.append(timed_request("run", f"p{i}", tuple(row), draft=seconds, verify=2.0))
    run = cost.method_speed(speed_record(requests), "run")
    assert run.predicted.value == pytest.approx(run.measured.value)
    assert run.predicted.low == pytest.approx(run.measured.low)
    assert run.predicted.high == pytest.approx(run.measured.high)


def test_tokens_past_the_end_and_time_outside_the_rounds_are_the_gap() -> None:
    plain = [timed_request(PLAIN, p, (0,) * 4) for p in "ab"]
    cut = [timed_request("run", p, (4,), verify=1.0, tokens=5, outside=0.25) for p in "ab"]
    run = cost.method_speed(speed_record([*plain, *cut]), "run")
    assert run.predicted.value == 5
    assert run.measured.value == pytest.approx(4 / 1.25)
    assert run.gap == pytest.approx(4 / 1.25 / 5 - 1)


def test_live_rounds_are_held_to_the_replay() -> None:
    requests = [timed_request(PLAIN, "a", (0,) * 4), timed_request("run", "a", (1, 1))]
    assert cost.as_replayed(speed_record(requests, curve={"4": {"toy/a": (4, 2)}}), "run")
    assert cost.as_replayed(speed_record(requests), PLAIN)
    for other in ({"toy/a": (4, 3)}, {"toy/a": (4, 2), "toy/b": (1, 1)}, {}):
        assert not cost.as_replayed(speed_record(requests, curve={"4": other}), "run")


def test_quantiles_of_the_time_per_token() -> None:
    requests = [timed_request(PLAIN, f"p{i}", (0, 0), verify=float(i)) for i in range(101)]
    record = speed_record([*requests, timed_request(PLAIN, "single", ())])
    assert cost.token_time(record, PLAIN, 0.5).value == 50
    assert cost.token_time(record, PLAIN, 0.95).value == 95
    middle = cost.token_time(record, PLAIN, 0.5)
    assert 40 <= middle.low < 50 < middle.high <= 60
    assert cost.quantile({"a": [1.0, 2.0]}, 0.5).high == np.inf
    with pytest.raises(InputError, match="longer than one token"):
        cost.quantile({}, 0.5)


def test_the_curve_is_tau_of_P_over_R_of_P_and_has_a_best_P() -> None:
    rounds = [
        timed_rounds(PLAIN, 1, 0, verify=[2.0, 2.0, 4.0]),
        timed_rounds("run", 1, 4, draft=[1.0] * 3, verify=[2.0] * 3, rest=[1.0] * 3),
        timed_rounds("run", 1, 1, draft=[0.5] * 3, verify=[2.0] * 3, rest=[0.5] * 3),
        timed_rounds(PLAIN, 8, 0, verify=[2.0] * 3),
        timed_rounds("run", 8, 4, draft=[8.0] * 3, verify=[8.0] * 3, rest=[0.0] * 3),
    ]
    curves = {"1": {"a": (6, 4), "b": (12, 8)}, "4": {"a": (6, 2), "b": (12, 4)}}
    record = speed_record([timed_request(PLAIN, "a", (0,))], rounds=rounds, curve=curves)
    first, second = cost.curve(record, "run", 1)
    assert (first.proposals, first.tau.value, first.ratio.value) == (1, 1.5, 1.5)
    assert (second.proposals, second.tau.value, second.ratio.value) == (4, 3.0, 2.0)
    assert (first.speedup.value, second.speedup.value) == (1.0, 1.5)
    assert second.parts == {"draft": 0.5, "verify": 1.0, "rest": 0.5}
    assert cost.best([first, second]) is second
    assert second.ratio.low == 1.0, "one of the plain steps took twice as long"
    (many,) = cost.curve(record, "run", 8)
    assert many.speedup.value == 3.0 / 8
    assert many.speedup.low == many.speedup.high == 3.0 / 8
