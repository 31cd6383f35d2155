"""Rounds as text: the answers of a view have the counts of replay, and every token its text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specauf_cli.data.chat import Chat
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.replay import replay
from specauf_cli.evaluation.rounds import pieces, viewed_answer, viewed_answers
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Prompt, Trace, Trajectory

PROMPTS = (Prompt("p0", ("Hi",)), Prompt("p1", ("Name a color.", "And another one?")))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_views_counts_are_those_of_replay(
    target: Target, make_drafter: Callable[..., DFlash], temperature: float
) -> None:
    drafter = make_drafter()
    answers = trajectories.generate(
        target, PROMPTS, temperature=temperature, seed=0, max_new_tokens=20, tail=9, batch_size=2
    ).trajectories
    viewed = viewed_answers(target, drafter, answers, benchmark="Toy", batch_size=2)
    for one, trajectory, trace in zip(viewed, answers, replay(target, drafter, answers, batch_size=2), strict=True):
        assert (one.prompt_id, one.turn, one.benchmark) == (trajectory.prompt_id, trajectory.turn, "Toy")
        assert one.trace.accepted == trace.accepted
        assert one.trace.proposed == trace.proposed
        assert len(one.tokens) == trace.tokens
        assert one.prompt_text.startswith("<|im_start|>user\nHi" if one.prompt_id == "p0" else "<|im_start|>user\nName")
        for r in one.rounds:
            assert r.proposed[: r.accepted][: len(r.emitted)] == r.emitted[: r.accepted]


def test_an_answer_is_cut_where_it_ends(chat: Chat) -> None:
    tokens = tuple(chat.tokens(["one two three four five six"])[0])
    trajectory = Trajectory("p", 0, (1,), tokens, 4, True)
    proposals = [tokens[1:4], tokens[2:5]]
    one = viewed_answer(chat, trajectory, Trace("p", 0, (0, 3), 3, 4, True), proposals, benchmark="Toy")
    assert [len(r.emitted) for r in one.rounds] == [1, 2]
    assert "".join(one.tokens) == chat.tokenizer.decode(list(tokens[:4]))


@given(st.text(max_size=40))
def test_pieces_give_the_text(chat: Chat, text: str) -> None:
    tokens = chat.tokens([text])[0]
    shown = pieces(chat, (), tokens)
    assert len(shown) == len(tokens)
    assert all(shown)
    whole = chat.tokenizer.decode(tokens)
    if all(ord(c) < 128 for c in text):
        assert "".join(shown) == whole


def test_a_character_of_several_tokens_is_the_text_of_the_last(chat: Chat) -> None:
    tokens = chat.tokens(["a\N{SNOWMAN}b"])[0]
    assert len(tokens) == 5  # none of this small vocabulary's tokens is more than one byte of it
    assert pieces(chat, (), tokens) == ("a", "\\xe2", "\\x98", "\N{SNOWMAN}", "b")
    assert pieces(chat, tokens[:2], tokens[2:]) == ("\\x98", "\N{SNOWMAN}", "b")
    assert pieces(chat, (), tokens[1:2] + tokens[4:]) == ("\\xe2", "b")


def test_special_tokens_are_named_and_unknown_ones_numbered(chat: Chat) -> None:
    assert pieces(chat, (), (chat.eos_id,)) == ("<|im_end|>",)
    assert pieces(chat, (), (10**6,)) == ("[token 1000000]",)
