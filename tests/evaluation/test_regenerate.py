"""Answers of the target in place of the original ones: whose they are, which are left out, and that they are made
once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.commands import specauf
from specauf_cli.config import compose
from specauf_cli.config.schema import EvaluationConfig
from specauf_cli.data.conversations import content_hash
from specauf_cli.errors import InputError
from specauf_cli.evaluation import regenerate as module
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.regenerate import regenerate
from specauf_cli.models.target import Target
from specauf_cli.session import Session
from specauf_cli.store import layout
from specauf_cli.store.trust import configs
from specauf_cli.types import Conversation, Corpus, Message

SETTINGS = EvaluationConfig("replay", "greedy", None, (0.0,), 0, 40, 4, "fp32", 0, False, 4)


def talk(name: str, *turns: str, system: str | None = None) -> Conversation:
    first = () if system is None else (Message("system", system),)
    pairs = [m for t in turns for m in (Message("user", t), Message("assistant", "as it was"))]
    return Conversation(name, (*first, *pairs), "here")


CORPUS = Corpus(
    "toy",
    tuple(talk(f"c{i}", f"What is {i} + {i}?", *(["And why?"] if i % 3 == 0 else [])) for i in range(8)),
    {"empty": 2},
)


@pytest.fixture
def ending(target: Target, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The tiny target, for which a common token ends a turn: some of its answers end."""
    made = trajectories.generate(
        target,
        [module.Prompt(c.id, (c.messages[0].content,)) for c in CORPUS.conversations],
        temperature=0.0,
        seed=0,
        max_new_tokens=30,
        tail=0,
        batch_size=8,
    )
    tokens = [t for m in made.trajectories for t in set(m.tokens)]
    common = max(set(tokens), key=tokens.count)
    monkeypatch.setattr(target.chat, "stop_ids", frozenset({common}))
    return target


def test_answers_are_the_targets_own_turn_after_turn(ending: Target, tmp_path: Path) -> None:
    made = regenerate(ending, CORPUS, 6, SETTINGS, tmp_path)
    assert made.conversations, "some answers end"
    assert made.sha256 == content_hash(made.conversations) != content_hash(CORPUS.conversations[:6])
    originals = {c.id: c for c in CORPUS.conversations[:6]}
    whole = 0
    for conversation in made.conversations:
        original, said = originals[conversation.id], list[Message]()
        assert conversation.source == "here"
        assert [m.content for m in conversation.messages[::2]] == [
            m.content for m in original.messages[: len(conversation.messages) : 2]
        ]
        for question, answer in zip(conversation.messages[::2], conversation.messages[1::2], strict=True):
            said.append(question)
            tokens: list[int] = []
            prompt = list(ending.chat.prompt(said))
            while not tokens or tokens[-1] not in ending.chat.stop_ids:
                assert len(tokens) < SETTINGS.max_new_tokens
                logits, _ = ending.forward(torch.tensor([[*prompt, *tokens]]), ending.new_cache(), last_only=True)
                tokens.append(int(logits[0, -1].argmax()))
            assert answer.content == ending.chat.text(tuple(tokens))
            said.append(answer)
        whole += len(conversation.messages) == len(original.messages)
    assert whole
    assert made.dropped == {"empty": 2, "no answer of the target's that ends": 6 - len(made.conversations)}


def test_they_are_made_once_and_in_parts(ending: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    first = regenerate(ending, CORPUS, 8, SETTINGS, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    monkeypatch.setattr(trajectories, "generate", lambda *_, **__: pytest.fail("made again"))
    assert regenerate(ending, CORPUS, 8, SETTINGS, tmp_path) == first


def test_what_cannot_be_answered_is_left_out_or_said(ending: Target, tmp_path: Path) -> None:
    led = replace(CORPUS, conversations=(talk("s", "What is 1 + 1?", system="Be brief."), *CORPUS.conversations[:4]))
    assert "s" not in {c.id for c in regenerate(ending, led, 5, SETTINGS, tmp_path).conversations}
    with pytest.raises(InputError, match=r"data\.regenerate=9 is more than the 8 training conversations of toy"):
        regenerate(ending, CORPUS, 9, SETTINGS, tmp_path)
    with pytest.raises(InputError, match=r"ended none of its answers within evaluation\.max_new_tokens=40"):
        regenerate(ending, replace(CORPUS, conversations=led.conversations[:1]), 1, SETTINGS, tmp_path)


def test_too_many_are_refused_before_a_target_is_trained(tmp_path: Path) -> None:
    done = specauf(tmp_path, "train", "profile=smoke", "data.regenerate=601", check=False)
    assert "data.regenerate=601 is more than the 600 training conversations" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_how_a_run_is_measured_does_not_change_the_answers_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["profile=smoke", "data.regenerate=64", "evaluation.max_new_tokens=40"]
    trained = compose.compose(words)
    monkeypatch.setattr(layout, "about_of", lambda _: {"run": "r", "overrides": words, "config": trained.resolved})
    later = ["evaluation.max_new_tokens=7", "evaluation.precision=bf16"]
    as_trained, measured = configs(tmp_path / "runs" / "r", later, "all")
    assert as_trained.evaluation == trained.evaluation
    assert (measured.evaluation.max_new_tokens, measured.evaluation.precision) == (7, "bf16")
    empty = Corpus("", ())
    session = Session(trained, None, empty, empty)  # type: ignore[arg-type]
    assert session.serves(trained)
    assert not session.serves(replace(trained, evaluation=measured.evaluation))


def test_a_part_of_which_nothing_fits_is_left_out(
    ending: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations are answered in parts; the last one may be a single question that is too long."""
    monkeypatch.setattr(module, "CHUNK", 4)
    few = replace(CORPUS, conversations=(*CORPUS.conversations[:4], talk("long", "word " * 5000)))
    expected = regenerate(ending, CORPUS, 4, SETTINGS, tmp_path / "a")
    for _ in range(2):  # made, and read back
        made = regenerate(ending, few, 5, SETTINGS, tmp_path / "b")
        assert made.conversations == expected.conversations
    assert made.dropped["no answer of the target's that ends"] == 5 - len(made.conversations)
    alone = replace(CORPUS, conversations=few.conversations[4:])
    with pytest.raises(InputError, match="no question fits with them into its context"):
        regenerate(ending, alone, 1, SETTINGS, tmp_path / "c")
