"""The commands of the README and of two pages under docs/ run on the smoke profile."""

import re
import shutil
from pathlib import Path

import pytest

from helpers.commands import ROOT, specauf

PAGES = ("README.md", "docs/commands.md", "docs/targets.md")
COMMANDS = dict.fromkeys(
    command
    for page in PAGES
    for command in re.findall(r"^(?:\$ )?(specauf [^#\n]+?)\s*(?:#.*)?$", (ROOT / page).read_text(), re.MULTILINE)
)
"""Every command of the README and of the pages that list commands, each once."""


ELSEWHERE = (
    "DIR",
    "FILE",
    "RUN",
    "URL",
    "ORG/NAME",
    "PATH",
    "--help",
    "train profile=single_gpu",
    "first_half",
    "table robustness",
    "table controls",
    "table objectives",
    "table prefix",
    "table targets",
    "table budget",
    "specauf figures",
    "specauf report",
)  # placeholders, a GPU, pages of many drafters (test_study makes up theirs), and what test_cli runs


@pytest.mark.parametrize("command", [c for c in COMMANDS if not any(x in c for x in ELSEWHERE)])
def test_readme_commands_run(table: tuple[Path, str], command: str) -> None:
    folder, _ = table
    words = command.split()[1:]
    small = ["profile=smoke", "trainer.steps=2"] if words[0] == "train" else []
    if words[0] in ("table", "target", "doctor", "plan") and "single_gpu" not in command:
        small = ["profile=smoke"]
    if words[0] == "audit":
        small = ["evaluation.prompts=1"]
    if "--all-runs" in words:  # two runs, not all that the earlier commands have created
        for source in [*folder.glob("runs/targets"), *folder.glob("runs/dflash-auf*-tiny-*/records")]:
            chosen = source if source.name == "targets" else source.parent
            shutil.copytree(chosen, folder / "few" / chosen.name, dirs_exist_ok=True)
        small = ["runs=few", "evaluation.prompts=1", "evaluation.max_new_tokens=8"]
    if "--every-checkpoint" in words:
        run = next(f.parent.name for f in folder.glob("runs/*/snapshots") if (f.parent / "finished.json").is_file())
        small = ["--run", run, "evaluation.audit=1", "evaluation.temperatures=[0.0]", "evaluation.prompts=1"]
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
