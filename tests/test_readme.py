"""The commands of the README run, on the smoke profile."""

import re
from pathlib import Path

import pytest

from commands import ROOT, specauf

README = re.findall(r"^(specauf [^#\n]+?)\s*(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in README if not any(x in c for x in ("DIR", "FILE", "RUN_A", "--help"))])
def test_readme_commands_run(table: tuple[Path, str], command: str) -> None:
    folder, _ = table
    words = command.split()[1:]
    small = ["profile=smoke", "trainer.steps=2"] if words[0] in ("train", "table") else []
    if words[0] in ("target", "figures", "report"):
        small = ["profile=smoke"]
    if "--all-runs" in words or words[0] == "audit":
        small = ["evaluation.prompts=1"]  # of every run that the commands before it have made
    if "--every-checkpoint" in words:
        run = next(f.parent.name for f in folder.glob("runs/*/snapshots"))
        small = ["--run", run, "evaluation.audit=1", "evaluation.temperatures=[0.0]"]
    specauf(folder, *words, *small)


def test_readme_holds_the_promised_commands() -> None:
    text = (ROOT / "README.md").read_text()
    for promised in (
        "specauf train objective=auf backbone=dflash",
        "specauf eval --benchmarks all",
        "make table",
        "make test",
        "specauf train -m objective=full_ce,decay,auf,auf_decay",
    ):
        assert promised in text
