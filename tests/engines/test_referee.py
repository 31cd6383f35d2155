"""The referee against a live server of ours with one fault switched on, and against servers that misbehave."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import Done, specauf
from helpers.engines import CHOSEN, running
from helpers.live import LiveSGLang, LiveVLLM, Proposer, fitted, varied_norms
from specauf_cli.config import compose
from specauf_cli.config.compose import with_benchmarks
from specauf_cli.engines import client, faults, measure
from specauf_cli.errors import InputError
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.decode import Drafted, Nothing, PromptLookup
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.evaluation.lookup import LookupRule
from specauf_cli.models import checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.store.files import write_json
from specauf_cli.store.referee import REFEREE, RefereeRecord
from specauf_cli.types import Trajectory

pytestmark = pytest.mark.usefixtures("composed_once")

NEW = 24
"""Tokens of an answer; in 18 some of the planted faults cannot be told apart."""
WORDS = [
    "profile=smoke",
    "target.path=model",
    "target.taps=[0,1,2]",
    "backbone.block_size=6",
    "backbone.proposals=5",
    "backbone.layers=2",
    f"evaluation.max_new_tokens={NEW}",
]
STARTS = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """A folder with a target and two finished runs of it, and both as they are served."""

    folder: Path
    target: Target
    run: str
    drafter: DFlash
    other: DFlash
    answers: tuple[Trajectory, ...]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("referee")
    target.chat.save(folder / "model")
    target.model.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = with_benchmarks(compose.compose([*WORDS, "runs=runs"]), CHOSEN)
        loaded = targets.load(config.target, device="cpu")
        answers: list[Trajectory] = []
        for prompts in load_benchmarks(config):
            answers += trajectories.generate(
                loaded, prompts.prompts, temperature=0.0, seed=0, max_new_tokens=NEW, tail=7, batch_size=32
            ).trajectories
        made = []
        for number, objective in enumerate(("auf", "decay")):
            drafter = checkpoint.create(loaded, replace(config.backbone, init_std=0.1))
            drafter.initialise(number)
            fitted(loaded, varied_norms(drafter, number), answers, steps=40, lr=1e-2)
            made.append((_save_run(folder, loaded, drafter, objective), drafter))
        (run, drafter), (_, other) = made
        yield Place(folder, loaded, run, drafter, other, tuple(answers))


def _save_run(folder: Path, target: Target, drafter: DFlash, objective: str) -> str:
    """A finished run of ``drafter``, as training leaves it."""
    words = [*WORDS, f"objective={objective}"]
    name = f"dflash-{objective}-x"
    run = folder / "runs" / name
    checkpoint.save(drafter, target, run / "drafter", run=name)
    about = {
        "run": name,
        "overrides": words,
        "config": compose.compose([*words, "runs=runs"]).resolved,
        "inputs": {"target": target.fingerprint},
        "data": {"name": "offline"},
        "code": {"commit": None, "dirty": None},
        "command": "specauf train",
    }
    write_json(run / "run.json", about)
    write_json(run / "finished.json", {"last": {"step": 1}, "seconds": 1.0, "peak_memory_mib": 1.0})
    return name


@pytest.fixture(autouse=True)
def _there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(measure, "SETTLE", 0.3)
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def server(place: Place, fault: faults.Fault | None = None, proposer: Proposer | None = None) -> LiveVLLM:
    """A server of the run's drafter, with a fault, or with another proposer."""
    target = fault.target(place.target) if fault else place.target
    drafter = fault.drafter(place.drafter) if fault else place.drafter
    engine = LiveVLLM(place.target.chat, target, proposer or Drafted(target, drafter))
    engine.started = float(next(STARTS))  # each is another server
    return engine


def referee(place: Place, engine: LiveVLLM, *words: str, check: int | None = 0, url: str | None = None) -> Done:
    temperatures = [] if any("temperatures" in w for w in words) else ["evaluation.temperatures=[0.0]"]
    with running(engine) as address:
        done = specauf(
            place.folder,
            "referee",
            "--base-url",
            url or address,
            "--run",
            place.run,
            "--benchmarks",
            CHOSEN,
            "--retries",
            "1",
            *temperatures,
            *words,
            check=False,
        )
    assert check is None or done.returncode == check, done.stderr + done.stdout
    return done


def record(done: Done) -> RefereeRecord:
    (path,) = (line.partition("record: ")[2] for line in done.stdout.splitlines() if "record: " in line)
    return REFEREE.load(Path(path))


def test_a_right_server_is_equal(place: Place) -> None:
    done = referee(place, server(place))
    found = record(done)
    assert found.verdict == "equal"
    assert found.first is None
    assert found.tried == ()
    for b in found.benchmarks:
        assert b.answers == b.counts == (len(b.requests), len(b.requests))
    assert max(a for b in found.benchmarks for r in b.requests for a in r.ours) == 5, "the drafter accepts something"
    assert "Equal: every answer and every count" in done.stdout


PLANTED: dict[str, Callable[[Place], faults.Fault]] = {
    "causal": lambda p: faults.Fault("causal", "", drafter=faults.causal),
    "layers": lambda p: faults.Fault("layers", "", target=lambda t: faults.shifted(t, 1)),
    "first_norm": lambda p: faults.Fault("first_norm", "", drafter=faults.first_norm_of_context),
    "proposals": lambda p: faults.Fault("proposals", "", drafter=lambda d: faults.of_block(d, 4)),
    "dtype": lambda p: faults.Fault(
        "dtype",
        "",
        target=lambda t: faults.in_precision(t, "bf16"),
        drafter=lambda d: faults.drafter_in_precision(d, "bf16"),
    ),
    "window": lambda p: faults.Fault("window", "", drafter=lambda d: faults.windowed(d, 32)),
    "drafter": lambda p: faults.Fault("drafter", "", drafter=lambda d: p.other),
}
NAMES = {
    "causal": "the block attends causally",
    "layers": "the layers after the right ones are tapped",
    "first_norm": "the first layer's k_norm serves every draft layer, for the context",
    "proposals": "blocks of 4 instead of 6",
    "dtype": "target and drafter run in bf16",
    "window": "slots see only what is less than 32 positions away, in context and block",
    "drafter": "the drafter is dflash-decay-x",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_named(place: Place, kind: str) -> None:
    done = referee(place, server(place, PLANTED[kind](place)), check=3)
    found = record(done)
    answers, counts = ([b.answers for b in found.benchmarks], [b.counts for b in found.benchmarks])
    assert any(same < of for same, of in counts), "the fault changes counts"
    if kind != "dtype":
        assert all(same == of for same, of in answers), "the target is the same"
    assert found.cause == NAMES[kind], found.tried


def test_another_rendering_is_named(place: Place) -> None:
    engine = server(place)
    opening = len(place.target.chat.tokens(["<|im_start|>assistant\n"])[0])
    engine.render = lambda prompt: prompt[:-opening]
    found = record(referee(place, engine, check=3))
    assert found.cause == "the prompt lacks the opening of the answer"
    assert found.first is not None
    assert found.first.what == "answer"
    assert found.first.tie is None


def test_a_fault_that_is_not_known_is_not_named(place: Place) -> None:
    def perturbed(drafter: DFlash) -> DFlash:
        other = copy.deepcopy(drafter)
        with torch.no_grad():
            other.fc.weight[:, 0] += 1.0
        return other

    done = referee(place, server(place, faults.Fault("?", "", drafter=perturbed)), check=3)
    assert record(done).cause is None
    assert "cause: None of the known faults reproduces this server." in done.stdout


# ---- other subjects, other ways to count


def test_sampled_answers_are_judged_by_their_own_rounds_and_their_surprise(place: Place) -> None:
    found = record(referee(place, server(place), "evaluation.temperatures=[1.0]"))
    assert found.verdict == "equal"
    for b in found.benchmarks:
        assert b.answers == (0, 0), "another random generator"
        assert b.counts == (len(b.requests), len(b.requests))
        assert b.sampling is not None
        assert abs(b.sampling.z) < 4
        assert b.difference is not None
        assert b.difference.prompts == 2


def test_a_fault_is_named_from_sampled_answers_too(place: Place) -> None:
    engine = server(place, PLANTED["layers"](place))
    assert record(referee(place, engine, "evaluation.temperatures=[1.0]", check=3)).cause == NAMES["layers"]


def test_another_temperature_than_asked_for_is_found(place: Place) -> None:
    engine = server(place)
    engine.heat = 2.5
    done = referee(place, engine, "evaluation.temperatures=[1.0]", check=3)
    found = record(done)
    assert all(b.counts[0] == b.counts[1] for b in found.benchmarks), "rounds are right along whatever was drawn"
    assert all(b.sampling is not None and b.sampling.z > 4 for b in found.benchmarks)
    assert "its draws are not the target's" in done.stdout


def test_a_server_without_a_drafter(place: Place) -> None:
    found = record(referee(place, server(place, proposer=Nothing()), "--no-drafter"))
    assert (found.verdict, found.subject) == ("equal", "plain")
    assert found.benchmarks[0].counts == (0, 0)
    low = PLANTED["dtype"](place)
    other = record(referee(place, server(place, low, Nothing()), "--no-drafter", check=None))
    assert other.verdict == "equal" or other.cause == "the target runs in bf16"
    refused = referee(place, server(place), "--no-drafter", check=2)
    assert "decodes with a drafter (unnamed); --no-drafter is for a server without one" in refused.stderr


def test_prompt_lookup_is_replayed_by_its_rule(place: Place) -> None:
    rule = LookupRule(2, 1, 5)
    engine = server(place, proposer=PromptLookup(rule))
    engine.counts_empty = False
    told = record(referee(place, engine, "--lookup", "2,1,5"))
    assert (told.verdict, told.subject) == ("equal", "lookup")
    assert sum(map(sum, (r.ours for b in told.benchmarks for r in b.requests))) > 0
    engine = server(place, proposer=PromptLookup(rule))
    engine.counts_empty = False
    spec = {"method": "ngram", "model": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 2}
    engine.info = {"vllm_config": {"speculative_config": {**spec, "prompt_lookup_min": 1}}}
    assert record(referee(place, engine)).subject == "lookup", "the server says so"
    assert "not --lookup 3,1,5" in referee(place, engine, "--lookup", "3,1,5", check=2).stderr
    assert record(referee(place, engine_of(place, rule), "--lookup", "3,2,5", check=3)).verdict == "differs"


def engine_of(place: Place, rule: LookupRule) -> LiveVLLM:
    engine = server(place, proposer=PromptLookup(rule))
    engine.counts_empty = False
    return engine


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_counters_alone_are_compared_as_sums(place: Place, concurrency: str) -> None:
    engine = server(place)
    engine.per_request = False
    found = record(referee(place, engine, "--concurrency", concurrency))
    assert found.verdict == "equal"
    for b in found.benchmarks:
        assert len(b.groups) == b.counts[1] > 0
    engine = server(place, PLANTED["causal"](place))
    engine.per_request = False
    assert record(referee(place, engine, "--concurrency", concurrency, check=3)).verdict == "differs"


@pytest.mark.parametrize("cuts", [False, True])
def test_sglang_counts_its_last_round_whole_or_cut(place: Place, cuts: bool) -> None:
    engine = LiveSGLang(place.target.chat, place.target, Drafted(place.target, place.drafter), cuts=cuts)
    engine.drafter += f"-{cuts}"  # another server
    found = record(referee(place, engine, "--backend", "sglang"))
    assert found.verdict == "equal"
    assert found.reported[0].startswith("the server drafts with drafter-")
    assert str(place.folder) not in str(found.reported)
    assert [p.definition for p in found.benchmarks[0].taus] == ["engine", "pooled"]


# ---- pages


def test_the_pages_show_the_first_difference(place: Place) -> None:
    done = referee(place, server(place, PLANTED["causal"](place)), check=3)
    found = record(done)
    assert found.first is not None
    assert found.first.what == "counts"
    assert found.first.position is not None, "the fault found tells the server's rounds"
    page = Path(done.stdout.rpartition("page: ")[2].strip())
    text, markup = page.with_suffix(".md").read_text(), page.read_text()
    for shown in (NAMES["causal"], "First difference", "reproduces", "counts equal", found.command):
        assert shown in text
    assert "<script" not in markup
    assert "http-equiv" not in markup
    view = page.with_name(page.name.replace(".html", "-first.html")).read_text()
    assert f'href="{page.name.replace(".html", "-first.html")}"' in markup
    assert "the server (rounds of the fault found: the block attends causally)" in view
    assert "A, upper row: the replay (exact), tau" in view


def test_rounds_that_a_server_tells_are_shown(place: Place) -> None:
    def perturbed(drafter: DFlash) -> DFlash:
        other = copy.deepcopy(drafter)
        with torch.no_grad():
            other.fc.weight[:, 0] += 1.0
        return other

    engine = server(place, faults.Fault("?", "", drafter=perturbed))
    engine.detailed = True
    done = referee(place, engine, check=3)
    found = record(done)
    assert found.cause is None
    assert found.first is not None
    assert found.first.position is not None
    view = Path(done.stdout.rpartition("page: ")[2].strip()).with_suffix("").as_posix() + "-first.html"
    assert "the server (the rounds that it tells)" in Path(view).read_text()


def test_an_answer_that_differs_is_shown_without_rounds(place: Place) -> None:
    engine = server(place)

    def cut(_: int, answer: Any) -> Any:
        answer["choices"][0]["token_ids"][3] = 99
        return answer

    engine.fault = cut
    done = referee(place, engine, check=3)
    found = record(done)
    assert found.first is not None
    assert (found.first.what, found.first.position) == ("answer", 3)
    assert found.first.theirs is not None
    assert found.first.theirs[0] == 99
    assert found.first.tie is None
    assert "token 4: " in done.stdout
    assert "no rounding explains that" in done.stdout
    view = Path(done.stdout.rpartition("page: ")[2].strip()).with_suffix("").as_posix() + "-first.html"
    assert "the server (its rounds are not known)" in Path(view).read_text()
    assert "rounds not known" in Path(view).read_text()


def test_a_damaged_record_is_one_line(place: Place) -> None:
    found = referee(place, server(place))
    path = Path(found.stdout.partition("record: ")[2].splitlines()[0])
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "verdict": "fine"}))
    with pytest.raises(InputError, match="is not a complete record of specauf referee: verdict"):
        REFEREE.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a record of specauf referee, schema 1"):
        REFEREE.load(path)


# ---- servers that misbehave, words that are wrong


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("hangs in a body", lambda answer: ("drip", 0.05, answer)),
        ("answers garbage", lambda answer: {"choices": [[]], "usage": 5}),
        ("answers no JSON", lambda answer: "<html>busy</html>"),
        ("dies in a body", lambda answer: "reset"),
        ("has an error", lambda answer: 500),
    ],
)
def test_a_server_that_fails_loses_nothing(place: Place, kind: str, way: Callable[[Any], Any]) -> None:
    engine = server(place)
    referee(place, engine, "--concurrency", "1", "evaluation.prompts=1")
    known = engine.asked
    engine.fault = lambda _, answer: way(answer)
    impatient = ("--timeout", "3", "--retries", "0") if kind == "hangs in a body" else ()
    failed = referee(place, engine, "--concurrency", "1", *impatient, check=2)
    assert f"{known} answers are kept; run the same command to continue" in failed.stderr
    assert "Traceback" not in failed.stderr
    asked = engine.asked
    engine.fault = lambda _, answer: answer
    assert record(referee(place, engine, "--concurrency", "1")).verdict == "equal"
    assert engine.asked - asked == len(place.answers) - known
    again = engine.asked
    assert record(referee(place, engine, "--concurrency", "1")).verdict == "equal"
    assert engine.asked == again, "a second call asks nothing"


def test_a_drafter_swapped_in_the_middle_costs_only_this_calls_answers(place: Place) -> None:
    engine, other = server(place), faults.causal(place.drafter)
    referee(place, engine, "--concurrency", "1", "evaluation.prompts=1")
    known = engine.asked
    began = engine.started

    def swap(number: int, answer: Any) -> Any:
        if number == known + 1:
            engine.proposer, engine.started = Drafted(place.target, other), -1.0
        return answer

    engine.fault = swap
    done = referee(place, engine, "--concurrency", "1", check=2)
    assert "was restarted or changed during the measurement" in done.stderr
    assert f"{known} answers are kept; run the same command to continue" in done.stderr
    engine.fault = lambda _, answer: answer
    engine.proposer, engine.started = Drafted(place.target, place.drafter), began
    asked = engine.asked
    assert record(referee(place, engine, "--concurrency", "1")).verdict == "equal"
    assert engine.asked - asked == len(place.answers) - known


CONNECTED: list[Any] = []
WATCHING: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHING and event in ("socket.connect", "socket.getaddrinfo"):
        CONNECTED.append(arguments[1] if event == "socket.connect" else arguments[:2])


def test_only_the_address_that_was_given_is_contacted_and_no_key_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.addaudithook(_watch)
    monkeypatch.setenv("SPECAUF_API_KEY", "sesame-7")
    engine = server(place)
    engine.info = {
        "vllm_config": {
            "model_config": {"model": "model", "dtype": "torch.float32"},
            "speculative_config": {
                "method": "dflash",
                "model": f"{place.folder}/elsewhere/export",
                "num_speculative_tokens": 5,
                "rejection_sample_method": "standard",
                "api_key": "sesame-8",
            },
        }
    }
    WATCHING.append(True)
    try:
        done = referee(place, engine, check=None)
    finally:
        WATCHING.clear()
    contacted = {address for address in CONNECTED if address[0] is not None}
    assert contacted == {("127.0.0.1", engine.port)}
    written = "".join(p.read_text() for p in place.folder.glob("runs/servers/*/**/*") if p.is_file())
    folder = place.folder / "runs" / "servers"
    assert written
    for secret in ("sesame", f"127.0.0.1:{engine.port}", str(place.folder)):
        assert secret not in written
        assert not any(secret in str(p.relative_to(folder)) for p in folder.rglob("*"))
    assert "sesame" not in done.stdout + done.stderr
    assert "drafts with export, not with" in record(done).reported[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--base-url", "http://user:sesame@127.0.0.1:1"),
            "--base-url 'http://***@127.0.0.1:1': give http://HOST:PORT",
        ),
        (("--base-url", "http://127.0.0.1:1"), "Connection refused; tried 2 times"),
        (("--base-url", "http://127.0.0.1:1", "--run", "dflash-auf-y"), "Did you mean 'dflash-auf-x'?"),
        (("--base-url", "http://127.0.0.1:1", "--backend", "vlm"), "Did you mean 'vllm'?"),
        (("--base-url", "http://127.0.0.1:1", "--lookup", "5,2"), "--lookup '5,2': give three whole numbers"),
        (("--base-url", "http://127.0.0.1:1", "--lookup", "1,2,3"), "needed are 1 <= shortest <= longest"),
        (("--base-url", "http://127.0.0.1:1", "--lookup", "5,2,9", "--no-drafter"), "give one of them"),
        (("--base-url", "http://127.0.0.1:1", "--lookup", "5,2,9", "--backend", "sglang"), "vLLM's ngram method"),
        (("--base-url", "http://127.0.0.1:1", "--benchmarks", "gsm9k"), "gsm9k"),
        ((), "Missing option '--base-url'"),
    ],
)
def test_bad_words_are_one_line(place: Place, words: tuple[str, ...], says: str) -> None:
    done = specauf(place.folder, "referee", *words, "--retries", "1", check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "sesame" not in done.stderr


def test_a_server_of_another_model_is_refused(place: Place) -> None:
    engine = server(place)
    engine.model = "Qwen/Qwen3-4B"
    assert "serves Qwen/Qwen3-4B, not the target model" in referee(place, engine, check=2).stderr
    assert engine.asked == 0


def test_block_verification_is_refused(place: Place) -> None:
    engine = server(place)
    spec = {"method": "dflash", "num_speculative_tokens": 5, "rejection_sample_method": "block"}
    engine.info = {"vllm_config": {"speculative_config": spec}}
    assert "verifies blocks as a whole" in referee(place, engine, check=2).stderr


def test_what_a_server_says_of_itself_is_no_verdict(place: Place) -> None:
    """It says bfloat16 and another number of draft tokens, but answers as it should."""
    engine = server(place)
    spec = {"method": "dflash", "num_speculative_tokens": 7, "rejection_sample_method": "standard"}
    engine.info = {"vllm_config": {"model_config": {"dtype": "torch.bfloat16"}, "speculative_config": spec}}
    found = record(referee(place, engine))
    assert found.verdict == "equal"
    assert [r.partition(",")[0] for r in found.reported] == [
        "the server runs the target in bfloat16",
        "the server drafts 7 tokens a round",
    ]
    assert found.unchecked == ("drafter",)


def test_help_is_one_plain_screen(place: Place) -> None:
    text = specauf(place.folder, "referee", "--help").stdout
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    assert "exit code 0: equal, 3: differs, 4: rounding" in " ".join(text.split())
