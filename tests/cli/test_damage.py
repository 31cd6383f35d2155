"""Files under runs/ that are not what they claim to be: one line that names the file, and nothing is overwritten."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import ENV, specauf
from specauf_cli.errors import InputError
from specauf_cli.session import Session
from specauf_cli.store.files import lock

TRAIN = ("train", "objective=auf", "profile=smoke")


@pytest.fixture
def here(table: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished smoke runs of AUF and decay with their target, to be damaged."""
    for objective in ("auf", "decay"):
        for source in table[0].glob(f"runs/dflash-{objective}-tiny-smoke-s0-*"):
            about = json.loads((source / "run.json").read_text())
            if about["config"]["trainer"]["steps"] == 24 and (source / "records").is_dir():
                copied = shutil.copytree(source, tmp_path / "runs" / source.name)
                first, *later = sorted(
                    (copied / "records").iterdir(), key=lambda p: str(json.loads(p.read_text())["written"])
                )
                assert first
                for record in later:  # of other tests
                    record.unlink()
                break
    for marker in table[0].glob("runs/targets/*/specauf.json"):
        if json.loads(marker.read_text())["fingerprint"] == about["inputs"]["target"]:
            shutil.copytree(marker.parent, tmp_path / "runs" / "targets" / marker.parent.name)
    shutil.copytree(table[0] / "runs" / "trajectories", tmp_path / "runs" / "trajectories")
    return tmp_path


def run_of(here: Path, objective: str) -> Path:
    return next(f.parent for f in here.glob(f"runs/dflash-{objective}-tiny-smoke-*/records"))


def refused(here: Path, *words: str) -> str:
    done = specauf(here, *words, check=False)
    lines = [x for x in done.stderr.splitlines() if x.startswith("specauf:")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return lines[-1]


def test_swapped_or_renamed_runs(here: Path) -> None:
    one, other = run_of(here, "auf"), run_of(here, "decay")
    names = one.name, other.name
    one.rename(here / "runs/x")
    other.rename(here / "runs" / names[0])
    assert f"holds the run {names[1]}" in refused(here, "eval", "--run", names[0])
    assert f"holds the run {names[0]}" in refused(here, "eval", "--run", "x")
    assert "x  damaged" in specauf(here, "ls").stdout


def test_weights_of_another_run_or_altered(here: Path) -> None:
    one, other = run_of(here, "auf"), run_of(here, "decay")
    short = ("eval", "--run", one.name, "evaluation.max_new_tokens=4", "--benchmarks", "offline_chat")
    weights = one / "drafter/model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes((other / "drafter/model.safetensors").read_bytes())
    assert "not what was saved" in refused(here, *short)
    weights.write_bytes(original[:-4] + bytes(4))
    assert "not what was saved" in refused(here, *short)
    shutil.rmtree(one / "drafter")
    shutil.copytree(other / "drafter", one / "drafter")
    assert f"its run is {other.name}" in refused(here, *short)


def test_an_altered_target(here: Path) -> None:
    (weights,) = here.glob("runs/targets/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-10] ^= 255
    weights.write_bytes(bytes(content))
    assert "its weights, sizes or tokenizer were altered" in refused(here, "eval", "evaluation.max_new_tokens=4")
    content[-10] ^= 255
    weights.write_bytes(bytes(content))
    sizes = weights.with_name("config.json")
    original = sizes.read_text()
    sizes.write_text(original.replace('"rope_theta": 10000.0', '"rope_theta": 3.0'))
    assert sizes.read_text() != original
    assert "its weights, sizes or tokenizer were altered" in refused(here, "eval", "evaluation.max_new_tokens=4")
    sizes.write_text(original)
    marker = weights.with_name("specauf.json")
    marker.write_text("[]")
    assert "is damaged" in refused(here, "eval", "evaluation.max_new_tokens=4")


def test_a_run_that_is_trained_anew_while_it_is_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run_of(here, "auf")
    before = sorted((one / "records").iterdir())
    measured = Session._evaluate

    def and_meanwhile(*given: Any) -> Any:
        found = measured(*given)
        finished = json.loads((one / "finished.json").read_text())
        (one / "finished.json").write_text(json.dumps({**finished, "seconds": finished["seconds"] + 1}))
        return found

    monkeypatch.setattr(Session, "_evaluate", and_meanwhile)
    chosen = ("--benchmarks", "offline_chat", "evaluation.max_new_tokens=4")
    assert "was trained anew while it was measured" in refused(here, "eval", "--run", one.name, *chosen)
    assert sorted((one / "records").iterdir()) == before


def test_records_of_another_run_or_renamed(here: Path) -> None:
    one, other = run_of(here, "auf"), run_of(here, "decay")
    foreign = next((other / "records").iterdir())
    copied = Path(shutil.copy(foreign, one / "records" / foreign.name))
    assert f"is a record of {other.name}" in refused(here, "compare", one.name, other.name)
    (own,) = [p for p in (one / "records").iterdir() if p != copied]
    copied.unlink()
    written = json.loads(own.read_text())
    text = own.read_text()
    for change in (
        {"benchmarks": []},
        {"training": {}},
        {"heldout": {}},
        {"written": 5},
        {"benchmarks": [{**written["benchmarks"][0], "traces": []}]},
    ):
        own.write_text(json.dumps({**written, **change}))
        assert "delete it and measure again" in refused(here, "show", one.name)
    listed = specauf(here, "ls").stdout
    assert f"{one.name}  damaged record: " in listed
    assert other.name in listed
    own.write_text(text.replace('"accepted": [', '"accepted": [-5, ', 1))
    assert "impossible rounds" in refused(here, "compare", one.name, other.name)
    own.write_text(text)
    copied = Path(shutil.copy(foreign, one / "records" / foreign.name))
    copied.rename(one / "records" / "mine.json")
    assert "it was renamed or altered" in refused(here, "compare", one.name, other.name)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe\x00"])
def test_damaged_files_of_a_run(here: Path, content: bytes) -> None:
    one, other = run_of(here, "auf"), run_of(here, "decay")
    for name in ("finished.json", "run.json", "drafter/config.json", "log.jsonl"):
        original = (one / name).read_bytes()
        (one / name).write_bytes(content)
        if name == "finished.json":
            assert "damaged" in refused(here, *TRAIN)
        if not name.startswith(("drafter", "log")):
            assert f"{one.name}  damaged" in specauf(here, "ls").stdout
            assert "damaged" in refused(here, "show", one.name)
        assert name.split("/")[-1] in refused(here, "eval", "--run", one.name, "evaluation.max_new_tokens=4")
        if content == b"[]" and name in ("run.json", "drafter/config.json"):
            both = specauf(
                here, "eval", "--all-runs", "--benchmarks", "offline_chat", "evaluation.prompts=1", check=False
            )
            assert both.returncode == 2
            assert "1 of 2 runs were not measured" in both.stderr
            assert other.name in both.stdout
            shutil.rmtree(other / "records")
        (one / name).write_bytes(original)


def test_other_prompts_under_the_same_settings_overwrite_nothing(here: Path) -> None:
    one = run_of(here, "auf")
    (here / "benchmarks").mkdir()
    file, words = here / "benchmarks/gsm8k.jsonl", ("eval", "--run", one.name, "--benchmarks", "gsm8k")
    words = (*words, f"benchmark_root={here / 'benchmarks'}", "evaluation.max_new_tokens=4", "evaluation.prompts=2")
    before = set((one / "records").iterdir())
    for text in ("one", "two"):
        file.write_text(
            "".join(json.dumps({"id": str(i), "turns": [f"Question {text} {i}?"]}) + "\n" for i in range(2))
        )
        if text == "one":
            specauf(here, *words)
            (made,) = set((one / "records").iterdir()) - before
            content = made.read_bytes()
        else:
            assert "was measured with other prompts of gsm8k" in refused(here, *words)
    assert made.read_bytes() == content


def test_force_moves_the_old_run_aside(here: Path) -> None:
    words = (*TRAIN, "trainer.steps=2", "seed=4")
    name = specauf(here, *words).stdout.strip()
    weights = (here / name / "drafter/model.safetensors").read_bytes()
    again = specauf(here, *words)
    assert "finished already" in again.stderr
    for number in (1, 2):
        forced = specauf(here, *words, "--force")
        aside = here / "runs" / "aside" / f"{Path(name).name}.{number}"
        assert f"moved to runs/aside/{aside.name}" in forced.stderr
        assert (aside / "drafter/model.safetensors").read_bytes() == weights
        assert (here / name / "drafter/model.safetensors").read_bytes() == weights, "the same command, the same weights"
    assert "aside" not in specauf(here, "ls").stdout


def test_one_process_at_a_time_trains_a_run(here: Path) -> None:
    name = specauf(here, *TRAIN, "trainer.steps=2", "seed=3").stdout.strip()
    (here / name / "finished.json").unlink()
    with lock(here / name, "it"):
        said = refused(here, *TRAIN, "trainer.steps=2", "seed=3")
        assert f"is in use by process {os.getpid()} on " in said
        with pytest.raises(InputError, match="it is in use"), lock(here / name, "it"):
            pass
    specauf(here, *TRAIN, "trainer.steps=2", "seed=3")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_measuring_is_one_line(here: Path, number: int, code: int) -> None:
    words = ["eval", "evaluation.mode=decode", "evaluation.audit=0", "evaluation.max_new_tokens=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "specauf_cli", *words], cwd=here, env=ENV, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "6 benchmarks" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait(timeout=30) == code
    assert said.splitlines()[-1].startswith("specauf: stopped; nothing that was saved is lost")
    assert "Traceback" not in said


def test_a_damaged_run_that_is_passed_over_is_said(here: Path) -> None:
    newest = max((run_of(here, o) for o in ("auf", "decay")), key=lambda f: (f / "finished.json").stat().st_mtime_ns)
    (newest / "run.json").write_text('{"run": ')
    done = specauf(here, "eval", "--benchmarks", "offline_chat", "evaluation.prompts=1", "evaluation.audit=0")
    assert f"passed over, damaged: {newest.name}" in done.stderr
    assert newest.name not in done.stdout


def test_an_ascii_terminal_still_shows_the_result(here: Path) -> None:
    done = specauf(here, "show", run_of(here, "auf").name, encoding="ascii")
    assert "average" in done.stdout


def test_a_file_in_place_of_the_runs_is_said(here: Path) -> None:
    (here / "file").touch()
    for words in (("ls",), TRAIN):
        assert "runs=file is a file" in refused(here, *words, "runs=file")


def broken(here: Path, name: str, text: str) -> Path:
    path = next((run_of(here, "auf") / "records").iterdir()) if name == "record" else run_of(here, "auf") / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["run.json", "record", "finished.json", "log.jsonl"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' + "1" * 5000 + "}"])
def test_a_file_that_no_parser_survives_is_damage_of_one_run(here: Path, name: str, text: str) -> None:
    broken(here, name, text)
    listed = specauf(here, "ls")
    assert len(listed.stdout.splitlines()) == 2
    shown = specauf(here, "show", run_of(here, "auf").name, check=False)
    assert "internal error" not in shown.stderr
    assert shown.returncode == (0 if name == "log.jsonl" else 2)


@pytest.mark.parametrize("name", ["run.json", "record", ".lock"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(here: Path, name: str) -> None:
    run = run_of(here, "auf")
    path = broken(here, name, "") if name != ".lock" else run / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name == ".lock":
        (run / "finished.json").unlink()
    assert len(specauf(here, "ls").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("seed",), [1]),
        (("benchmarks", 0, "title"), None),
        (("benchmarks", 0, "temperature"), "x"),
        (("benchmarks", 0, "temperature"), float("nan")),
        (("benchmarks", 0, "traces", 0, "tokens"), 10**400),
        (("benchmarks", 0, "traces", 0, "prompt_id"), [1]),
        (("benchmarks", 0, "skipped"), 5),
        (("heldout", "valid"), "x"),
        (("benchmarks", 0, "audit", "requests"), "x"),
        (("heldout", "id_valid"), [float("nan")]),
    ],
)
def test_a_record_with_values_of_another_kind_is_named(here: Path, keys: tuple[str | int, ...], value: object) -> None:
    path = next((run_of(here, "auf") / "records").iterdir())
    whole = json.loads(path.read_text())
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(whole))
    assert f"records/{path.name} is not a complete run record" in refused(here, "show", run_of(here, "auf").name)


def test_a_read_only_folder_still_gives_its_finished_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", denied)
    about = json.loads((run_of(here, "auf") / "run.json").read_text())
    words = [w for w in about["overrides"] if not w.startswith("runs=")]
    assert specauf(here, "train", *words).stdout.strip().endswith(run_of(here, "auf").name)
