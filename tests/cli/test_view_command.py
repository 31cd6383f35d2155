"""``specauf view`` end to end on the smoke profile: the rounds shown are those that were recorded."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.browser import BROWSER, asked
from helpers.commands import specauf
from helpers.copies import first_runs

Table = tuple[Path, str]


@pytest.fixture(scope="module")
def table(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The smoke table's runs, for these tests alone."""
    return first_runs(table[0], tmp_path_factory.mktemp("view")), table[1]


def run_of(folder: Path, objective: str) -> str:
    return next(p for p in (folder / "runs").glob(f"dflash-{objective}-*")).name


def recorded(folder: Path, run: str, temperature: float) -> dict[tuple[str, int], list[int]]:
    """Accepted counts per request, of the run's record."""
    (path,) = (folder / "runs" / run / "records").glob("*.json")
    benchmarks = [b for b in json.loads(path.read_text())["benchmarks"] if b["temperature"] == temperature]
    columns = {b["title"]: b["traces"] for b in benchmarks}
    return {
        (f"{title}: {t['prompt_id']}", t["turn"]): t["accepted"] for title, traces in columns.items() for t in traces
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_rounds_of_the_page_are_the_recorded_ones(table: Table, temperature: float) -> None:
    folder, _ = table
    runs = [run_of(folder, "decay"), run_of(folder, "auf")]
    done = specauf(folder, "view", *runs, "--temperature", str(temperature))
    page = folder / done.stdout.strip()
    assert page == folder / "runs" / "views" / f"{runs[0]}-and-{runs[1]}.html"
    articles = re.findall(r'<article class="answer".*?</article>', page.read_text(), re.DOTALL)
    known = [recorded(folder, run, temperature) for run in runs]
    assert len(articles) == len(known[0])
    for article in articles:
        name, _, turn = html.unescape(re.findall("<h3>(.*?)</h3>", article)[0]).partition(", turn ")
        lists = re.findall(r'<ol class="rounds">(.*?)</ol>', article, re.DOTALL)
        counts = [[int(n) for n in re.findall(r": (\d+) of \d+ accepted", rounds)] for rounds in lists]
        assert counts == [k[name, int(turn or 1) - 1] for k in known]


def test_a_terminal_shows_chosen_prompts_of_the_latest_run(table: Table) -> None:
    folder, _ = table
    first = specauf(folder, "view", "--terminal", "--benchmarks", "offline_algebra,offline_chat", "--prompts", "1")
    names = re.findall("^== (.*)$", first.stdout, re.MULTILINE)
    assert [n.split(":")[0] for n in names] == ["Algebra (offline)", "Chat (offline)", "Chat (offline)"]
    assert names[2] == f"{names[1]}, turn 2"
    assert "\x1b" not in first.stdout
    chosen = names[1].split(": ")[1]
    only = specauf(folder, "view", "--terminal", "--ids", chosen)
    assert re.findall("^== (.*)$", only.stdout, re.MULTILINE) == names[1:]


def test_drafters_of_two_block_sizes_walk_the_same_answers(table: Table) -> None:
    folder, _ = table
    short = ["profile=smoke", "trainer.steps=2", "backbone.block_size=4", "backbone.proposals=3", "runs=other"]
    shutil.copytree(folder / "runs", folder / "other")
    made = specauf(folder, "train", "objective=auf", *short).stdout.strip()
    page = specauf(
        folder, "view", Path(made).name, run_of(folder, "auf"), "runs=other", "--prompts", "1", "--out", "both.html"
    )
    text = (folder / "both.html").read_text()
    assert page.stdout.strip() == "both.html"
    assert " of 3 accepted" in text
    assert " of 15 accepted" in text
    assert "differ from token" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "give one run, or two different ones"),
        (["a", "a"], "give one run, or two different ones"),
        (["--prompts", "0"], "--prompts 0 must be at least 1"),
        (["--prompts", "1", "--ids", "x"], "give one of them"),
        (["--ids", "algebra-prompt-00000"], "Did you mean 'algebra-prompt-00000"),
        (["--ids", ""], "no prompt of the chosen benchmarks"),
        (["--terminal", "--out", "x.html"], "--terminal writes no page"),
        (["evaluation.temperatures=[1.0]"], "given by --temperature"),
        (["evaluation.mode=decode"], "view replays"),
        (["--temperature", "-1"], "evaluation.temperatures"),
        (["--temperature", "nan"], "evaluation.temperatures"),
        (["dflash-nothing"], "no run 'dflash-nothing'"),
        (["trainer.lr=1"], "was trained with another trainer"),
        (["--benchmarks", "offline_algebr"], "offline_algebra"),
    ],
)
def test_what_cannot_be_viewed_is_said_in_a_line(
    table: Table, composed_once: None, words: list[str], message: str
) -> None:
    done = specauf(table[0], "view", *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_drafter_of_another_target_is_no_pair(table: Table) -> None:
    folder, _ = table
    run = run_of(folder, "auf")
    shutil.copytree(folder / "runs" / run, folder / "else" / run)
    about = json.loads((folder / "else" / run / "run.json").read_text())
    about["inputs"]["target"] = "another"
    (folder / "else" / run / "run.json").write_text(json.dumps(about))
    done = specauf(folder, "view", run_of(folder, "decay"), f"else/{run}", check=False)
    assert done.returncode == 2
    assert "was trained for another target" in done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_real_page_fits_a_phone(table: Table) -> None:
    folder, _ = table
    page = (
        folder
        / specauf(folder, "view", run_of(folder, "decay"), run_of(folder, "auf"), "--prompts", "1").stdout.strip()
    )
    script = """(() => {
      for (const d of document.querySelectorAll("details")) d.open = true;
      return [innerWidth, document.documentElement.scrollWidth <= document.documentElement.clientWidth];
    })()"""
    assert asked(page, script, 390) == [390, True]
