"""Continuous batching: the answers of a batch are those of each request alone, however rows come and go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.families import WINDOW, of_family
from specauf_cli.config.schema import EvaluationConfig, TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.evaluation import regenerate as regeneration
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.batching import answers
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.turns import Request
from specauf_cli.models.target import Target
from specauf_cli.types import Conversation, Corpus, Message, Prompt, Trajectory

HORIZON, SEED = 34, 5
EVALUATION = EvaluationConfig("replay", "greedy", None, (0.0,), 0, 8, 4, "fp32", 0, False, 4)
TEXTS = (
    "Hi",
    "What is 2 + 3?",
    "Name a color.",
    "Plan a day in Rome for two people who like soup.",
    "Write a short letter to Anna.",
    "Tell me a story about a fox named Leo who wanted to see the sea.",
    "And?",
    "Name three animals that swim.",
    "What is the sum of all numbers from one to nine, and why is it so?",
)


def requests_of(target: Target) -> list[Request]:
    """One request for each of ``TEXTS``: prompts of many lengths."""
    prompts = [target.chat.prompt([Message("user", text)]) for text in TEXTS]
    assert len({len(p) for p in prompts}) > 5
    return [Request(f"p{i}#0", f"p{i}", 0, prompt) for i, prompt in enumerate(prompts)]


def alone(target: Target, request: Request, temperature: float) -> list[int]:
    """The target's tokens without cache, batch or padding: the whole sequence is read again for every token."""
    sampler = Sampler(temperature, SEED, [request.id], HORIZON)
    tokens, row = list(request.prompt), torch.zeros(1, dtype=torch.long)
    for step in range(HORIZON):
        with torch.no_grad():
            logits = target.model(torch.tensor([tokens])).logits[:, -1:, : target.chat.vocab]
        tokens.append(int(sampler.choose(logits, row, row + step)))
    return tokens[len(request.prompt) :]


def cut(target: Target, request: Request, stream: Sequence[int], new: int, tail: int) -> Trajectory:
    """What ``stream`` says the trajectory of ``request`` is."""
    length = next((i + 1 for i, token in enumerate(stream[:new]) if token in target.chat.stop_ids), new)
    ended = stream[length - 1] in target.chat.stop_ids
    return Trajectory(request.prompt_id, 0, request.prompt, tuple(stream[: length + tail]), length, ended)


def a_common_token(streams: Sequence[Sequence[int]]) -> int:
    """A token at which some answers end early, some late and some never."""
    at = {t: [s.index(t) if t in s else HORIZON for s in streams] for stream in streams for t in stream}
    return max(at, key=lambda t: (len(set(at[t])), t))


@pytest.fixture(scope="module", params=[0.0, 1.0])
def truth(request: pytest.FixtureRequest, target: Target) -> Iterator[tuple[float, list[list[int]]]]:
    """The temperature and what each request gets alone; a common token ends a turn."""
    streams = [alone(target, r, request.param) for r in requests_of(target)]
    before, target.chat.stop_ids = target.chat.stop_ids, frozenset({a_common_token(streams)})
    yield request.param, streams
    target.chat.stop_ids = before


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_batch_gives_every_request_what_it_gets_alone(
    data: st.DataObject, target: Target, truth: tuple[float, list[list[int]]]
) -> None:
    temperature, streams = truth
    everything = requests_of(target)
    chosen = data.draw(st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, unique=True), label="requests")
    batch_size, new = data.draw(st.integers(1, 20), label="batch"), data.draw(st.integers(1, 26), label="new")
    tail = data.draw(st.integers(0, HORIZON - 26), label="tail")
    found = dict(
        answers(
            target,
            [everything[i] for i in chosen],
            temperature=temperature,
            seed=SEED,
            max_new_tokens=new,
            tail=tail,
            batch_size=batch_size,
        )
    )
    assert found == {everything[i]: cut(target, everything[i], streams[i], new, tail) for i in chosen}


@pytest.mark.parametrize(
    "family", ["mistral, window", "gemma2, soft-capped", "gemma3", "gpt_oss", "gpt2", "gpt_neox", "phi3"]
)
def test_windows_and_padding_of_every_family(
    family: str, chat: Chat, target_config: TargetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = of_family(family, chat, target_config)
    requests = requests_of(target)
    assert min(len(r.prompt) for r in requests) > WINDOW
    streams = [alone(target, r, 0.0) for r in requests]
    monkeypatch.setattr(target.chat, "stop_ids", frozenset({a_common_token(streams)}))
    expected = {r: cut(target, r, s, 30, 4) for r, s in zip(requests, streams, strict=True)}
    assert len({t.length for t in expected.values()}) > 2, "lengths differ, so rows are replaced"
    for size in (2, 3):
        found = answers(target, requests, temperature=0.0, seed=0, max_new_tokens=30, tail=4, batch_size=size)
        assert dict(found) == expected


def test_a_row_that_waits_for_its_replacement_stays_within_the_context(
    chat: Chat, target_config: TargetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that fills the context ends while one that began later goes on; learnt positions end there."""
    target = of_family("gpt2", chat, target_config)
    pool = requests_of(target)[:5]
    filling = tuple(t for r in pool for t in 9 * r.prompt)[: target.context_length - HORIZON]
    whole = Request("whole#0", "whole", 0, filling)
    assert len(whole.prompt) + HORIZON == target.context_length
    streams = {r: alone(target, r, 0.0) for r in (whole, *pool)}
    short, late, stop = next(
        (short, late, token)
        for short in pool
        for late in pool
        for token in streams[short][:10]
        if token not in streams[whole] and token not in streams[late]
    )
    monkeypatch.setattr(target.chat, "stop_ids", frozenset({stop}))
    first = [Request(f"short{i}#0", f"short{i}", 0, short.prompt) for i in range(15)]
    requests = [whole, *first, late]  # one more than the batch has rows
    found = dict(
        answers(target, requests, temperature=0.0, seed=0, max_new_tokens=30, tail=HORIZON - 30, batch_size=16)
    )
    for request in (whole, late):
        assert found[request] == cut(target, request, streams[request], 30, HORIZON - 30)


class Passes:
    """The number of rows of every pass of a target."""

    def __init__(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        original: Callable[..., torch.Tensor] = target.logits

        def logits(tokens: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
            self.rows.append(len(tokens))
            return original(tokens, *others, **more)

        monkeypatch.setattr(target, "logits", logits)


def test_a_long_answer_does_not_hold_up_the_others(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others come and go beside it, and the batch is never larger than asked for."""
    requests = requests_of(target)
    streams = [alone(target, r, 0.0) for r in requests]
    monkeypatch.setattr(target.chat, "stop_ids", frozenset({a_common_token(streams)}))
    lengths = {r.id: cut(target, r, s, 30, 0).length for r, s in zip(requests, streams, strict=True)}
    requests.sort(key=lambda r: lengths[r.id])
    requests = [requests[-1], *requests[:-1]]
    assert max(lengths.values()) == 30 > 3 * min(lengths.values())
    passes = Passes(target, monkeypatch)
    order = [
        r.id for r, _ in answers(target, requests, temperature=0.0, seed=0, max_new_tokens=30, tail=0, batch_size=2)
    ]
    assert sorted(order) == sorted(lengths)
    assert order[0] != requests[0].id, "an answer that has ended is there at once"
    assert max(passes.rows) == 2
    assert sum(passes.rows) == sum(lengths.values()), "no row is computed in vain: each is a token of an answer"


def test_progress_is_said_by_request(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [Prompt(f"p{i}", (text,)) for i, text in enumerate(TEXTS)]
    arguments = {"temperature": 0.0, "seed": 0, "max_new_tokens": 4, "tail": 0, "batch_size": 4}
    made = trajectories.generate(target, prompts, **arguments)  # type: ignore[arg-type]
    assert [t.prompt_id for t in made.trajectories] == [p.id for p in prompts]
    assert re.search(r"own answers, turn 1: 9/9 · 0 s left", capsys.readouterr().err)


def test_what_was_answered_before_an_interruption_is_kept(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regeneration, "CHUNK", 4)
    talks = [Conversation(f"c{i}", (Message("user", t), Message("assistant", "So.")), "") for i, t in enumerate(TEXTS)]
    corpus = Corpus("toy", tuple(talks))
    monkeypatch.setattr(target.chat, "stop_ids", frozenset(range(target.chat.vocab)))  # every answer ends
    expected = regeneration.regenerate(target, corpus, 8, EVALUATION, tmp_path / "whole")
    with monkeypatch.context() as patched:
        passes, original = [0], target.logits

        def stopped(*arguments: Any, **more: Any) -> torch.Tensor:
            passes[0] += 1
            if passes[0] > 1:  # one pass answers the first part: the first token of each ends it
                raise KeyboardInterrupt
            return original(*arguments, **more)

        patched.setattr(target, "logits", stopped)
        with pytest.raises(KeyboardInterrupt):
            regeneration.regenerate(target, corpus, 8, EVALUATION, tmp_path / "cut")
    passed = Passes(target, monkeypatch)
    assert regeneration.regenerate(target, corpus, 8, EVALUATION, tmp_path / "cut") == expected
    assert passed.rows == [4]
