"""``specauf objectives``: the list, one of them, JSON, and what it says to a wrong name."""

import json
from pathlib import Path

from helpers.commands import specauf
from specauf_cli.config.groups import groups


def test_the_list_has_every_objective_and_json_the_same(tmp_path: Path) -> None:
    text = specauf(tmp_path, "objectives").stdout
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    data = json.loads(specauf(tmp_path, "objectives", "--json").stdout)
    assert [objective["name"] for objective in data] == listed
    assert sorted(listed) == groups()["objective"]
    assert "  top_k_auf (top-3 AUF): AUF whose block ends where" in text
    assert "      label, rank · dflash, domino · the block form of GRIFFIN's" in text
    assert "      label · dflash, domino as b_auf · Spec-AUF (arXiv 2607.01893)" in text


def test_one_of_them(tmp_path: Path) -> None:
    text = specauf(tmp_path, "objectives", "b_auf").stdout
    assert "command    specauf train objective=b_auf backbone=domino" in text
    assert "branch final" in text
    assert json.loads(specauf(tmp_path, "objectives", "b_auf", "--json").stdout)["needs"] == ["label"]


def test_an_unknown_one_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    done = specauf(tmp_path, "objectives", "dpase", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "specauf: unknown objective 'dpase'; specauf objectives lists them all. Did you mean 'dpace'?"
    ]
