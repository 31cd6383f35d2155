"""The page of drafters with and without a prefix channel: gains, sizes, and C10's verdict in each case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.synthetic import constant
from specauf_cli.config import specs
from specauf_cli.config.specs import DraftersSpec
from specauf_cli.errors import InputError
from specauf_cli.reporting.claims import FAILS, HOLDS, OPEN
from specauf_cli.reporting.drafters import compare, markdown, to_csv
from specauf_cli.store.records import Cost, DrafterDescription, RunRecord

PAGE = specs.load_spec("prefix")
assert isinstance(PAGE, DraftersSpec)
COLUMNS = PAGE.columns


def measured(**accepted: tuple[int, ...]) -> list[RunRecord]:
    """Records of drafters by backbone: what every round accepts with the baseline, and with each rival."""
    found = []
    for drafter in PAGE.drafters:  # type: ignore[union-attr]
        for objective, count in zip(
            (drafter.baseline, *drafter.rivals), accepted.get(drafter.backbone, ()), strict=False
        ):
            made = constant(objective, COLUMNS, count, backbone=drafter.backbone, run=f"{drafter.backbone}-{objective}")
            found.append(replace(made, cost=Cost(drafter=DrafterDescription(parameters=1234, operations=5_600_000))))
    return found


ALL = {"dflash": (2, 3), "medusa": (1, 2), "recurrent": (3, 3), "dspark": (4, 4, 3), "domino": (4, 3, 3)}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, HOLDS),
        ({"recurrent": (3, 4)}, FAILS),
        ({"dspark": (4, 4, 5)}, FAILS),
        ({"medusa": (2, 1)}, FAILS),
        ({"medusa": (2, 2)}, OPEN),
        ({"domino": ()}, OPEN),
    ],
)
def test_the_verdict(changes: dict[str, tuple[int, ...]], verdict: str) -> None:
    assert isinstance(PAGE, DraftersSpec)
    found = compare(PAGE, {"original": measured(**{**ALL, **changes})})
    (quoted,) = found.quoted
    assert (quoted.claim, quoted.verdict) == ("C10", verdict)
    assert ("not measured: Domino" in quoted.numbers) == (changes == {"domino": ()})


def test_the_page_shows_gains_sizes_and_what_is_missing() -> None:
    assert isinstance(PAGE, DraftersSpec)
    found = compare(PAGE, {"original": measured(**ALL)})
    page = markdown(found, links="records")
    assert "| DFlash | no | 1,234 | 5.60 | decay | 3.38 ± 0.06 | – | 0 |" in page
    assert "|  |  |  |  | AUF | 4.38 ± 0.06 | +1.00 ± 0.00 | 0 |" in page
    assert "| DSpark | yes | 1,234 | 5.60 |" in page
    assert "| Medusa heads | +1.00 ± 0.00 |" in page
    assert "Not measured yet: training answers the target's own." in page
    assert "records/original/" in page
    assert "original,medusa,AUF,difference to baseline,1.0,1.0,1.0" in to_csv(found)


def test_a_page_without_records() -> None:
    assert isinstance(PAGE, DraftersSpec)
    assert "No run of this page is finished yet." in markdown(compare(PAGE, {}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y["drafters"][0].update(backbone="dflsh"), "backbone 'dflsh' is none of .*Did you mean 'dflash'"),
        (lambda y: y["drafters"][0].update(rivals=["afu"]), "objective 'afu' is none of .*Did you mean 'auf'"),
        (lambda y: y["drafters"][0].update(rivals=[]), "drafter 'dflash' has no rivals"),
        (lambda y: y["drafters"].append(y["drafters"][0]), "drafter 'dflash' is there twice"),
        (lambda y: y.update(claim="orignal"), "claim 'orignal' is none of original, regenerated"),
        (lambda y: y["drafters"][0].update(rivals=["b_auf"]), "'b_auf' does not fit dflash"),
    ],
)
def test_a_wrong_yaml_is_one_line(tmp_path: Path, change: Any, says: str) -> None:
    content = yaml.safe_load((specs.folder("experiments") / "prefix.yaml").read_text())
    change(content)
    (tmp_path / "prefix.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=says) as caught:
        specs.load_spec(str(tmp_path / "prefix.yaml"))
    assert "\n" not in str(caught.value)
