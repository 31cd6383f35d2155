"""Jobs of a table in several processes and by a launcher: each once, failures named, stopping saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.commands import ENV, specauf
from helpers.synthetic import constant
from specauf_cli.config import compose
from specauf_cli.config.specs import VariantRow
from specauf_cli.errors import InputError
from specauf_cli.store import layout
from specauf_cli.store.records import load_record, save_record
from specauf_cli.study import executors
from specauf_cli.study.executors import Cluster, Here, Workers, outcome_path, runner
from specauf_cli.study.jobs import Job

SMOKE = compose.compose(["profile=smoke"])
JOBS = [
    Job("t", None, "dflash", objective, seed, ("profile=smoke",), SMOKE)  # a worker process composes it itself
    for seed in (0, 1)
    for objective in ("auf", "decay")
]
STUB = """
import json, os, sys, time
for line in sys.stdin:
    words = json.loads(line)
    with open("asked", "a") as file: file.write(json.dumps([os.getpid(), words]) + "\\n")
    print("working on", words[-2], file=sys.stderr, flush=True)
    time.sleep(0.2)
    if "objective=decay" in words and "seed=0" in words: print(json.dumps({"failed": "no such thing"}), flush=True)
    elif "objective=decay" in words: os.kill(os.getpid(), 9)
    else: print(json.dumps({"record": os.environ["RECORD"]}), flush=True)
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Worker processes that answer at once: AUF has a record, decay fails with seed 0 and dies with seed 1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    record = constant("auf", {"gsm8k": "GSM8K"}, 1)
    monkeypatch.setenv("RECORD", str(save_record(record, tmp_path)))
    started: list[list[str]] = []
    real = subprocess.Popen

    def popen(words: list[str], **more: object) -> subprocess.Popen[str]:
        started.append(words[3:])
        code = STUB if words[3] == "worker" else ""
        return real([sys.executable, "-c", code], **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(executors.subprocess, "Popen", popen)
    return started


def test_every_job_is_filled_once_and_failures_are_named(
    stub: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = dict(Workers(2).run(JOBS))
    auf, decay = ([job for job in JOBS if job.objective == name] for name in ("auf", "decay"))
    assert [getattr(outcome[c], "objective", None) for c in auf] == ["auf", "auf"]
    assert [outcome[c] for c in decay] == ["no such thing", "its process ended by signal 9"]
    asked = [json.loads(line) for line in Path("asked").read_text().splitlines()]
    assert sorted(words for _, words in asked) == sorted(job.words for job in JOBS)
    assert len({pid for pid, _ in asked}) >= 2
    assert stub[0] == ["target", *JOBS[0].words], "the target first, and alone"
    assert "working on objective=auf" in capsys.readouterr().err


def test_a_target_that_cannot_be_made_stops_the_table(stub: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InputError, match="the target could not be made"):
        list(Workers(2).run(JOBS))


def test_leaving_early_stops_the_workers(stub: list[list[str]]) -> None:
    filling = Workers(2).run([*JOBS] * 5)
    next(filling)
    filling.close()
    count = len(Path("asked").read_text().splitlines())
    time.sleep(0.5)
    assert len(Path("asked").read_text().splitlines()) == count < 20


def test_who_runs_the_jobs_depends_on_launcher_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def chosen(workers: int, launcher: str | None = None, jobs: int = 9) -> object:
        return runner(replace(SMOKE, workers=workers), launcher, jobs)

    assert isinstance(chosen(8, launcher="slurm"), Cluster)
    assert isinstance(chosen(1), Here)
    assert isinstance(chosen(8, jobs=1), Here)
    counts = [workers.count for workers in (chosen(8), chosen(3), chosen(8, jobs=2)) if isinstance(workers, Workers)]
    assert counts == [4, 3, 2]


def test_one_worker_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.subprocess, "Popen", lambda *_, **__: pytest.fail("a process"))
    monkeypatch.setattr(executors.Worker, "fill", lambda *_, **__: (constant("auf", {"gsm8k": ""}, 1), Path()))
    assert len(list(runner(replace(SMOKE, workers=1, together=False), None, 4).run(JOBS))) == 4


def test_jobs_of_a_seed_are_trained_in_one_pass_and_a_failure_is_said_once(
    table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = table
    monkeypatch.chdir(folder)
    settings = ("profile=smoke", "trainer.steps=7", "evaluation.prompts=1", "benchmark=offline_algebra")
    jobs = [Job.composed("t", None, "dflash", o, s, settings) for s in (0, 1) for o in ("auf", "decay", "full_ce")]
    passes: list[list[str]] = []
    real = executors.Session.train_together

    def train(session: object, some: Sequence[tuple[executors.Config, Sequence[str]]], **more: bool) -> list[object]:
        passes.append([f"{c.objective.name} {c.seed}" for c, _ in some])
        bad = [c.objective.name == "decay" for c, _ in some]
        good = [x for x, b in zip(some, bad, strict=True) if not b]
        rest = iter(real(session, good, **more))  # type: ignore[arg-type]
        return [InputError("loss nan") if b else next(rest) for b in bad]

    monkeypatch.setattr(executors.Session, "train_together", train)
    outcome = dict(Here(together=True).run(jobs))
    assert passes[0] == ["auf 0", "decay 0", "full_ce 0"]
    assert [p for p in passes if len(p) > 1] == [passes[0], ["auf 1", "decay 1", "full_ce 1"]]
    assert not any("decay" in p for some in passes for p in some if len(some) == 1), "a failed job is not tried again"
    assert {c.objective for c in jobs if outcome[c] == "loss nan"} == {"decay"}
    assert {getattr(outcome[c], "objective", None) for c in jobs} == {"auf", "full_ce", None}


def test_what_stops_a_pass_is_said_of_the_job_it_belongs_to(
    table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = table
    monkeypatch.chdir(folder)
    few = ("profile=smoke", "trainer.steps=7", "evaluation.prompts=1", "benchmark=offline_algebra")
    jobs = [
        Job.composed("t", None, "dflash", objective, 2, (*few, *more))
        for objective, more in (("auf", ()), ("decay", ("init=no_such_run",)))
    ]
    outcome = dict(Here(together=True).run(jobs))
    assert getattr(outcome[jobs[0]], "objective", None) == "auf"
    assert "no run 'no_such_run'" in str(outcome[jobs[1]])


def test_a_sweep_runs_in_processes_of_the_local_launcher(table: tuple[Path, str]) -> None:
    """A drafter trained and measured in a process of its own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder, _ = table
    few = ["profile=smoke", "trainer.steps=6", "evaluation.prompts=1", "benchmark=offline_algebra"]
    done = specauf(
        folder, "train", "--eval", "-m", *few, "objective=auf", "seed=5", "hydra/launcher=local", check=False
    )
    assert done.returncode == 0, done.stderr
    finished = [f for f in (folder / "runs").glob("dflash-*-s5-*") if (f / "finished.json").is_file()]
    assert [f.name.split("-")[1] for f in finished] == ["auf"]
    assert [len(r.benchmarks) for r in layout.measured(finished[0])] == [2]
    assert len(list((folder / "runs/.submitit").rglob("*_log.out"))) == 1


def test_jobs_of_a_launcher_leave_their_outcome_behind(
    table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same through Hydra's own launcher, which runs the jobs here: what ``make table LAUNCHER=...`` reads
    afterwards."""
    folder, _ = table
    monkeypatch.chdir(folder)
    settings = ("profile=smoke", "trainer.steps=6", "evaluation.prompts=1", "benchmark=offline_algebra")
    jobs = [Job.composed("t", None, "dflash", o, 0, settings) for o in ("auf", "decay")]
    real = executors.Worker.fill

    def fill(self: executors.Worker, config: executors.Config, overrides: Sequence[str]) -> object:
        if config.objective.name == "decay":
            raise InputError("the disk is full")
        return real(self, config, overrides)

    monkeypatch.setattr(executors.Worker, "fill", fill)
    outcome = dict(Cluster("basic", Path("runs")).run(jobs))
    assert getattr(outcome[jobs[0]], "objective", None) == "auf"
    assert outcome[jobs[1]] == "the disk is full"
    (place,) = Path("runs/jobs").glob("dflash-auf-s0-*.json")
    assert load_record(Path(json.loads(place.read_text())["record"])).objective == "auf"


def test_a_launcher_gets_the_settings_of_every_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: executors.Worker, config: executors.Config, overrides: Sequence[str]) -> object:
        raise InputError(f"{config.objective.name} for {config.trainer.steps} steps")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executors.Worker, "fill", fill)
    jobs = {
        Job.composed("page", str(n), "dflash", o, 0, ("profile=smoke", f"trainer.steps={n}")): f"{o} for {n} steps"
        for n in (4, 5)
        for o in ("auf", "decay")
    }
    assert dict(Cluster("basic", Path("runs")).run(list(jobs))) == jobs


def test_a_launcher_gets_the_name_and_title_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: executors.Worker, config: executors.Config, overrides: Sequence[str]) -> object:
        raise InputError(f"{config.objective.name}: {config.objective.title}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executors.Worker, "fill", fill)
    rows = (
        VariantRow("decay", 'decay, "steep" {1}', name="decay_1", settings=("objective.base.gamma=1",)),
        VariantRow("decay", "decay, gamma 2", name="decay_2", settings=("objective.base.gamma=2",)),
    )
    jobs = {
        Job.composed("page", "b16", "dflash", row.objective, 0, ("profile=smoke", *row.overrides)): row for row in rows
    }
    outcomes = dict(Cluster("basic", Path("runs")).run(list(jobs)))
    assert outcomes == {job: f"{row.name}: {row.title}" for job, row in jobs.items()}


def test_a_stopped_table_tells_its_workers_to_save(table: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = table
    real = subprocess.Popen

    def popen(words: list[str], **more: object) -> subprocess.Popen[str]:
        there = words[3] == "target"  # its process would only find that
        command = [sys.executable, "-c", ""] if there else words
        return real(command, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(executors.subprocess, "Popen", popen)
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])

    def logs() -> set[Path]:
        return set(folder.glob("runs/dflash-*/log.jsonl"))

    before = logs()

    def stop() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and sum(p.stat().st_size > 0 for p in logs() - before) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    words = ["table", "table2", "profile=smoke", "workers=2", "trainer.steps=5000", "trainer.log_every=5"]
    done = specauf(folder, *words, check=False)
    assert done.returncode == 130, done.stderr
    stopped = [f.parent for f in logs() - before if (f.parent / "checkpoints").is_dir()]
    assert len(stopped) == 2, done.stderr
    assert all(list((f / "checkpoints").glob("step-*")) for f in stopped), "what the workers had done is saved"
    assert _alive(folder) == []


def _alive(folder: Path) -> list[str]:
    """Worker processes that still run in ``folder``."""
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder) and b"worker" in (process / "cmdline").read_bytes():
                alive.append(process.name)
        except OSError:
            continue
    return alive


def test_a_worker_that_cannot_be_started_fails_its_jobs(stub: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    real = executors.subprocess.Popen

    def popen(words: list[str], **more: object) -> subprocess.Popen[str]:
        if words[3] == "worker":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(words, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(executors.subprocess, "Popen", popen)
    outcome = dict(Workers(2).run(JOBS))
    assert set(outcome.values()) == {"its process could not be started: Resource temporarily unavailable"}


def test_two_sweeps_in_one_queue_leave_their_outcomes_in_different_places() -> None:
    places = {
        outcome_path(compose.compose(["profile=smoke", *more]))
        for more in ([], ["trainer.steps=5"], ["evaluation.prompts=1"], ["seed=1"])
    }
    assert len(places) == 4
    assert outcome_path(compose.compose(JOBS[0].words)) == outcome_path(compose.compose([*JOBS[0].words][::-1]))
