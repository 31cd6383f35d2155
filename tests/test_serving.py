"""Evaluation by a running server, against servers that speak SGLang's and vLLM's protocols: well, slowly, dying and lying."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engines
from commands import ENV, Done, specauf
from engines import VLLM, SGLang, running, trace
from specauf_cli import compose
from specauf_cli.arguments import with_benchmarks
from specauf_cli.data.chat import Chat
from specauf_cli.evaluation import backends, client, metrics, server, trajectories
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.models.target import Target
from specauf_cli.schema import InputError, Trace, Trajectory

TOKENS = 20
SETTINGS = ["profile=smoke", "evaluation.prompts=4", f"evaluation.max_new_tokens={TOKENS}", "target=tiny"]
CHOSEN = "offline_algebra,offline_chat"
DRAFTER = "/models/drafter"
Known = dict[float, dict[str, list[Trajectory]]]

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.fixture(scope="module")
def known(target: Target) -> Known:
    """The target's own answers to the prompts that the commands here ask, per temperature and benchmark; chat has two turns."""
    chosen = load_benchmarks(with_benchmarks(compose.compose(SETTINGS), CHOSEN))
    assert max(len(p.turns) for s in chosen for p in s.prompts) > 1
    return {
        t: {
            s.name: list(
                trajectories.generate(
                    target, s.prompts, temperature=t, seed=0, max_new_tokens=TOKENS, tail=16, batch_size=32
                ).trajectories
            )
            for s in chosen
        }
        for t in (0.0, 1.0)
    }


@pytest.fixture
def folder(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to work in, with the target's tokenizer under ``model``."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(server, "SETTLE", 0.3)
    chat.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)  # what lies there is a folder and no model of the hub
    return tmp_path


@pytest.fixture
def sglang(chat: Chat, known: Known, folder: Path) -> SGLang:
    return SGLang(chat, {t: [x for r in found.values() for x in r] for t, found in known.items()}, "model", DRAFTER)


@pytest.fixture
def make_vllm(chat: Chat, known: Known, folder: Path) -> Callable[[bool], VLLM]:
    flat = {t: [x for r in found.values() for x in r] for t, found in known.items()}
    return lambda per_request: VLLM(chat, flat, "model", DRAFTER, per_request=per_request)


def ask(folder: Path, engine: engines.Engine, *words: str, check: bool = True, on: str | None = None) -> Done:
    """The command against ``engine``, T=0 unless told otherwise, one retry."""
    backend = "sglang" if isinstance(engine, SGLang) else "vllm"
    temperatures = [] if any("temperatures" in w for w in words) else ["evaluation.temperatures=[0.0]"]
    with running(engine) as url:
        return specauf(
            folder, "eval", "--backend", backend, "--base-url", on or url, "--benchmarks", CHOSEN, "--retries", "1",
            *SETTINGS, "target.path=model", *temperatures, *words, check=check,
        )  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    (path,) = (p for p in folder.glob("runs/servers/*/*.json"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def lines(folder: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in folder.glob("runs/servers/*/answers.jsonl"))


def traces(known: Known, temperature: float, name: str) -> list[Trace]:
    return [trace(t) for t in known[temperature][name]]


def printed(text: str, title: str, temperature: float) -> float:
    found = re.search(rf"{re.escape(title)} +T={temperature:g} +tau +([\d.]+)", text)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize("concurrency", [1, 5])
@pytest.mark.parametrize("kind", ["sglang", "per request", "counters"])
def test_tau_is_what_the_rounds_say(
    folder: Path, known: Known, sglang: SGLang, make_vllm: Callable[[bool], VLLM], kind: str, concurrency: int
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(kind == "per request")
    definition = "engine" if kind == "sglang" else "pooled"
    words = ["--concurrency", str(concurrency), "evaluation.temperatures=[0.0,1.0]"]
    done = ask(folder, engine, *words)
    found = record(folder)
    for b in found["benchmarks"]:
        own = metrics.terms(traces(known, b["temperature"], b["benchmark"]), definition)
        expected = sum(a for a, _ in own.values()) / sum(b for _, b in own.values())
        counted = server.tau_terms(found["definition"], b)
        assert sum(a for a, _ in counted.values()) / sum(b for _, b in counted.values()) == pytest.approx(expected)
        assert printed(done.stdout, b["title"], b["temperature"]) == pytest.approx(expected, abs=6e-4)
        assert server.histogram(b) == metrics.histogram(traces(known, b["temperature"], b["benchmark"]))
        if kind != "counters" or concurrency == 1:
            assert counted == {k: pytest.approx(v) for k, v in own.items()}
    pooled = kind == "counters" and concurrency > 1
    assert ("±" in done.stdout) != pooled
    assert ("no interval" in done.stdout) == pooled
    assert found["definition"] == ("sglang" if kind == "sglang" else "vllm")
    assert f"tau ({found['definition']}: " in done.stdout
    assert engine.asked == sum(len(b["requests"]) for b in found["benchmarks"])


def test_a_record_holds_what_is_needed_and_nothing_private(folder: Path, sglang: SGLang) -> None:
    ask(folder, sglang)
    found = record(folder)
    assert found["server"]["name"] == "model"
    assert found["server"]["drafter"] == DRAFTER
    assert found["server"]["flags"]["speculative_num_draft_tokens"] == 16
    assert found["server"]["tokenizer"] == "cuts the first prompt as the target's"
    assert found["command"].startswith(
        f"specauf eval --backend sglang --base-url URL --benchmarks {CHOSEN} profile=smoke"
    )
    assert found["code"].keys() >= {"commit", "dirty"}
    assert len(found["inputs"]["prompts of offline_chat"]) == 64
    text = json.dumps(found)
    for private in ("sesame", "10.0.0.7", "30000", str(folder), "127.0.0.1"):
        assert private not in text


def test_greedy_settings_and_stop_tokens_are_sent(folder: Path, sglang: SGLang, chat: Chat) -> None:
    ask(folder, sglang)
    params = sglang.bodies[-1]["sampling_params"]
    assert params["temperature"] == 0.0
    assert params["stop_token_ids"] == sorted(chat.stop_ids)
    assert params["max_new_tokens"] == TOKENS


def test_a_second_call_asks_nothing_and_changes_nothing(folder: Path, sglang: SGLang) -> None:
    first = ask(folder, sglang).stdout
    asked, before = sglang.asked, record(folder)
    again = ask(folder, sglang)  # another port, another random_seed: the same server, started again
    assert sglang.asked == asked
    assert record(folder) == before
    assert again.stdout == first
    ask(folder, sglang, "evaluation.prompts=2", check=False)
    assert sglang.asked == asked, "fewer prompts are among those that were answered"


@pytest.mark.parametrize(
    ("kind", "way"), [("sglang", "reset"), ("sglang", 500), ("sglang", "<html>busy</html>"), ("counters", "reset")]
)
def test_a_server_that_dies_loses_nothing(
    folder: Path, known: Known, sglang: SGLang, make_vllm: Callable[[bool], VLLM], kind: str, way: Any
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(False)
    whole = len(known[0.0]["offline_algebra"]) + len(known[0.0]["offline_chat"])
    engine.fault = lambda number, answer: answer if number < 5 else way
    died = ask(folder, engine, "--concurrency", "2", check=False)
    assert died.returncode == 2
    assert "Traceback" not in died.stderr
    assert len(died.stderr.strip().splitlines()[-1]) < 400
    kept = int(re.search(r"(\d+) answers are kept; run the same command to continue", died.stderr)[1])  # type: ignore[index]
    assert kept == (5 if kind == "sglang" else 4)
    assert not list(folder.glob("runs/servers/*/????????.json"))
    asked = engine.asked
    engine.fault = lambda _, answer: answer
    done = ask(folder, engine, "--concurrency", "2")
    assert engine.asked - asked == whole - kept
    own = traces(known, 0.0, "offline_chat")
    expected = metrics.tau(own, "engine" if kind == "sglang" else "pooled")
    assert printed(done.stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("kind", ["sglang", "counters"])
def test_a_slow_answer_is_asked_again(
    folder: Path, known: Known, sglang: SGLang, make_vllm: Callable[[bool], VLLM], kind: str
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(False)
    engine.fault = lambda number, answer: ("slow", 1.0, answer) if number == 2 else answer
    done = ask(folder, engine, "--timeout", "0.7", "--concurrency", "1")
    own = traces(known, 0.0, "offline_algebra")
    expected = metrics.tau(own, "engine" if kind == "sglang" else "pooled")
    assert printed(done.stdout, "Algebra (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_a_server_that_never_answers_in_time_is_said(folder: Path, sglang: SGLang) -> None:
    sglang.fault = lambda _, answer: ("slow", 0.3, answer)
    done = ask(folder, sglang, "--timeout", "0.1", "--concurrency", "1", check=False)
    assert "no answer in 0.1 s (--timeout); tried 2 times; 0 answers are kept" in done.stderr


def meta(answer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The answer with other counts; None leaves one out."""
    changed = {k: v for k, v in (answer["meta_info"] | changes).items() if v is not None}
    return {**answer, "meta_info": changed}


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda a: meta(a, spec_verify_ct=None), "has no meta_info.spec_verify_ct: the server decoded it without a drafter"),
        (lambda a: meta(a, spec_verify_ct=0), "has spec_verify_ct=0 for"),
        (lambda a: meta(a, spec_verify_ct=99), "more rounds than its"),
        (lambda a: meta(a, spec_verify_ct=-1), "spec_verify_ct=-1, a count was expected"),
        (lambda a: meta(a, spec_verify_ct="3"), "spec_verify_ct='3', a count was expected"),
        (lambda a: meta(a, spec_verify_ct=1, completion_tokens=TOKENS, spec_accept_length=None), "in 1 rounds, at most 16"),
        (lambda a: meta(a, spec_accept_length=14.5), "spec_accept_length=14.5, but"),
        (lambda a: meta(a, completion_tokens=500), "asked were 1..20"),
        (lambda a: meta(a, completion_tokens=None), "has no completion_tokens"),
        (lambda a: meta(a, finish_reason={"type": "abort", "message": "out of memory"}), "was aborted"),
        (lambda a: {"text": "", "output_ids": [3]}, "has no meta_info"),
        (lambda a: [a], "where SGLang gives an object"),
        (lambda a: {k: v for k, v in a.items() if k == "meta_info"}, "neither output_ids nor text"),
        (lambda a: "not json", "not JSON"),
        (lambda a: 400, "refused with 400: no such thing"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_is_refused(
    sglang: SGLang, known: Known, lie: Callable[[Any], Any], says: str
) -> None:
    sglang.fault = lambda _, answer: lie(answer)
    with running(sglang) as url:
        backend = backends.SGLang(client.Client(url, timeout=5.0, retries=0), [2])
        backend.served()
        prompt = known[0.0]["offline_algebra"][0].prompt
        with pytest.raises(InputError, match=re.escape(says)):
            backend.ask(prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)


def test_a_lie_is_one_line_and_the_other_answers_stay(folder: Path, sglang: SGLang) -> None:
    sglang.fault = lambda number, answer: meta(answer, spec_verify_ct=99) if number >= 3 else answer
    done = ask(folder, sglang, "--concurrency", "1", check=False)
    assert done.returncode == 2
    assert "more rounds than its" in done.stderr
    assert "3 answers are kept; run the same command to continue" in done.stderr
    assert lines(folder) == 3


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
        (lambda a: {**a, "usage": {"completion_tokens": 99}}, "asked were 1..20"),
        (lambda a: {**a, "usage": {"completion_tokens": 9, "prompt_tokens": 3}}, "counts 3 prompt tokens, sent were"),
        (lambda a: {**a, "choices": []}, "has no single choice"),
        (lambda a: {"choices": a["choices"]}, "has no usage"),
        (lambda a: {**a, "choices": [{"finish_reason": "stop"}]}, "neither token_ids nor text"),
    ],
)
def test_a_vllm_answer_that_cannot_be_is_refused(
    make_vllm: Callable[[bool], VLLM], known: Known, lie: Callable[[Any], Any], says: str
) -> None:
    engine = make_vllm(True)
    engine.fault = lambda _, answer: lie(answer)
    with running(engine) as url:
        backend = backends.VLLM(client.Client(url, timeout=5.0, retries=0), [2])
        backend.served()
        with pytest.raises(InputError, match=re.escape(says)):
            backend.ask(known[0.0]["offline_algebra"][0].prompt, temperature=0.0, seed=0, max_new_tokens=TOKENS)


def test_counters_that_cannot_be_are_refused(folder: Path, make_vllm: Callable[[bool], VLLM]) -> None:
    engine = make_vllm(False)

    def inflate(number: int, answer: Any) -> Any:
        engine.totals["drafts"] += 1000
        return answer

    engine.fault = inflate
    assert "which cannot be; 0 answers are kept" in ask(folder, engine, check=False).stderr


def test_text_stands_in_where_there_are_no_tokens(folder: Path, known: Known, sglang: SGLang) -> None:
    sglang.fault = lambda _, answer: {k: v for k, v in answer.items() if k != "output_ids"}
    expected = metrics.tau(traces(known, 0.0, "offline_chat"))
    assert printed(ask(folder, sglang).stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({"model": "Qwen/Qwen3-4B"}, [], "serves Qwen/Qwen3-4B, expected was the target model"),
        ({"model": "other"}, ["--served-model", "othr"], "Did you mean 'other'?"),
        ({"model": "other", "drafter": "d1", "tokenizes": False}, ["--served-model", "other", "--served-drafter", "d1"], ""),
        ({"drafter": "d2"}, ["--served-drafter", "d1"], "drafts with d2, not 'd1'"),
        ({"info": {"vocab_size": 100}}, [], "serves a model of 100 tokens"),
    ],
)  # fmt: skip
def test_who_serves_is_checked(
    folder: Path, sglang: SGLang, change: dict[str, Any], words: list[str], says: str
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
def test_a_server_that_cannot_be_measured_says_why(sglang: SGLang, info: dict[str, Any], says: str) -> None:
    sglang.info, sglang.model = info, sglang.model if "model_path" not in info else ""
    with running(sglang) as url, pytest.raises(InputError, match=re.escape(says)):
        backends.SGLang(client.Client(url, timeout=5.0, retries=0), [2]).served()


def test_another_tokenizer_is_refused(folder: Path, sglang: SGLang) -> None:
    other = Chat.build(["quite another text, with other pairs of letters, over and over, over and over again"] * 9, 300)
    sglang.chat = other
    done = ask(folder, sglang, check=False)
    assert "the target's tokenizer into" in done.stderr
    assert done.returncode == 2


def test_vllm_without_a_drafter_is_one_line(folder: Path, make_vllm: Callable[[bool], VLLM]) -> None:
    engine = make_vllm(False)
    engine.spec = False
    done = ask(folder, engine, check=False)
    assert done.returncode == 2
    assert "it decodes without a drafter or with --disable-log-stats, and there is no tau" in done.stderr


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "draft_sample_method": "probabilistic"}, "samples its drafts"),
        ({"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "rejection_sample_method": "synthetic"}, "would not emit"),
        (None, "no speculative_config"),
        ({"method": "dflash", "model": DRAFTER, "num_speculative_tokens": 15, "draft_sample_method": "greedy"}, ""),
    ],
)  # fmt: skip
def test_vllm_in_developer_mode_is_checked(
    folder: Path, make_vllm: Callable[[bool], VLLM], config: Any, says: str
) -> None:
    engine = make_vllm(True)
    engine.info = {
        "vllm_config": {"model_config": {"model": "model", "dtype": "bfloat16"}, "speculative_config": config}
    }
    done = ask(folder, engine, check=False)
    assert says in done.stderr
    assert done.returncode == (2 if says else 0)
    if not says:
        assert record(folder)["server"]["drafter"] == DRAFTER
        assert "does not say which drafter" not in done.stderr


def test_requests_of_others_are_noticed(folder: Path, make_vllm: Callable[[bool], VLLM]) -> None:
    engine = make_vllm(False)

    def other(number: int, answer: Any) -> Any:
        engine.totals["success"] += number == 3
        engine.totals["drafts"] += 5 * (number == 3)
        return answer

    engine.fault = other
    done = ask(folder, engine, "--concurrency", "1", check=False)
    assert "finished 2 requests while 1 were asked here: others use it too" in done.stderr
    assert "3 answers are kept" in done.stderr


def test_counters_that_restart_are_asked_again(folder: Path, known: Known, make_vllm: Callable[[bool], VLLM]) -> None:
    engine = make_vllm(False)

    def restart(number: int, answer: Any) -> Any:
        if number == 2:
            engine.totals = {**dict.fromkeys(engine.totals, 0), "success": 100}
            engine.slots = [0] * len(engine.slots)
        return answer

    engine.fault = restart
    done = ask(folder, engine, "--concurrency", "1")
    expected = metrics.tau(traces(known, 0.0, "offline_algebra"), "pooled")
    assert printed(done.stdout, "Algebra (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_waves_of_another_choice_of_prompts_are_not_mixed(
    folder: Path, known: Known, make_vllm: Callable[[bool], VLLM]
) -> None:
    engine = make_vllm(False)
    ask(folder, engine, "--concurrency", "4")
    ask(folder, engine, "--concurrency", "1", "evaluation.prompts=1")
    asked = engine.asked
    done = ask(folder, engine, "--concurrency", "4")
    assert engine.asked > asked, "a wave whose prompts were counted again since says nothing alone"
    expected = metrics.tau(traces(known, 0.0, "offline_chat"), "pooled")
    assert printed(done.stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_a_torn_line_is_left_out_and_asked_again(folder: Path, sglang: SGLang) -> None:
    first = ask(folder, sglang).stdout
    (path,) = folder.glob("runs/servers/*/answers.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    asked = sglang.asked
    again = ask(folder, sglang)
    assert sglang.asked == asked + 1
    assert "1 torn lines left out" in again.stderr
    assert again.stdout == first
    assert "torn" in ask(folder, sglang).stderr


def test_another_drafter_is_another_record(folder: Path, sglang: SGLang) -> None:
    ask(folder, sglang)
    sglang.drafter = "/models/another"
    asked = sglang.asked
    ask(folder, sglang)
    assert sglang.asked == 2 * asked
    assert len(list(folder.glob("runs/servers/*/*.json"))) == 2


def test_another_drafter_at_the_same_path_is_another_record(folder: Path, sglang: SGLang) -> None:
    sglang.drafter = "export"
    (folder / "export").mkdir()
    for weights in ("one", "two"):
        (folder / "export" / "model.safetensors").write_text(weights)
        ask(folder, sglang)
    found = [json.loads(p.read_text()) for p in folder.glob("runs/servers/*/*.json")]
    assert len({r["inputs"]["drafter"] for r in found}) == len(found) == 2


def test_ctrl_c_keeps_what_was_answered(folder: Path, known: Known, sglang: SGLang) -> None:
    sglang.fault = lambda number, answer: ("slow", 0.05 if number < 4 else 30.0, answer)
    with running(sglang) as url:
        words = [
            "eval",
            "--backend",
            "sglang",
            "--base-url",
            url,
            "--benchmarks",
            CHOSEN,
            *SETTINGS,
            "target.path=model",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "specauf_cli", *words, "evaluation.temperatures=[0.0]"], cwd=folder, env=ENV,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(600):
            time.sleep(0.05)
            if lines(folder) == 4 and sglang.asked > 4:
                break
        began = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert time.perf_counter() - began < 10, "requests under way are not waited for"
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "run the same command to continue" in said
    asked = sglang.asked
    sglang.fault = lambda _, answer: answer
    ask(folder, sglang)
    assert sglang.asked - asked == sum(map(len, known[0.0].values())) - 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "sglang"], "--base-url URL: a server needs both"),
        (["--base-url", "http://127.0.0.1:1"], "--backend sglang|vllm"),
        (["--served-model", "m"], "--base-url URL: a server needs both"),
        (["--backend", "sglnag", "--base-url", "http://127.0.0.1:1"], "Did you mean 'sglang'?"),
        (["--backend", "sglang", "--base-url", "127.0.0.1:30000"], "give http://HOST:PORT"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--concurrency", "0"], "valid: 1..1024"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--timeout", "0"], "--timeout 0"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--mode", "decode"], "--mode: not with --backend"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "evaluation.drafts=sampled", "target=tiny"], "only greedy drafts"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "target=tiny"], "is trained here; name the run"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1"], "no finished run here"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--retries", "0", "target.path=model"], "Connection refused; tried 1 times"),
        (["--backend", "sglang", "--base-url", "http://127.0.0.1:1", "target.path=nowhere"], "'nowhere' cannot be loaded"),
    ],
)  # fmt: skip
def test_bad_words_are_one_line(folder: Path, words: list[str], says: str) -> None:
    done = specauf(folder, "eval", *words, "profile=smoke", check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def make_run(folder: Path) -> Callable[..., str]:
    """A finished run's folder, for commands that read only what it says of itself."""

    def make(*overrides: str) -> str:
        words = ["profile=smoke", "target.path=model", *overrides]
        config = compose.compose([*words, "runs=runs"])
        name = f"{config.backbone.name}-{config.objective.name}-x"
        place = folder / "runs" / name
        (place / "drafter").mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (place / "drafter" / file).write_text("{}")
        about = {
            "run": name, "overrides": words, "config": config.resolved, "inputs": {"target": "f" * 40}, "data": {"name": "offline"},
            "code": {"commit": None, "dirty": None}, "command": "specauf train",
        }  # fmt: skip
        (place / "run.json").write_text(json.dumps(about))
        done = {"last": {"step": 1}, "seconds": 1.0, "peak_memory_mib": 1.0}
        (place / "finished.json").write_text(json.dumps(done))
        return name

    return make


def test_a_run_expects_its_own_drafter(folder: Path, sglang: SGLang, make_run: Callable[..., str]) -> None:
    name = make_run()
    words = ["--backend", "sglang", "--benchmarks", CHOSEN, *SETTINGS[1:3], "evaluation.temperatures=[0.0]"]
    with running(sglang) as url:
        wrong = specauf(folder, "eval", *words, "--base-url", url, "--run", name, check=False)
        assert f"drafts with {DRAFTER}, expected was runs/{name}/export/hf" in wrong.stderr
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
    assert first == f"specauf export --run {name} --format hf --out runs/{name}/export/hf"
    words = shlex.split(second)
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", "model"]
    assert words[words.index("--speculative-algorithm") + 1] == "DFLASH"
    assert words[words.index("--speculative-draft-model-path") + 1] == f"runs/{name}/export/hf"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "16"
    assert "--speculative-domino-candidate-pool-size" not in words
    (tmp_path / "my export").mkdir()
    (only,) = specauf(folder, "serve-command", "--backend", "vllm", "--drafter", "my export").stdout.splitlines()
    words = shlex.split(only)
    assert words[:3] == ["vllm", "serve", "model"]
    spec = json.loads(words[words.index("--speculative-config") + 1])
    assert spec == {"method": "dflash", "model": "my export", "num_speculative_tokens": 15}
    missing = specauf(folder, "serve-command", "--drafter", "nothing", check=False)
    assert "--drafter nothing: there is no such folder" in missing.stderr
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
    assert words[words.index("--model-path") + 1] == "runs/targets/tiny-b"
    assert "--revision" not in words
    asked = ["eval", "--backend", "sglang", "--base-url", "http://127.0.0.1:1", "--retries", "0"]
    assert "Connection refused" in specauf(folder, *asked, check=False).stderr


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


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment must not be asked for a server on this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def test_the_address_is_judged() -> None:
    assert client.checked("http://localhost:8000/v1/") == "http://localhost:8000"
    for wrong in ("localhost:8000", "ftp://x", "http://", "http://x:y", "http://user:secret@x", "http://x?a=b"):
        with pytest.raises(InputError, match="give http://HOST:PORT"):
            client.checked(wrong)
