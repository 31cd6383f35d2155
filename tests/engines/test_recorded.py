"""What vLLM 0.32.0 really answered (benchmarks/engine/capture.py), replayed through the client: tokens and counts.

Three servers were asked the same prompts: one that counts every request, one that has only its running totals, one
without a drafter. They check each other: the same drafter accepts the same, and a drafter changes no answer.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.engines import running
from specauf_cli.engines.answers import Answer
from specauf_cli.engines.client import Client
from specauf_cli.engines.served import started, tokenized
from specauf_cli.engines.vllm import VLLM
from specauf_cli.errors import InputError

RECORDED = Path(__file__).with_name("recorded")
STOP = [2]
TOKENS = """
591 15 267 406 745 292 224 24 19 374 224 24 277 224 21 19 19 541 17 202 625 15 267 449 745 292 224
21 19 374 224 24 277 224 20 19 19 541 17 202 593 15 267 1162 756 292 224 20
"""
TEXT = (
    "First, the first part is 50 * 5 = 200 miles.\n"
    "Then, the second part is 20 * 5 = 100 miles.\n"
    "Finally, the whole trip is 1"
)
EXPECTED = Answer(
    tokens=tuple(map(int, TOKENS.split())),
    text=TEXT,
    completion=48,
    ended=False,
    rounds=16,
    accepted=31,
    histogram=(1, 4, 6, 5, *[0] * 12),
    steps=(1, 1, 2, 0, 2, 2, 3, 1, 3, 2, 3, 2, 3, 1, 3, 2),
)
"""The first prompt's answer at T = 0, as the recording has it."""


class Recording:
    """A server that gives each recorded reply to the request that it was given to: in turn, and the last one again."""

    def __init__(self, name: str) -> None:
        self.exchanges: list[dict[str, Any]] = json.loads((RECORDED / f"vllm-0.32.0-{name}.json").read_text())
        self.port, self.given = 0, [0] * len(self.exchanges)

    def reply(self, path: str, body: Any) -> Any:
        same = [i for i, e in enumerate(self.exchanges) if e["path"] == path and e["body"] == body]
        if not same:
            return None
        at = next((i for i in same if not self.given[i]), same[-1])
        self.given[at] += 1
        return self.exchanges[at]["reply"]

    def get(self, path: str) -> Any:
        return self.reply(path, None)

    def post(self, path: str, body: Any) -> Any:
        return self.reply(path, body)

    def requests(self, temperature: float) -> list[dict[str, Any]]:
        """The bodies of its requests to complete, the client's probe left out."""
        bodies = [e["body"] for e in self.exchanges if e["path"] == "/v1/completions"]
        return [b for b in bodies if b["temperature"] == temperature and b["max_tokens"] != 8]


@contextmanager
def asking(name: str) -> Iterator[tuple[Recording, VLLM]]:
    recording = Recording(name)
    with running(recording) as url, Client(url, timeout=10, retries=0) as client:  # type: ignore[arg-type]
        yield recording, VLLM(client, STOP, plain=name == "plain")


def answers(recording: Recording, backend: VLLM, temperature: float) -> list[Answer]:
    return [
        backend.ask(
            body["prompt"], temperature=temperature, seed=body.get("seed", 0), max_new_tokens=body["max_tokens"]
        )
        for body in recording.requests(temperature)
    ]


def test_what_the_server_says_of_itself() -> None:
    with asking("requests") as (_, backend):
        served = backend.served()
    assert (served.version, served.drafter, served.algorithm, served.proposals) == ("0.32.0", "vllm", "dflash", 15)
    assert (served.dtype, served.verification, served.context) == ("float32", "standard", 1024)
    assert served.names == (served.name, "tiny-140c0c64")
    assert served.name.startswith("auf-vllm-")
    assert served.flags["speculative_config"]["draft_sample_method"] == "greedy"


def test_the_tokenizer_is_the_one_that_rendered_the_prompts() -> None:
    with asking("requests") as (recording, backend):
        (sent,) = (e["body"] for e in recording.exchanges if e["path"] == "/tokenize")
        tokens = tokenized(backend.client, backend.served().name, sent["prompt"])
    assert tokens == tuple(recording.requests(0.0)[0]["prompt"])


def test_every_request_has_its_tokens_and_counts() -> None:
    with asking("requests") as (recording, backend):
        backend.served()
        backend.probe(recording.requests(0.0)[0]["prompt"])
        assert backend.counts == "request"
        first, *others = answers(recording, backend, 0.0)
        (sampled,) = answers(recording, backend, 1.0)
    assert first == EXPECTED
    for answer in (first, *others, sampled):
        assert answer.tokens is not None
        assert answer.histogram is not None
        assert len(answer.tokens) == answer.completion
        assert sum(answer.histogram) == answer.rounds
        assert answer.steps is not None
        assert [answer.steps.count(k) for k in range(16)] == list(answer.histogram)
        assert sum(k * n for k, n in enumerate(answer.histogram)) == answer.accepted
    assert sampled.tokens != first.tokens


def test_a_drafter_changes_no_answer() -> None:
    with asking("plain") as (recording, backend):
        served = backend.served()
        assert (served.drafter, served.algorithm, served.proposals, served.dtype) == (None, None, None, "float32")
        plain = answers(recording, backend, 0.0)
    assert [(a.rounds, a.histogram) for a in plain] == [(0, None)] * len(plain)
    with asking("requests") as (recording, backend):
        backend.served()
        drafted = answers(recording, backend, 0.0)
    assert [(a.tokens, a.text, a.ended) for a in plain] == [(a.tokens, a.text, a.ended) for a in drafted]


def test_running_totals_grow_by_what_single_requests_count() -> None:
    with asking("requests") as (recording, backend):
        backend.served()
        alone = answers(recording, backend, 0.0)
    with asking("counters") as (recording, backend):
        served = backend.served()
        assert served.proposals == 15
        prompts = recording.requests(0.0)
        backend.probe(prompts[0]["prompt"])
        assert backend.counts == "counters"
        before = backend.counters()
        for body, own in zip(prompts, alone, strict=True):
            answer = backend.ask(body["prompt"], temperature=0.0, seed=0, max_new_tokens=body["max_tokens"])
            after = backend.counters()
            assert (answer.tokens, answer.rounds, answer.accepted) == (own.tokens, None, None)
            assert own.histogram is not None
            assert after.drafts - before.drafts == own.rounds
            assert after.accepted - before.accepted == own.accepted
            assert after.proposed - before.proposed == 15 * (own.rounds or 0)
            per_slot = [b - a for a, b in zip(before.per_slot, after.per_slot, strict=True)]
            assert per_slot == [sum(own.histogram[k + 1 :]) for k in range(15)]
            assert (after.finished - before.finished, after.running) == (1, 0)
            before = after
        assert float(started(backend.client) or 0) > 1.79e9


def test_a_server_without_a_drafter_has_no_tau() -> None:
    recording = Recording("plain")
    with (
        running(recording) as url,  # type: ignore[arg-type]
        Client(url, timeout=10, retries=0) as client,
        pytest.raises(InputError, match="decodes without a drafter"),
    ):
        VLLM(client, STOP).served()


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.json")), ids=lambda p: p.stem)
def test_recordings_name_no_machine(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"/(tmp|home|root|work|Users|mnt|opt)/|127\.0\.0\.1|localhost|hostname", text)
    assert len(text) < 40_000
