"""What version 0.1 wrote is still read: run folders and records that name credits and backbones by import paths."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import specauf
from helpers.copies import first_runs
from specauf_cli.reporting.labels import labels


def as_version_0_1(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration as it was written then."""
    home = "specauf_cli.objectives.credits"
    objective = {
        k: {"_target_": f"{home}.{v['credit']}", "_partial_": True, **{x: y for x, y in v.items() if x != "credit"}}
        if k in ("base", "final")
        else v
        for k, v in config["objective"].items()
    }
    backbone = {k: v for k, v in config["backbone"].items() if k != "kind"}
    backbone["model"] = {"_target_": "specauf_cli.models.dflash.DFlash", "_partial_": True}
    return {**config, "objective": objective, "backbone": backbone}


@pytest.fixture
def older(table: tuple[Path, str], tmp_path: Path) -> Path:
    """The folder of a run whose files say what version 0.1 would have said."""
    (folder,) = (first_runs(table[0], tmp_path) / "runs").glob("dflash-decay-*")
    for path in (folder / "run.json", *(folder / "records").glob("*.json")):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "config": as_version_0_1(content["config"])}))
    return folder


def test_a_run_of_version_0_1_is_listed_compared_and_measured(older: Path) -> None:
    here = older.parents[1]
    (auf,) = (here / "runs").glob("dflash-auf-*")
    assert f"{older.name}  T=0 tau" in specauf(here, "ls").stdout
    assert "average" in specauf(here, "compare", older.name, auf.name).stdout
    done = specauf(here, "eval", "--run", older.name, "evaluation.prompts=1", "benchmark=offline_algebra")
    assert "audit: 1 of 1 live outputs equal" in done.stdout.replace("audit: 2 of 2", "audit: 1 of 1")


def test_old_and_new_records_differ_in_nothing_but_their_settings() -> None:
    new = {"objective": {"base": {"credit": "decay", "gamma": 7}}, "backbone": {"kind": "dflash", "layers": 2}}
    old = as_version_0_1(new)
    assert labels([new, old]) == ["", ""]
    other = {**new, "backbone": {"kind": "dflash", "layers": 1}}
    assert labels([other, old]) == ["backbone.layers 1", "backbone.layers 2"]
