"""What needs no training: plain decoding has tau 1, prompt lookup is compared in pairs, looping is marked."""

from __future__ import annotations

import pytest

from helpers.looked_up import lookup_record
from helpers.synthetic import benchmark, constant, record
from specauf_cli.config import specs
from specauf_cli.config.specs import BaselinesSpec
from specauf_cli.errors import InputError
from specauf_cli.reporting.baselines import markdown

SHIPPED = specs.load_spec("baselines")
assert isinstance(SHIPPED, BaselinesSpec)
COLUMNS = list(SHIPPED.columns)


def rows(page: str) -> dict[str, list[str]]:
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_every_row_has_its_tau_and_drafters_their_lead_over_prompt_lookup() -> None:
    inputs = {"target": "t"}
    records = [constant("auf", COLUMNS, 3, seed=s, inputs=inputs, run=f"auf-{s}") for s in (0, 1)]
    domino = constant("decay", COLUMNS, 5, backbone="domino", inputs=inputs, run="domino")
    found = rows(markdown(SHIPPED, lookup_record(), [*records, domino]))
    assert set(found["plain decoding"]) == {"1.00 ± 0.00"}
    assert set(found["prompt lookup"]) == {"2.00 ± 0.00"}
    assert set(found["DFlash AUF"]) == {"4.00 ± 0.00"}
    assert set(found["DFlash AUF - prompt lookup"]) == {"+2.00 ± 0.00"}
    assert set(found["Domino decay"]) == {"6.00 ± 0.00"}
    assert set(found["DFlash decay"]) == set(found["Domino B-AUF+D"]) == {"–"}
    assert set(found["repeated 4-grams"]) == {"5 %"}


def test_a_target_that_repeats_itself_is_marked() -> None:
    assert set(rows(markdown(SHIPPED, lookup_record(repeated=20), []))["repeated 4-grams"]) == {
        "**20 % (repeats itself)**"
    }


def test_drafters_of_another_target_are_left_out_and_counted() -> None:
    page = markdown(SHIPPED, lookup_record(), [constant("auf", COLUMNS, 3, inputs={"target": "other"})])
    assert set(rows(page)["DFlash AUF"]) == {"–"}
    assert "Left out: 1 records of drafters for another target" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_sha256": "other"}, "different prompts of GSM8K"),
        ({}, "different evaluation settings"),
    ],
)
@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"draw": "gumbel"}])
def test_other_prompts_or_settings_are_an_input_error(
    changes: dict[str, str], message: str, changed: dict[str, str]
) -> None:
    results = [benchmark(COLUMNS[0], [[1]], **changes)]
    other = record("auf", results, inputs={"target": "t"})
    if not changes:
        other.config["evaluation"].update(changed)
    with pytest.raises(InputError, match=message):
        markdown(SHIPPED, lookup_record(), [other])
