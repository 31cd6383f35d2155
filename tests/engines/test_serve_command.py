"""The words of eval --backend and of serve-command."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.commands import specauf
from helpers.engines import (
    CHOSEN,
    DRAFTER,
    SETTINGS,
    FakeSGLang,
    record,
    running,
)
from specauf_cli.data.chat import Chat

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "sglang"], "--base-url URL: a server needs both"),
        (["--base-url", "http://127.0.0.1:1"], "--backend sglang|vllm"),
        (["--served-model", "m"], "--base-url URL: a server needs both"),
        (["--concurrency", "2"], "--base-url URL: a server needs both"),
        (["--backend", "sglnag", "--base-url", "http://127.0.0.1:1"], "Did you mean 'sglang'?"),
        (["--backend", "sglang", "--base-url", "127.0.0.1:30000"], "give http://HOST:PORT"),
        (["--backend", "sglang", "--base-url", "http://127.0..1:1", "target.path=model"], "give http://HOST:PORT"),
        (["--backend", "sglang", "--base-url", "http://my host:1", "target.path=model"], "give http://HOST:PORT"),
        (
            ["--backend", "sglang", "--base-url", "http://127.0.0.1:1/\u00e4", "target.path=model"],
            "give http://HOST:PORT",
        ),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--concurrency", "0"], "valid: 1..1024"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--timeout", "0"], "--timeout 0"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--mode", "decode"], "--mode: not with --backend"),
        (
            ["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "evaluation.drafts=sampled", "target=tiny"],
            "only greedy drafts",
        ),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "target=tiny"], "is trained here; name the run"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1"], "no finished run here"),
        (
            ["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--retries", "0", "target.path=model"],
            "Connection refused; tried 1 times",
        ),
        (
            ["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "target.path=nowhere"],
            "'nowhere' cannot be loaded",
        ),
    ],
)
def test_bad_words_are_one_line(folder: Path, words: list[str], says: str) -> None:
    done = specauf(folder, "eval", *words, "profile=smoke", check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_expects_its_own_drafter(folder: Path, sglang: FakeSGLang, make_run: Callable[..., str]) -> None:
    name = make_run()
    words = ["--backend", "sglang", "--benchmarks", CHOSEN, *SETTINGS[1:3], "evaluation.temperatures=[0.0]"]
    with running(sglang) as url:
        wrong = specauf(folder, "eval", *words, "--base-url", url, "--run", name, check=False)
        assert f"drafts with {DRAFTER}, not with runs/{name}/export/hf" in wrong.stderr
        sglang.drafter = f"runs/{name}/export/hf"
        right = specauf(folder, "eval", *words, "--base-url", f"{url}/v1/")
        assert name in right.stdout
        assert record(folder)["run"] == name
        sglang.drafter = "copy"  # by another name, but the run's own weights
        shutil.copytree(folder / "runs" / name / "drafter", folder / "copy")
        specauf(folder, "eval", *words, "--base-url", url)


def test_serve_command(folder: Path, make_run: Callable[..., str], tmp_path: Path) -> None:
    name = make_run()
    first, second = specauf(folder, "serve-command", "--run", name).stdout.splitlines()
    assert first == f"specauf export --run {name} --format hf --out {folder}/runs/{name}/export/hf"
    words = shlex.split(second)
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", str(folder / "model")]
    assert words[words.index("--dtype") + 1] == "float32"
    assert words[words.index("--speculative-algorithm") + 1] == "DFLASH"
    assert words[words.index("--speculative-draft-model-path") + 1] == f"{folder}/runs/{name}/export/hf"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "16"
    assert "--speculative-domino-candidate-pool-size" not in words
    (tmp_path / "my export").mkdir()
    empty = specauf(folder, "serve-command", "--drafter", "my export", check=False)
    assert "--drafter my export: there is no such folder with config.json" in empty.stderr
    (tmp_path / "my export" / "config.json").write_text("{}")
    (only,) = specauf(folder, "serve-command", "--backend", "vllm", "--drafter", "my export").stdout.splitlines()
    words = shlex.split(only)
    assert words[:4] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", str(folder / "model")]
    spec = json.loads(words[words.index("--speculative-config") + 1])
    assert spec == {"method": "dflash", "model": str(folder / "my export"), "num_speculative_tokens": 15}
    assert words[words.index("--dtype") + 1] == "float32"
    assert words[words.index("--per-request-spec-decode-metrics") + 1] == "summary"
    assert "--served-model-name" not in words
    (tmp_path / "my export" / "config.json").write_text('{"sliding_window_non_causal": false}')
    old = specauf(folder, "serve-command", "--backend", "vllm", "--drafter", "my export", check=False).stderr
    assert "config.json: sliding_window_non_causal must be true, else vLLM runs the block causally" in old
    missing = specauf(folder, "serve-command", "--drafter", "nothing", check=False)
    assert "--drafter nothing: there is no such folder" in missing.stderr
    assert "no run ''" in specauf(folder, "serve-command", "--run", "", check=False).stderr
    assert "Did you mean 'vllm'?" in specauf(folder, "serve-command", "--backend", "vlm", check=False).stderr


def test_the_target_trained_here_is_found(folder: Path, chat: Chat, make_run: Callable[..., str]) -> None:
    name = make_run("target.path=null")
    missing = specauf(folder, "serve-command", check=False)
    assert f"the target of run {name} is not under runs/targets/ any more" in missing.stderr
    for place, fingerprint in (("tiny-a", "e" * 40), ("tiny-b", "f" * 40)):
        chat.save(folder / "runs" / "targets" / place)
        marker = {"fingerprint": fingerprint, "files": {}, "parameters": 1, "vocabulary": 1, "train": {}, "last": {}}
        (folder / "runs" / "targets" / place / "specauf.json").write_text(json.dumps(marker))
    words = shlex.split(specauf(folder, "serve-command").stdout.splitlines()[-1])
    assert words[words.index("--model-path") + 1] == str(folder / "runs" / "targets" / "tiny-b")
    assert "--revision" not in words
    asked = ["eval", "--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--retries", "0"]
    assert "Connection refused" in specauf(folder, *asked, check=False).stderr


@pytest.mark.parametrize("backend", ["sglang", "vllm"])
def test_the_dtype_is_that_of_the_evaluation(folder: Path, make_run: Callable[..., str], backend: str) -> None:
    """The frozen weights may be kept in another one; what replay measures is in the evaluation's."""
    make_run("evaluation.precision=bf16", "target.dtype=fp32")
    dtype = "--dtype {}".format
    assert dtype("bfloat16") in specauf(folder, "serve-command", "--backend", backend).stdout
    other = specauf(folder, "serve-command", "--backend", backend, "evaluation.precision=fp32")
    assert dtype("float32") in other.stdout
    assert other.stderr.splitlines()[-1].endswith(" evaluation.precision=fp32"), "then it is measured so"
    wrong = specauf(folder, "serve-command", "evaluation.precision=bf61", check=False).stderr
    assert "evaluation.precision=bf61: valid: fp32, bf16. Did you mean 'bf16'?" in wrong
    assert "takes no setting but" in specauf(folder, "serve-command", "evaluation.seed=1", check=False).stderr


def test_serve_command_of_a_hub_target_names_the_commit(folder: Path, make_run: Callable[..., str]) -> None:
    make_run("target.path=Qwen/Qwen3-8B", "target.revision=main")
    words = shlex.split(specauf(folder, "serve-command").stdout.splitlines()[-1])
    assert words[words.index("--model-path") + 1] == "Qwen/Qwen3-8B"
    assert words[words.index("--revision") + 1] == "f" * 40


def test_serve_command_of_domino(folder: Path, make_run: Callable[..., str]) -> None:
    name = make_run("backbone=domino", "objective=b_auf", "backbone.proposals=16")
    done = specauf(folder, "serve-command")
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[words.index("--speculative-domino-candidate-pool-size") + 1] == "0"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "16"
    assert "note: sglang drafts 15 tokens a round, evaluation here 16" in done.stderr
    refused = specauf(folder, "serve-command", "--backend", "vllm", check=False)
    assert f"run {name}: vLLM serves no Domino drafter yet (vLLM#46707" in refused.stderr


def test_serve_command_of_medusa_heads(folder: Path, make_run: Callable[..., str]) -> None:
    name = make_run("backbone=medusa", "objective=auf", "target.taps=last", "backbone.proposals=5")
    words = ("serve-command", "--run", name, "--backend", "vllm")
    export, serve = specauf(folder, *words, "target.path=model").stdout.splitlines()
    place = folder / "runs" / name / "export" / "vllm"
    assert export == f"specauf export --run {name} --format vllm --out {place} target.path=model"
    speculative = json.loads(shlex.split(serve)[shlex.split(serve).index("--speculative-config") + 1])
    assert speculative == {"method": "medusa", "model": str(place), "num_speculative_tokens": 5}
    assert "SGLang serves no Medusa heads" in specauf(folder, "serve-command", "--run", name, check=False).stderr
    (folder / "my-dflash").mkdir()
    (folder / "my-dflash" / "config.json").write_text("{}")
    other = specauf(folder, *words, "--drafter", "my-dflash", check=False).stderr
    assert f"{folder / 'my-dflash'}: vLLM takes a drafter with 'dflash' in its path for one of another kind" in other
    name = make_run("backbone=medusa", "objective=decay")
    tapped = specauf(folder, "serve-command", "--run", name, "--backend", "vllm", check=False).stderr
    assert "outputs of tapped layers; train one with target.taps=last" in tapped


def test_a_damaged_run_is_not_served(folder: Path, make_run: Callable[..., str]) -> None:
    path = folder / "runs" / make_run() / "run.json"
    about = json.loads(path.read_text())
    about["config"]["backbone"]["proposals"] = "15"
    path.write_text(json.dumps(about))
    assert "run.json is damaged; move runs/" in specauf(folder, "serve-command", check=False).stderr
