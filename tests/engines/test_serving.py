"""Evaluation by a running server, against servers that speak SGLang's and vLLM's protocols: well, slowly and dying."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import ENV
from helpers.engines import (
    CHOSEN,
    DRAFTER,
    SETTINGS,
    TOKENS,
    FakeSGLang,
    FakeVLLM,
    Known,
    ask,
    lines,
    printed,
    record,
    running,
    traces,
)
from specauf_cli.data.chat import Chat
from specauf_cli.engines import counts
from specauf_cli.evaluation import tau

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.mark.parametrize("concurrency", [1, 5])
@pytest.mark.parametrize("kind", ["sglang", "per request", "counters"])
def test_tau_is_what_the_rounds_say(
    folder: Path, known: Known, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM], kind: str, concurrency: int
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(kind == "per request")
    definition = "engine" if kind == "sglang" else "pooled"
    words = ["--concurrency", str(concurrency), "evaluation.temperatures=[0.0,1.0]"]
    done = ask(folder, engine, *words)
    found = record(folder)
    for b in found["benchmarks"]:
        own = tau.terms(traces(known, b["temperature"], b["benchmark"]), definition)
        expected = sum(a for a, _ in own.values()) / sum(b for _, b in own.values())
        counted = counts.tau_terms(found["definition"], b)
        assert sum(a for a, _ in counted.values()) / sum(b for _, b in counted.values()) == pytest.approx(expected)
        assert printed(done.stdout, b["title"], b["temperature"]) == pytest.approx(expected, abs=6e-4)
        assert counts.histogram(b) == tau.histogram(traces(known, b["temperature"], b["benchmark"]))
        if kind != "counters" or concurrency == 1:
            assert counted == {k: pytest.approx(v) for k, v in own.items()}
    pooled = kind == "counters" and concurrency > 1
    assert ("±" in done.stdout) != pooled
    assert ("no interval" in done.stdout) == pooled
    assert found["definition"] == ("sglang" if kind == "sglang" else "vllm")
    assert f"tau ({found['definition']}: " in done.stdout
    assert engine.asked == sum(len(b["requests"]) for b in found["benchmarks"])


def test_a_record_holds_what_is_needed_and_nothing_private(folder: Path, sglang: FakeSGLang) -> None:
    ask(folder, sglang)
    found = record(folder)
    assert found["server"]["name"] == "model"
    assert found["server"]["drafter"] == DRAFTER.rpartition("/")[2]
    assert found["server"]["flags"]["speculative_num_draft_tokens"] == 16
    assert found["server"]["tokenizer"] == "cuts the first prompt as the target's"
    assert found["command"].startswith(
        f"specauf eval --backend sglang --base-url URL --concurrency 8 --benchmarks {CHOSEN} profile=smoke"
    )
    assert found["concurrency"] == 8
    assert found["config"]["evaluation"]["precision"] == "fp32"
    assert found["unchecked"] == ["drafter", "proposals"], "no run says which they should be"
    assert found["code"].keys() >= {"commit", "dirty"}
    assert len(found["inputs"]["prompts of offline_chat"]) == 64
    text = json.dumps(found)
    for private in ("sesame", "10.0.0.7", "30000", str(folder), "127.0.0.1"):
        assert private not in text


def test_greedy_settings_and_stop_tokens_are_sent(folder: Path, sglang: FakeSGLang, chat: Chat) -> None:
    ask(folder, sglang)
    params = sglang.bodies[-1]["sampling_params"]
    assert params["temperature"] == 0.0
    assert params["stop_token_ids"] == sorted(chat.stop_ids)
    assert params["max_new_tokens"] == TOKENS


def test_a_second_call_asks_nothing_and_changes_nothing(folder: Path, sglang: FakeSGLang) -> None:
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
    folder: Path, known: Known, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM], kind: str, way: Any
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(False)
    whole = len(known[0.0]["offline_algebra"]) + len(known[0.0]["offline_chat"])
    engine.fault = lambda number, answer: answer if number < 5 else way
    died = ask(folder, engine, "--concurrency", "2", check=False)
    assert died.returncode == 2
    assert "Traceback" not in died.stderr
    assert len(died.stderr.strip().splitlines()[-1]) < 400
    (kept_text,) = re.findall(r"(\d+) answers are kept; run the same command to continue", died.stderr)
    kept = int(kept_text)
    assert kept == (5 if kind == "sglang" else 4)
    assert not list(folder.glob("runs/servers/*/????????.json"))
    asked = engine.asked
    engine.fault = lambda _, answer: answer
    done = ask(folder, engine, "--concurrency", "2")
    assert engine.asked - asked == whole - kept
    own = traces(known, 0.0, "offline_chat")
    expected = tau.mean(own, "engine" if kind == "sglang" else "pooled")
    assert printed(done.stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("kind", ["sglang", "counters"])
def test_a_slow_answer_is_asked_again(
    folder: Path, known: Known, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM], kind: str
) -> None:
    engine = sglang if kind == "sglang" else make_vllm(False)
    engine.fault = lambda number, answer: ("slow", 1.0, answer) if number == 2 else answer
    done = ask(folder, engine, "--timeout", "0.7", "--concurrency", "1")
    own = traces(known, 0.0, "offline_algebra")
    expected = tau.mean(own, "engine" if kind == "sglang" else "pooled")
    assert printed(done.stdout, "Algebra (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_a_server_that_never_answers_in_time_is_said(folder: Path, sglang: FakeSGLang) -> None:
    sglang.fault = lambda _, answer: ("slow", 0.3, answer)
    done = ask(folder, sglang, "--timeout", "0.1", "--concurrency", "1", check=False)
    assert "no answer in 0.1 s (--timeout); tried 2 times; 0 answers are kept" in done.stderr


def test_text_stands_in_where_there_are_no_tokens(folder: Path, known: Known, sglang: FakeSGLang) -> None:
    sglang.fault = lambda _, answer: {k: v for k, v in answer.items() if k != "output_ids"}
    expected = tau.mean(traces(known, 0.0, "offline_chat"))
    assert printed(ask(folder, sglang).stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_counters_that_restart_are_asked_again(
    folder: Path, known: Known, make_vllm: Callable[[bool], FakeVLLM]
) -> None:
    engine = make_vllm(False)

    def restart(number: int, answer: Any) -> Any:
        if number == 2:
            engine.totals = {**dict.fromkeys(engine.totals, 0), "success": 100}
            engine.slots = [0] * len(engine.slots)
        return answer

    engine.fault = restart
    done = ask(folder, engine, "--concurrency", "1")
    expected = tau.mean(traces(known, 0.0, "offline_algebra"), "pooled")
    assert printed(done.stdout, "Algebra (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_waves_of_another_choice_of_prompts_are_not_mixed(
    folder: Path, known: Known, make_vllm: Callable[[bool], FakeVLLM]
) -> None:
    engine = make_vllm(False)
    ask(folder, engine, "--concurrency", "4")
    ask(folder, engine, "--concurrency", "4", "evaluation.prompts=1")
    asked = engine.asked
    done = ask(folder, engine, "--concurrency", "4")
    assert engine.asked > asked, "a wave whose prompts were counted again since says nothing alone"
    expected = tau.mean(traces(known, 0.0, "offline_chat"), "pooled")
    assert printed(done.stdout, "Chat (offline)", 0.0) == pytest.approx(expected, abs=6e-4)


def test_a_torn_line_is_left_out_and_asked_again(folder: Path, sglang: FakeSGLang) -> None:
    first = ask(folder, sglang).stdout
    (path,) = folder.glob("runs/servers/*/answers.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    asked = sglang.asked
    again = ask(folder, sglang)
    assert sglang.asked == asked + 1
    assert "1 torn lines left out" in again.stderr
    assert again.stdout == first
    assert "torn" in ask(folder, sglang).stderr


@pytest.mark.parametrize(
    "damage", [{"answer": None}, {"rounds": "3"}, {"completion": -4}, {"tokens": 5}, {"histogram": ["a"]}]
)
def test_an_altered_answer_is_asked_again(folder: Path, sglang: FakeSGLang, damage: dict[str, Any]) -> None:
    first = ask(folder, sglang).stdout
    (path,) = folder.glob("runs/servers/*/answers.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] |= damage if "answer" in damage else {"answer": rows[1]["answer"] | damage}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = sglang.asked
    assert ask(folder, sglang).stdout == first
    assert sglang.asked == asked + 1


def test_a_damaged_record_is_written_anew_from_the_answers(folder: Path, sglang: FakeSGLang) -> None:
    ask(folder, sglang)
    (path,) = folder.glob("runs/servers/*/*.json")
    before, asked = json.loads(path.read_text())["benchmarks"], sglang.asked
    path.write_text("{")
    ask(folder, sglang)
    assert [b["requests"] for b in json.loads(path.read_text())["benchmarks"]] == [b["requests"] for b in before]
    assert sglang.asked == asked


def test_tokens_that_no_vocabulary_holds_are_no_tokens(folder: Path, known: Known, sglang: FakeSGLang) -> None:
    sglang.fault = lambda _, answer: {**answer, "output_ids": [-1, 2**40]}
    ask(folder, sglang)
    assert [len(b["requests"]) for b in record(folder)["benchmarks"]] == [len(f) for f in known[0.0].values()]


def test_another_drafter_is_another_record(folder: Path, sglang: FakeSGLang) -> None:
    ask(folder, sglang)
    sglang.drafter = "/models/another"
    asked = sglang.asked
    ask(folder, sglang)
    assert sglang.asked == 2 * asked
    assert len(list(folder.glob("runs/servers/*/*.json"))) == 2


def test_a_server_that_names_no_drafter_is_known_by_its_start(
    folder: Path, make_vllm: Callable[[bool], FakeVLLM]
) -> None:
    engine = make_vllm(True)
    said = ask(folder, engine).stderr
    assert "does not name its drafter: answers are used again until it is restarted; --served-drafter NAME" in said
    once = engine.asked
    ask(folder, engine)
    assert engine.asked == once, "the same process"
    assert engine.started is not None
    engine.started += 60
    ask(folder, engine)
    assert engine.asked == 2 * once, "started again, it may have another drafter"
    assert len(list(folder.glob("runs/servers/*/*.json"))) == 2
    ask(folder, engine, "--served-drafter", "mine")
    engine.started += 60
    ask(folder, engine, "--served-drafter", "mine")
    assert engine.asked == 3 * once, "the user knows that it is the same drafter"
    assert "drafter" in json.loads(next(folder.glob("runs/servers/*/*.json")).read_text())["unchecked"]


def test_without_a_drafter_and_a_start_no_answer_is_used_again(
    folder: Path, make_vllm: Callable[[bool], FakeVLLM]
) -> None:
    engine = make_vllm(True)
    engine.started = None
    said = ask(folder, engine).stderr
    assert "answers are used again never, since it does not report its start time either" in said
    once = engine.asked
    ask(folder, engine)
    assert engine.asked == 2 * once
    engine.fault = lambda number, answer: 400
    failed = ask(folder, engine, check=False).stderr
    assert (
        "no answer is used again, for it names neither its drafter nor its start; --served-drafter NAME keeps them"
        in failed
    )


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_a_server_that_becomes_another_while_it_is_asked_leaves_no_record(
    folder: Path, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM], kind: str
) -> None:
    engine: FakeSGLang | FakeVLLM = sglang if kind == "sglang" else make_vllm(True)

    def become(number: int, answer: Any) -> Any:
        if number == 2:
            engine.drafter = "/models/another"
            engine.started = 1.0
        return answer

    engine.fault = become
    done = ask(folder, engine, check=False)
    assert done.returncode == 2
    assert "was restarted or changed during the measurement" in done.stderr
    assert "0 answers are kept; run the same command" in done.stderr
    assert not list(folder.glob("runs/servers/*/*.json"))
    assert lines(folder) == 0


@pytest.mark.parametrize("kind", ["sglang", "counters"])
def test_answers_that_were_asked_together_are_not_single_ones(
    folder: Path, sglang: FakeSGLang, make_vllm: Callable[[bool], FakeVLLM], kind: str
) -> None:
    engine: FakeSGLang | FakeVLLM = sglang if kind == "sglang" else make_vllm(False)
    ask(folder, engine, "--concurrency", "4")
    once = engine.asked
    ask(folder, engine, "--concurrency", "1")
    assert engine.asked == 2 * once
    found = [json.loads(p.read_text()) for p in folder.glob("runs/servers/*/*.json")]
    assert sorted(r["concurrency"] for r in found) == [1, 4]
    ask(folder, engine, "--concurrency", "4")
    assert engine.asked == 2 * once


def test_another_drafter_at_the_same_path_is_another_record(folder: Path, sglang: FakeSGLang) -> None:
    sglang.drafter = "export"
    (folder / "export").mkdir()
    for weights in ("one", "two"):
        (folder / "export" / "model.safetensors").write_text(weights)
        ask(folder, sglang)
    found = [json.loads(p.read_text()) for p in folder.glob("runs/servers/*/*.json")]
    assert len({r["inputs"]["drafter"] for r in found}) == len(found) == 2


def test_ctrl_c_keeps_what_was_answered(folder: Path, known: Known, sglang: FakeSGLang) -> None:
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
            [sys.executable, "-m", "specauf_cli", *words, "evaluation.temperatures=[0.0]"],
            cwd=folder,
            env=ENV,
            stderr=subprocess.PIPE,
            text=True,
        )
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
