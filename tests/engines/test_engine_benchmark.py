"""What `make engine` starts: its cases, their commands, and the environment with the plugin."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.engine import case as cases
from benchmarks.engine import environment
from benchmarks.engine.case import Case, command, load_cases
from benchmarks.engine.plugin.specauf_vllm_cpu import LEFT_OUT, VERSION, WORKAROUNDS, chosen
from specauf_cli.errors import InputError
from specauf_cli.store.layout import export_of

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


def test_workarounds_are_chosen_by_name() -> None:
    assert chosen("") == list(WORKAROUNDS)
    assert chosen("k_norm, temperature") == []
    assert chosen("k_norm") == ["temperature"]
    with pytest.raises(ValueError, match="SPECAUF_VLLM_WITHOUT=k_nrm: k_nrm is none of temperature, k_norm"):
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
    assert "ValueError: SPECAUF_VLLM_WITHOUT=all: all is none of temperature, k_norm" in wrong.stderr
