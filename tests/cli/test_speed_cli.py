"""``specauf speed``, ``acceptance`` and the page of baselines, end to end at smoke size; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import specauf
from helpers.copies import first_runs
from specauf_cli.store.speed import SPEED

QUICK = ("--prompts", "1", "--repeats", "1", "--repetitions", "2", "evaluation.max_new_tokens=12")


@pytest.fixture(scope="module")
def folder(table: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke table's runs, for these tests alone."""
    return first_runs(table[0], tmp_path_factory.mktemp("speed"))


def run_of(folder: Path, name: str) -> str:
    return next(f.parent.name for f in folder.glob(f"runs/dflash-{name}-*/finished.json"))


def test_two_drafters_are_timed_and_the_page_is_written_again(folder: Path) -> None:
    runs = [run_of(folder, name) for name in ("decay", "auf")]
    words = ["speed", *QUICK, "--proposals", "3,15", "--batch-sizes", "1,2", "--benchmarks", "offline_algebra"]
    done = specauf(folder, *words, *(w for run in runs for w in ("--run", run)))
    assert [line.split("  ")[1].strip() for line in done.stdout.splitlines()[:4]] == [
        "plain decoding",
        "prompt lookup, 5 to 2 tokens",
        "DFlash decay",
        "DFlash AUF",
    ]
    (path,) = (folder / "runs" / runs[0] / "speed").glob("*.json")
    record = SPEED.load(path)
    assert record.runs == tuple(runs)
    assert record.different == dict.fromkeys(["plain", "lookup", *runs], 0)
    assert {(r.batch_size, r.proposals) for r in record.rounds if r.method == runs[1]} == {
        (b, p) for b in (1, 2) for p in (3, 15)
    }
    assert record.command.startswith(f"specauf speed --run {runs[0]} --run {runs[1]} --benchmarks offline_algebra")
    page = path.with_suffix(".md").read_text()
    assert "batch size 2" in page
    assert "token for token, and the rounds are those of the replay." in page
    again = specauf(folder, "speed", "--record", str(path), "--gpu", "h100", "--target", "qwen3_8b", "--json")
    assert json.loads(again.stdout)["written"] == record.written
    assert path.with_suffix(".md").read_text().startswith(page.rstrip("\n"))
    assert "Qwen3-8B on h100" in path.with_suffix(".md").read_text()
    path.write_text(path.read_text().replace('"method": "plain"', '"method": "nobody"'))
    damaged = specauf(folder, "speed", "--record", str(path), check=False)
    assert "nobody is none of its methods; measure again" in damaged.stderr


def test_the_acceptance_of_a_measured_run(folder: Path) -> None:
    run = run_of(folder, "auf")
    done = specauf(folder, "acceptance", "--run", run).stdout.splitlines()
    assert done[0] == f"runs/{run}/export/speculation_profile.json"
    profile = json.loads((folder / done[0]).read_text())
    assert profile["num_speculative_tokens"] == 15
    assert f"SGLANG_SIMULATE_ACC_LEN={profile['mean_accept_length']:.3f}" in done[1]


def test_the_page_of_baselines_with_prompt_lookup_alone(folder: Path) -> None:
    few = ["profile=smoke", "evaluation.prompts=1", "evaluation.temperatures=[0.0]", "evaluation.max_new_tokens=12"]
    first = specauf(folder, "table", "baselines", "--only", "lookup", *few)
    assert "| plain decoding | 1.00" in first.stdout
    assert "| DFlash AUF | – |" in first.stdout
    assert (folder / "runs/tables/smoke-baselines.md").is_file()
    again = specauf(folder, "table", "baselines", "--only", "lookup", *few)
    assert "prompt lookup: measured already" in again.stderr
    assert again.stdout == first.stdout


def test_a_run_that_is_named_twice_is_one_clear_line(folder: Path) -> None:
    run = run_of(folder, "auf")
    done = specauf(folder, "speed", "--run", run, "--run", run, check=False)
    assert done.stderr.splitlines() == [f"specauf: --run {run} is there twice; --repeats times it more often"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["speed", "--run", "nope"], "no run 'nope'"),
        (["speed", "--gpu", "h10", "--target", "qwen3_8b"], "Did you mean 'h100'?"),
        (["speed", "--gpu", "h100"], "--gpu and --target belong together"),
        (["speed", "--gpu", "h100", "--target", "qwen3_9b"], "Did you mean 'qwen3_8b'?"),
        (["speed", "--ratio", "0"], "R is a positive number"),
        (["speed", "--ratio", "nan"], "R is a positive number"),
        (["speed", "--lookup", "5"], "the longest and the shortest n-gram, as in 5,2"),
        (["speed", "--lookup", "2,5"], "1 <= shortest <= longest"),
        (["speed", "--batch-sizes", "1,1"], "give different counts from 1 on"),
        (["speed", "--batch-sizes", "two"], "give whole numbers separated by commas"),
        (["speed", "--proposals", "0"], "give different counts from 1 on"),
        (["speed", "--proposals", "16"], "the drafters propose 15 at most"),
        (["speed", "--prompts", "0"], "--prompts 0 must be at least 1"),
        (["speed", "--record", "nothing.json"], "cannot read nothing.json"),
        (["speed", "--record", "runs/tables/smoke.json"], "is not a record of specauf speed"),
        (["speed", "--record", "x.json", "profile=smoke"], "leave --run and settings out"),
        (["acceptance", "--temperature", "0.5"], "has no round at T = 0.5; measured: T = 0, 1"),
        (["table", "baselines", "--only", "lokup"], "Did you mean 'lookup'?"),
        (["train", "-m", "experiment=baselines"], "has several backbones; specauf table baselines"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, words: list[str], says: str) -> None:
    done = specauf(folder, *words, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("specauf:")]
    assert done.returncode != 0
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
