"""``make bench``: one script after another, and what every record says beside its numbers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import all as bench
from benchmarks import goals, records
from benchmarks.all import SCRIPTS, Script
from specauf_cli.errors import InputError
from specauf_cli.store import provenance
from specauf_cli.store.provenance import Watch

BUSY = "import time\nwhile time.process_time() < {}: pass"
"""So many seconds of a processor, however long they take."""
COUNTED = pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not count processors' time")


@pytest.mark.slow  # it trains the drafters that the script measures
def test_a_script_that_fails_is_named_and_the_next_ones_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Script("benchmarks.no_such_script")
    left_out = Script("benchmarks.step", lacks=lambda _: "no such package")
    chosen = {"missing": missing, "step": left_out, "draws": SCRIPTS["draws"]}
    monkeypatch.setattr(bench, "SCRIPTS", chosen)
    assert bench.main(["--small", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert "make bench: missing failed, the next ones run: " in said
    assert "make bench: step is left out: no such package" in said
    assert "make bench: failed: missing\n" in said
    record = json.loads((tmp_path / "draws.json").read_text())
    assert {"command", "date", "environment", "code", "load"} <= set(record)
    assert set(record["code"]) - {"changes"} == {"version", "commit", "dirty"}  # changes: of a tree that has some
    assert set(record["load"]) == {"before", "after", "others", "alone"}
    page = (tmp_path / "README.md").read_text()
    assert page.count("[draws.json](draws.json)") == 1
    assert "[step.json](step.json)" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "stp"), "unknown benchmark 'stp'; valid: step, peers, .*Did you mean 'step'"),
        (("--small",), "--small measures nothing: give --out DIR"),
        (("--python", "sglang=python"), "--python sglang=python: give PEER=INTERPRETER"),
        (("--python", "python"), "give PEER=INTERPRETER"),
        (("--only", "peers", "--python", "specforge=/no/python"), "there is no such interpreter"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import re

    more = () if words == ("--small",) else ("--out", str(tmp_path))
    assert bench.main([*words, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line


@pytest.mark.skipif(importlib.util.find_spec("specforge") is not None, reason="it is installed here")
def test_what_needs_packages_that_are_not_there_is_left_out_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--only", "peers", "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "peers is left out" in line
    assert "specforge not installed; name an interpreter that has it: --python" in line


def test_every_script_is_in_the_driver_and_has_a_goal() -> None:
    files = {path.stem for path in goals.FOLDER.glob("*.py")}
    assert files - {"all", "goals", "family_table", "records", "gpu", "attention"} == set(SCRIPTS) - {"engine"}
    kept = {path.name for path in goals.FOLDER.glob("*.json")}
    assert kept <= {goal.record.partition("#")[0] for goal in goals.GOALS}
    assert {f"{name}.json" for name in SCRIPTS} <= {goal.record for goal in goals.GOALS}


# --- what a record says ---


@COUNTED
def test_work_of_others_is_told_from_ones_own() -> None:
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", BUSY.format(30)]) as other:  # not waited for, so not our own
        time.sleep(1.5)
        load = watch.load()
        other.kill()
    assert load.others is not None
    assert load.others > provenance.OTHERS
    assert not load.alone


@COUNTED
def test_a_child_that_was_waited_for_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where nothing else is busy."""
    own = provenance._own_seconds
    begin = own()
    monkeypatch.setattr(provenance, "_busy_seconds", lambda: 100.0 + own() - begin)
    watch = Watch()
    subprocess.run([sys.executable, "-c", BUSY.format(0.5)], check=True)
    assert own() - begin > 0.3
    load = watch.load()
    assert load.others == 0
    assert load.alone


def test_where_processors_are_not_counted_the_load_average_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_busy_seconds", lambda: None)
    for average, alone in ((0.4, True), (0.6, False)):
        monkeypatch.setattr(provenance.os, "getloadavg", lambda average=average: (average, 0.0, 0.0))
        load = Watch().load()
        assert (load.before, load.others, load.alone) == (average, None, alone)


def test_a_process_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """The child of the child writes a file unless it is ended too."""
    late = tmp_path / "late"
    inner = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    begin = time.monotonic()
    ran = records.run([sys.executable, "-c", outer], seconds=1.0)
    assert (ran.code, time.monotonic() - begin < 3) == (None, True)
    assert "its time was up after 1 s" in ran.reason
    time.sleep(3)
    assert not late.exists()


def test_a_cell_that_fails_says_why() -> None:
    with pytest.raises(InputError, match=r"python -m benchmarks\.plan --steps x: exit status 2: .*invalid int value"):
        records.cell("benchmarks.plan", ["--steps", "x"])


def test_code_that_changed_meanwhile_is_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"version": "1", "commit": "a", "dirty": False}, {"version": "1", "commit": "b", "dirty": False}]
    monkeypatch.setattr(records, "code_state", lambda _: states.pop(0))
    assert records.Measurement("x").record("cpu", 1)["code"] == {"version": "1", "commit": "a", "dirty": True}


@pytest.mark.parametrize(("known", "named"), [(None, "given"), ("a", "a")])
def test_a_copy_without_history_is_of_the_commit_that_is_given(
    known: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "code_state", lambda _: {"version": "1", "commit": known, "dirty": None})
    code = records.Measurement("x", "given").record("cpu", 1)["code"]
    assert code == {"version": "1", "commit": named, "dirty": None}
