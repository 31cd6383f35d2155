"""The examples of docs/own.md run unchanged, and everything that the pages name exists."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

from helpers.commands import ROOT, specauf
from helpers.hub import publish
from specauf_cli.config import compose
from specauf_cli.config.overrides import overrides_of
from specauf_cli.data.chat import Chat
from specauf_cli.doctor import examination
from specauf_cli.errors import InputError
from specauf_cli.store.files import read_json

PAGES = sorted((ROOT / "docs").glob("*.md"))
OWN = (ROOT / "docs" / "own.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", OWN, re.MULTILINE | re.DOTALL))
SMALL = {
    "train": ["profile=smoke", "trainer.steps=2", "data.limit=600"],
    "doctor": ["profile=smoke"],
    "eval": ["evaluation.temperatures=[0.0]", "evaluation.prompts=1"],
}


@pytest.fixture
def workshop(tmp_path: Path, table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the smoke target trained, and the environment that the page asks for."""
    folder = tmp_path / "my folder"
    shutil.copytree(table[0] / "runs" / "targets", folder / "runs" / "targets")
    (exported,) = re.findall(r"^export (.+)$", OWN, re.MULTILINE)
    settings = dict(word.replace("$PWD", str(folder)).split("=") for word in exported.split())
    monkeypatch.setenv("SPECAUF_CONF", settings.pop("SPECAUF_CONF"))
    monkeypatch.syspath_prepend(settings.pop("PYTHONPATH"))
    assert not settings
    yield folder
    for name in ("my_credits", "my_losses", "my_backbone"):
        sys.modules.pop(name, None)


def write_files(section: str, folder: Path) -> list[str]:
    """Writes every code block that follows a line with its path; returns the paths."""
    blocks = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    for path, content in blocks:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return [path for path, _ in blocks]


def commands(section: str) -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [line.split()[1:] for block in blocks for line in block.splitlines()]


def follow(section: str, folder: Path) -> list[str]:
    """Writes the files of a section and runs its commands at smoke size; returns their output."""
    (folder / "conf").mkdir(exist_ok=True)
    write_files(section, folder)
    return [specauf(folder, *words, *SMALL.get(words[0], [])).stdout for words in commands(section)]


def records(folder: Path, run: str) -> list[dict]:  # type: ignore[type-arg]
    return [read_json(f) for f in sorted((folder / run.strip() / "records").glob("*.json"))]


def test_an_objective_of_ones_own_trains_and_is_measured(workshop: Path) -> None:
    first, measured, second, listed = follow("An objective", workshop)
    assert "-reach-" in first
    assert first != second
    (record,) = records(workshop, first)
    assert record["objective"] == "reach"
    assert record["config"]["objective"]["base"]["credit"] == "my_credits.reach"
    assert "tau" in measured
    assert len(listed.splitlines()) == 2


def test_a_loss_of_ones_own_trains_and_is_measured(workshop: Path) -> None:
    first, second, measured = follow("A loss", workshop)
    assert first != second
    assert "tau" in measured
    losses = []
    for run in (first, second):
        assert "-auf_and_softened-" in run
        (line,) = (workshop / run.strip() / "log.jsonl").read_text().splitlines()[-1:]
        losses.append(json.loads(line)["loss"])
    assert losses[0] != losses[1], "another temperature"


def test_a_backbone_of_ones_own_passes_the_doctor_trains_and_is_measured(workshop: Path) -> None:
    examined, run, measured = follow("A backbone", workshop)
    for check in ("labels", "leak", "drafter", "round trip"):
        assert re.search(rf"^ok +{check} ", examined, re.MULTILINE), examined
    (record,) = records(workshop, run)
    assert record["backbone"] == "dflash_slots"
    assert "tau" in measured
    assert compose.compose(["backbone=dflash_slots", "profile=paper"]).trainer.anchors == 512
    done = specauf(workshop, "export", "--run", run.strip(), "--out", "out", check=False)
    assert done.returncode == 2
    assert "SlotDFlashModel" in done.stderr


def test_a_benchmark_of_ones_own_is_measured(workshop: Path, table: tuple[Path, str]) -> None:
    run = next(f.parent for f in table[0].glob("runs/dflash-auf-*/finished.json"))
    shutil.copytree(run, workshop / "runs" / run.name, ignore=shutil.ignore_patterns("records"))
    write_files("A benchmark", workshop)
    (words,) = commands("A benchmark")
    assert "Riddles" in specauf(workshop, *words, "evaluation.temperatures=[0.0]", "evaluation.prompts=3").stdout
    ((found,),) = (r["benchmarks"] for r in records(workshop, f"runs/{run.name}"))
    assert (found["origin"], found["prompts"], len(found["traces"])) == ("jsonl", 3, 4)


def test_a_target_of_ones_own_passes_the_doctor_and_trains_a_drafter(workshop: Path, chat: Chat) -> None:
    publish(workshop / "checkpoint", chat, "qwen3", tied=True, padding=8)
    examined, run, measured = follow("A target", workshop)
    assert "FAIL" not in examined
    (record,) = records(workshop, run)
    assert record["target"]["taps"] == [0, 1, 3]
    assert "-my_target-" in run
    assert "tau" in measured


# --- the user's own yaml files ---


def test_a_folder_of_ones_own_that_cannot_work_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"SPECAUF_CONF=.*nowhere: there is no such folder"):
        compose.compose([])
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path))
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "auf.yaml").write_text("name: auf\n")
    with pytest.raises(InputError, match=r"auf\.yaml: there is a shipped objective of this name"):
        compose.compose([])
    (tmp_path / "objective" / "auf.yaml").unlink()
    own = tmp_path / "objective" / "own.yaml"
    own.write_text("name: auf\nbase: {credit: full_ce}\n")
    with pytest.raises(InputError, match=r"own\.yaml: its `name:` must be own, as the file's, not auf"):
        compose.compose([])
    own.write_text("")
    with pytest.raises(InputError, match=r"own\.yaml: its `name:` must be own, as the file's, it has none"):
        compose.compose([])
    assert overrides_of(["runs=elsewhere"]) == ["runs=elsewhere"], "what reads no yaml, such as ls, goes on"
    own.write_text("name: own\nbackbones: [dflash\n")  # it cannot be read, and another one was asked for
    with pytest.raises(InputError, match=r"objective 'b_auf' is for domino, not for dflash; on dflash: auf, "):
        compose.compose(["objective=b_auf", "backbone=dflash"])
    own.unlink()
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "other.yaml").write_text("defaults: [dflash, _self_]\nname: other\nlike: dflsh\n")
    with pytest.raises(InputError, match=r"backbone\.like='dflsh' is none of .*Did you mean 'dflash'"):
        compose.compose(["backbone=other"])
    with pytest.raises(InputError, match=r"--config-dir: set SPECAUF_CONF=DIR instead"):
        compose.run_hydra(lambda *_: None, ["--config-dir", str(tmp_path)])


def test_a_backbone_like_domino_takes_its_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "two.yaml").write_text("defaults: [domino, _self_]\nname: two\nlike: domino\n")
    monkeypatch.setenv("SPECAUF_CONF", str(tmp_path))
    found = compose.compose(["backbone=two", "objective=auf"])
    assert (found.backbone.name, found.objective.name) == ("two", "b_auf")


# --- links and names ---


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "results" / "README.md", *PAGES], ids=lambda p: p.name)
def test_every_relative_link_points_at_a_file(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), f"{page.name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, f"{page.name}: {link}"


@pytest.mark.parametrize(("page", "least"), [("docs/recommendations.md", 20), ("docs/report.md", 20), ("README.md", 5)])
def test_every_linked_number_stands_on_the_page_that_it_links_to(page: str, least: int) -> None:
    linked = re.findall(r"\[([+-]?\d[^\]]*)\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert len(linked) >= least
    for number, link in linked:
        text = ((ROOT / page).parent / link).resolve().read_text().replace("**", "")
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), f"{number} is not in {link}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the history of the project")
@pytest.mark.parametrize("page", ["experiments/LOG.md", "benchmarks/README.md"])
def test_every_commit_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"`([0-9a-f]{7,12})`", (ROOT / page).read_text()))
    assert named
    for commit in named:
        done = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, check=False)
        assert done.returncode == 0, commit


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"^- \[[^]]+\]\((\w+\.md)\): .+$", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE))
    assert listed == {p.name for p in PAGES} - {"README.md"}


INDEX = (ROOT / "docs" / "paper.md").read_text()
PACKAGES = {p.parent.name for p in (ROOT / "specauf_cli").glob("*/__init__.py")}
MODULES = {
    ".".join(p.relative_to(ROOT / "specauf_cli").with_suffix("").parts) for p in (ROOT / "specauf_cli").rglob("*.py")
}


def test_every_function_that_the_index_names_exists() -> None:
    seen = 0
    for name in set(re.findall(r"`(\w+(?:\.\w+)+)`", INDEX)):
        parts = name.split(".")
        depth = next((n for n in range(len(parts) - 1, 0, -1) if ".".join(parts[:n]) in MODULES), 0)
        if depth:
            reduce(getattr, parts[depth:], importlib.import_module(f"specauf_cli.{'.'.join(parts[:depth])}"))
        elif parts[0] in PACKAGES:  # a setting or a key of a record, which the next test looks up
            assert len(parts) == 2 or parts[0] in ("config", "training"), name
        seen += depth > 0
    assert seen > 50


def test_every_file_setting_and_record_key_that_the_index_names_exists() -> None:
    for path in set(re.findall(r"`((?:conf|experiments|results)/[\w./]+)`", INDEX)):
        assert (ROOT / path).exists(), path
    config = compose.compose(["backbone=domino"]).resolved | compose.compose([]).resolved
    for key in set(re.findall(r"`((?:trainer|evaluation|target|backbone)\.[a-z_]+)[`=]", INDEX)):
        group, name = key.split(".")
        assert name in config[group] or key in MODULES, key
    record = read_json(next((ROOT / "results" / "records" / "laptop").glob("dflash-auf-*.json")))
    for key in set(re.findall(r"`((?:training|heldout|benchmarks\[\]|inputs|config|target)\.[a-z_.\[\]]+)`", INDEX)):
        if key.split(".")[0] == "target" or ".".join(key.split(".")[:2]) in MODULES:
            continue
        found = record
        for part in key.split("."):
            found = found[part.removesuffix("[]")]
            found = found[0] if part.endswith("[]") else found


def test_the_doctors_lines_are_all_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    explained = {n for head in re.findall(r"^## (.+)$", text, re.MULTILINE) for n in head.split(", ")}
    assert set(examination.CHECKS) <= explained
