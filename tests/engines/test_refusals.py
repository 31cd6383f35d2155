"""Servers that lie, are others, or work for others: refused in one line."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Done, specauf
from helpers.engines import CHOSEN, DRAFTER, SETTINGS, TOKENS, FakeSGLang, FakeVLLM, Known, ask, lines, record, running
from specauf_cli.data.chat import Chat
from specauf_cli.engines import client
from specauf_cli.engines.sglang import SGLang
from specauf_cli.engines.vllm import VLLM
from specauf_cli.errors import InputError

pytestmark = pytest.mark.usefixtures("composed_once")


def meta(answer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The answer with other counts; None leaves one out."""
    changed = {k: v for k, v in (answer["meta_info"] | changes).items() if v is not None}
    return {**answer, "meta_info": changed}


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (
            lambda a: meta(a, spec_verify_ct=None),
            "has no meta_info.spec_verify_ct: the server decoded it without a drafter",
        ),
        (lambda a: meta(a, spec_verify_ct=0), "has spec_verify_ct=0 for"),
        (lambda a: meta(a, spec_verify_ct=99), "more rounds than its"),
        (lambda a: meta(a, spec_verify_ct=-1), "spec_verify_ct=-1, a count was expected"),
        (lambda a: meta(a, spec_verify_ct="3"), "spec_verify_ct='3', a count was expected"),
        (
            lambda a: meta(a, spec_verify_ct=1, completion_tokens=TOKENS, spec_accept_length=None),
            "in 1 rounds, at most 16",
        ),
        (lambda a: meta(a, spec_accept_length=14.5), "spec_accept_length=14.5, but"),
        (lambda a: meta(a, completion_tokens=500), "valid: 1..20"),
        (lambda a: meta(a, completion_tokens=None), "has no completion_tokens"),
        (lambda a: meta(a, finish_reason={"type": "abort", "message": "out of memory"}), "was aborted"),
        (lambda a: {"text": "", "output_ids": [3]}, "has no meta_info"),
        (lambda a: [a], "where SGLang gives an object"),
        (lambda a: {k: v for k, v in a.items() if k == "meta_info"}, "neither output_ids nor text"),
        (lambda a: "not json", "not JSON"),
        (lambda a: 400, "refused with 400: no such thing"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(
    sglang: FakeSGLang, known: Known, lie: Callable[[Any], Any], says: str
) -> None:
    sglang.fault = lambda _, answer: lie(answer)
    with running(sglang) as url:
        backend = SGLang(client.Client(url, timeout=5.0, retries=0), [2])
        backend.served()
        prompt = known[0.0]["offline_algebra"][0].prompt
        with pytest.raises(InputError, match=re.escape(says)):
            backend.ask(prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)


def test_a_lie_is_one_line_and_the_other_answers_stay(folder: Path, sglang: FakeSGLang) -> None:
    sglang.fault = lambda number, answer: meta(answer, spec_verify_ct=99) if number >= 3 else answer
    done = ask(folder, sglang, "--concurrency", "1", check=False)
    assert done.returncode == 2
    assert "more rounds than its" in done.stderr
    assert "3 answers are kept; run the same command to continue" in done.stderr
    assert lines(folder) == 3


def test_an_answer_that_drips_is_given_up_in_time(sglang: FakeSGLang, known: Known) -> None:
    sglang.fault = lambda _, answer: ("drip", 0.05, answer)
    with running(sglang) as url:
        backend = SGLang(client.Client(url, timeout=0.5, retries=0), [2])
        began = time.perf_counter()
        with pytest.raises(client.Unanswered, match=r"no answer in 0\.5 s \(--timeout\); tried 1 times"):
            backend.ask(known[0.0]["offline_algebra"][0].prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)
        assert time.perf_counter() - began < 2


def test_headers_that_drip_are_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200:
                    connection.send(bytes([byte]))
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.perf_counter()
        asked = client.Client(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5, retries=0)
        with pytest.raises(client.Unanswered, match="no answer in 0\\.5 s"):
            asked.first("/version")
        assert time.perf_counter() - began < 2


def test_a_redirection_is_not_followed(folder: Path, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM]) -> None:
    elsewhere = make_vllm(True)
    with running(elsewhere) as other:
        sglang.fault = lambda _, answer: ("moved", f"{other}/generate")
        done = ask(folder, sglang, check=False)
    assert (
        f"/generate redirects to '{other}/generate' (307), and only the address that was given is asked" in done.stderr
    )
    assert done.returncode == 2
    assert elsewhere.bodies == []


@pytest.mark.parametrize("size", [2 * 2**20, 2**40])
def test_an_answer_without_end_is_not_read(
    sglang: FakeSGLang, known: Known, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(client, "LARGEST", 2**20)
    sglang.fault = lambda _, answer: ("large", size)
    with running(sglang) as url:
        backend = SGLang(client.Client(url, timeout=5.0, retries=3), [2])
        with pytest.raises(InputError, match="/generate answers with more than 1 MiB; is it an SGLang or vLLM server"):
            backend.ask(known[0.0]["offline_algebra"][0].prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)
    assert sglang.asked == 1


def own(answer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A vLLM answer whose own counts are others; None leaves one out."""
    counts = {k: v for k, v in (answer["metrics"]["speculative_decoding"] | changes).items() if v is not None}
    return {**answer, "metrics": {"speculative_decoding": counts}}


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda a: own(a, num_spec_steps=None), "has no num_spec_steps"),
        (lambda a: own(a, num_spec_steps=99), "counts 99 steps"),
        (lambda a: own(a, num_accepted_draft_tokens=10**4), "counts"),
        (lambda a: own(a, mean_acceptance_length=14.0), "has mean_acceptance_length=14.0, but"),
        (lambda a: {**a, "usage": {"completion_tokens": 99}}, "valid: 1..20"),
        (lambda a: {**a, "usage": {"completion_tokens": 9, "prompt_tokens": 3}}, "counts 3 prompt tokens, "),
        (lambda a: {**a, "choices": []}, "has no single choice"),
        (lambda a: {"choices": a["choices"]}, "has no usage"),
        (lambda a: {**a, "choices": [{"finish_reason": "stop"}]}, "neither token_ids nor text"),
    ],
)
def test_a_vllm_answer_that_cannot_be_is_refused(
    make_vllm: Callable[[bool], FakeVLLM], known: Known, lie: Callable[[Any], Any], says: str
) -> None:
    engine = make_vllm(True)
    engine.fault = lambda _, answer: lie(answer)
    with running(engine) as url:
        backend = VLLM(client.Client(url, timeout=5.0, retries=0), [2])
        backend.served()
        with pytest.raises(InputError, match=re.escape(says)):
            backend.ask(known[0.0]["offline_algebra"][0].prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)


def test_counters_that_cannot_be_are_refused(folder: Path, make_vllm: Callable[[bool], FakeVLLM]) -> None:
    engine = make_vllm(False)

    def inflate(number: int, answer: Any) -> Any:
        engine.totals["drafts"] += 1000
        return answer

    engine.fault = inflate
    assert "which cannot be; 0 answers are kept" in ask(folder, engine, check=False).stderr


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({"model": "Qwen/Qwen3-4B"}, [], "serves Qwen/Qwen3-4B, not the target model"),
        ({"model": "other"}, ["--served-model", "othr"], "Did you mean 'other'?"),
        (
            {"model": "other", "drafter": "d1", "tokenizes": False},
            ["--served-model", "other", "--served-drafter", "d1"],
            "",
        ),
        ({"drafter": "d2"}, ["--served-drafter", "d1"], "drafts with d2, not 'd1'"),
        ({"info": {"vocab_size": 100}}, [], "serves a model of 100 tokens"),
    ],
)
def test_who_serves_is_checked(
    folder: Path, sglang: FakeSGLang, change: dict[str, Any], words: list[str], says: str
) -> None:
    for name, value in change.items():
        setattr(sglang, name, value)
    done = ask(folder, sglang, *words, check=False)
    assert done.returncode == (2 if says else 0), done.stderr
    assert says in done.stderr
    assert says == "" or sglang.asked == 0


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"speculative_algorithm": None}, "decodes without a drafter (its speculative_algorithm is not set)"),
        ({"speculative_use_rejection_sampling": True}, "samples its drafts"),
        ({"speculative_accept_threshold_single": 0.5}, "accepts tokens the target would not emit"),
        ({"model_path": None, "served_model_name": None}, "names no model_path"),
    ],
)
def test_a_server_that_cannot_be_measured_says_why(sglang: FakeSGLang, info: dict[str, Any], says: str) -> None:
    sglang.info, sglang.model = info, sglang.model if "model_path" not in info else ""
    with running(sglang) as url, pytest.raises(InputError, match=re.escape(says)):
        SGLang(client.Client(url, timeout=5.0, retries=0), [2]).served()


def test_another_tokenizer_is_refused(folder: Path, sglang: FakeSGLang) -> None:
    other = Chat.build(["quite another text, with other pairs of letters, over and over, over and over again"] * 9, 300)
    sglang.chat = other
    done = ask(folder, sglang, check=False)
    assert "the target's tokenizer into" in done.stderr
    assert done.returncode == 2


def test_vllm_without_a_drafter_is_one_line(folder: Path, make_vllm: Callable[[bool], FakeVLLM]) -> None:
    engine = make_vllm(False)
    engine.spec = False
    done = ask(folder, engine, check=False)
    assert done.returncode == 2
    assert "it decodes without a drafter or with --disable-log-stats, and there is no tau" in done.stderr


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {
                "method": "dflash",
                "model": DRAFTER,
                "num_speculative_tokens": 15,
                "draft_sample_method": "probabilistic",
            },
            "samples its drafts",
        ),
        (
            {
                "method": "dflash",
                "model": DRAFTER,
                "num_speculative_tokens": 15,
                "rejection_sample_method": "synthetic",
            },
            "would not emit",
        ),
        (
            {"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "rejection_sample_method": "typical"},
            "would not emit",
        ),
        (
            {"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "rejection_sample_method": "block"},
            "verifies blocks as a whole and so accepts more tokens of the same drafter "
            "(rejection_sample_method=block); valid: standard, strict",
        ),
        (
            {"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "rejection_sample_method": "entropy"},
            "a rule that is unknown here",
        ),
        (
            {
                "method": "dflash",
                "model": DRAFTER,
                "num_speculative_tokens": 15,
                "num_speculative_tokens_per_batch_size": [[1, 4, 15]],
            },
            "drafts more or fewer tokens depending on its load",
        ),
        (None, "no speculative_config"),
        ("SpeculativeConfig(method='dflash')", "no speculative_config"),
        (
            {
                "method": "dflash",
                "model": DRAFTER,
                "num_speculative_tokens": 15,
                "draft_sample_method": "greedy",
                "rejection_sample_method": "standard",
            },
            "",
        ),
    ],
)
def test_vllm_in_developer_mode_is_checked(
    folder: Path, make_vllm: Callable[[bool], FakeVLLM], config: Any, says: str
) -> None:
    engine = make_vllm(True)
    engine.info = {
        "vllm_config": {
            "model_config": {"model": "model", "dtype": "torch.float32"},
            "cache_config": "CacheConfig()",
            "speculative_config": config,
        }
    }
    done = ask(folder, engine, check=False)
    assert says in done.stderr
    assert done.returncode == (2 if says else 0)
    if not says:
        assert record(folder)["server"]["drafter"] == DRAFTER.rpartition("/")[2]
        assert record(folder)["server"]["verification"] == "standard"
        assert record(folder)["unchecked"] == ["drafter", "proposals"]
        assert "does not say" not in done.stderr
        assert "does not name" not in done.stderr


def test_what_vllm_tells_outside_developer_mode_is_checked(
    folder: Path, make_vllm: Callable[[bool], FakeVLLM], make_run: Callable[..., str]
) -> None:
    name, engine = make_run(), make_vllm(True)
    done = of_run(folder, engine, name)
    assert "does not report its drafter, dtype, verification; a vLLM in developer mode does" in done.stderr
    assert record(folder)["unchecked"] == ["drafter", "dtype", "verification"]
    assert record(folder)["server"]["proposals"] == 15, "its counters have as many slots"
    engine.slots = [0] * 7
    assert f"drafts 7 tokens a round, run {name} 15: restart it with num_speculative_tokens 15" in (
        of_run(folder, engine, name, check=False).stderr
    )


def of_run(folder: Path, engine: FakeSGLang | FakeVLLM, name: str, *words: str, check: bool = True) -> Done:
    """The command for the drafter of a run, T=0."""
    backend = "sglang" if isinstance(engine, FakeSGLang) else "vllm"
    with running(engine) as url:
        return specauf(
            folder,
            "eval",
            "--backend",
            backend,
            "--base-url",
            url,
            "--run",
            name,
            "--benchmarks",
            CHOSEN,
            *SETTINGS[1:3],
            "evaluation.temperatures=[0.0]",
            *words,
            check=check,
        )


@pytest.mark.parametrize(
    ("info", "words", "says"),
    [
        (
            {"dtype": "bfloat16"},
            [],
            "runs the target in bfloat16, the settings say evaluation.precision=fp32: restart it with --dtype float32, "
            "or measure in that precision: evaluation.precision=bf16",
        ),
        (
            {"dtype": "half"},
            [],
            "runs the target in float16, the settings say evaluation.precision=fp32: restart it with --dtype float32",
        ),
        ({"dtype": "bfloat16"}, ["evaluation.precision=bf16"], ""),
        ({"dtype": "float"}, [], ""),
        (
            {"dtype": "float32"},
            ["evaluation.precision=bf16"],
            "restart it with --dtype bfloat16, or measure in that precision: evaluation.precision=fp32",
        ),
        (
            {"speculative_num_draft_tokens": 8},
            [],
            "drafts 7 tokens a round, run NAME 15: restart it with --speculative-num-draft-tokens 16",
        ),
        ({"speculative_algorithm": "EAGLE3"}, [], "drafts by EAGLE3, the drafter of run NAME by DFLASH"),
    ],
)
def test_other_settings_than_the_runs_are_refused(
    folder: Path, sglang: FakeSGLang, make_run: Callable[..., str], info: dict[str, Any], words: list[str], says: str
) -> None:
    name = make_run()
    sglang.drafter, sglang.info = f"runs/{name}/drafter", info
    done = of_run(folder, sglang, name, *words, check=False)
    assert done.returncode == (2 if says else 0), done.stderr
    assert says.replace("NAME", name) in done.stderr
    if says:
        assert done.stderr.count("\n") == 1
        assert sglang.bodies == [], "nothing is generated before"
    else:
        assert record(folder)["unchecked"] == []
        assert "not checked" not in done.stderr


def test_a_dtype_that_is_not_told_is_said(folder: Path, sglang: FakeSGLang, make_run: Callable[..., str]) -> None:
    name = make_run()
    sglang.drafter, sglang.info = f"runs/{name}/drafter", {"dtype": "auto"}
    assert "note: not checked, because http" in of_run(folder, sglang, name).stderr
    assert record(folder)["unchecked"] == ["dtype"]


def test_without_a_run_the_dtype_is_compared(folder: Path, sglang: FakeSGLang) -> None:
    sglang.info = {"dtype": "bfloat16", "speculative_num_draft_tokens": 16}
    assert "or measure in that precision: evaluation.precision=bf16" in ask(folder, sglang, check=False).stderr
    done = ask(folder, sglang, "evaluation.precision=bf16")
    assert "note: not checked, because no run is given to compare with: drafter, proposals" in done.stderr


def test_requests_of_others_are_noticed(folder: Path, make_vllm: Callable[[bool], FakeVLLM]) -> None:
    engine = make_vllm(False)

    def other(number: int, answer: Any) -> Any:
        engine.totals["success"] += number == 3
        engine.totals["drafts"] += 5 * (number == 3)
        return answer

    engine.fault = other
    done = ask(folder, engine, "--concurrency", "1", check=False)
    assert "finished 2 requests while 1 were asked here: others use it too" in done.stderr
    assert "3 answers are kept" in done.stderr
