"""The list of what `make test` leaves out is about tests that exist, and leaves something of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.slow import CASES, WHOLE, is_slow

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_a_name_of_the_list_is_that_of_a_test(name: str) -> None:
    file, _, function = name.partition("::")
    text = (HERE / file).read_text("utf-8")
    assert f"def {function}(" in text if function else "def test_" in text


def test_a_case_stays_by_its_pattern() -> None:
    name = "models/test_families.py::test_decoding_is_lossless_and_replay_equals_it"
    assert not is_slow(f"{name}[qwen3_moe-0.0]")
    assert is_slow(f"{name}[phi3-1.0]")
    assert is_slow(WHOLE[0])
    assert is_slow("models/test_real_targets.py::test_it_loads_and_gives_features[qwen3_32b]")
    assert not is_slow("models/test_real_targets.py::test_every_yaml_of_a_real_target_is_checked_here")
    assert not is_slow("evaluation/test_tau.py::test_anything[1]")
