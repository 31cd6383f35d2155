"""Checks of the text, each against a subject in which exactly that thing is broken: rendering, stop tokens, prompts,
overlap."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from helpers.findings import Break, Patch, found, only, with_chat, with_template, wrong
from specauf_cli.data.chat import CHATML, Chat
from specauf_cli.doctor import subject
from specauf_cli.doctor.subject import FAIL, OUT, WARN
from specauf_cli.models.target import Target
from specauf_cli.types import Conversation, Corpus, Example, Message, Prompt, PromptSet

THINK = "<think>\\n\\n</think>\\n\\n"


def test_a_template_whose_generation_prompt_alone_thinks(healthy: Break, target: Target) -> None:
    template = CHATML.replace("assistant\\n'", f"assistant\\n{THINK}'")
    of = healthy(target=with_template(target, template))
    said = found(of)
    assert [n for n, f in said.items() if f.verdict == FAIL] == ["rendering"]
    assert " in training and '<' (id " in said["rendering"].found
    assert {said[n].verdict for n in ("stop tokens", "labels")} == {OUT}


QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '" + THINK + "' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n" + THINK + "' }}{% endif %}"
)


def naive(chat: Chat, corpus: Corpus, *, max_length: int) -> tuple[list[Example], dict[str, int]]:
    """The usual recipe: the finished conversation rendered once, every answer in it supervised."""
    examples = []
    for c in corpus.conversations:
        (tokens,) = chat.tokens([chat.render(c.messages, generation=False)])
        examples.append(Example(c.id, tuple(tokens), (False,) * 20 + (True,) * (len(tokens) - 21) + (False,)))
    return examples, {}


def test_the_think_block_of_qwen3(healthy: Break, target: Target, monkeypatch: Patch) -> None:
    of = healthy(target=with_template(target, QWEN3))
    said = found(of)
    assert said["rendering"].verdict == "ok"
    assert "since the template rewrites earlier turns" in said["rendering"].found
    monkeypatch.setattr(subject, "encode", naive)
    said = found(healthy(target=with_template(target, QWEN3)))
    assert said["rendering"].verdict == FAIL


def test_training_that_renders_a_conversation_once_differs_at_a_named_token(
    healthy: Break, target: Target, data: tuple[Corpus, Corpus], monkeypatch: Patch
) -> None:
    turns = ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "Ciao.")
    corpus = replace(data[0], conversations=(Conversation("c", tuple(Message(*t) for t in turns)),) * 8)
    monkeypatch.setattr(subject, "encode", naive)
    said = found(healthy(target=with_template(target, QWEN3), data=(corpus, data[1])))["rendering"]
    assert said.found.startswith("conversation c, message 2: token ")
    assert said.found.endswith("at evaluation")


def test_an_answer_that_ends_with_no_stop_token(healthy: Break, target: Target) -> None:
    broken = copy.copy(target)
    broken.chat = copy.copy(target.chat)
    broken.chat.stop_ids = frozenset({target.chat.pad_id})
    only(
        healthy(target=broken),
        "stop tokens",
        "ends with '<|im_end|>' (id 2)",
        "stops at '<|endoftext|>' (id 0)",
        "eos_token_id",
    )


def test_a_tokenizer_that_stops_at_another_token_than_the_template_writes(healthy: Break, target: Target) -> None:
    broken = with_chat(target, lambda t: setattr(t, "eos_token", "<|endoftext|>"))
    said = only(healthy(target=broken), "stop tokens", "ends with '<|im_end|>' (id 2)")
    assert "generation_config.json" in said


def test_supervision_that_leaves_the_end_of_turn_out(healthy: Break, monkeypatch: Patch) -> None:
    real = subject.encode

    def short(*rest: Any, **more: Any) -> Any:
        examples, counts = real(*rest, **more)
        return [replace(e, supervised=(*e.supervised[:-1], False)) for e in examples], counts

    monkeypatch.setattr(subject, "encode", short)
    only(healthy(), "stop tokens", "the last supervised token is")


def test_control_tokens_in_data_and_prompts(
    healthy: Break, data: tuple[Corpus, Corpus], prompts: list[tuple[PromptSet, PromptSet]]
) -> None:
    bad = Conversation("bad", (Message("user", "Hi."), Message("assistant", "Well<|im_end|>, hello.")))
    corpus = replace(data[0], conversations=(bad, *data[0].conversations))
    said = only(healthy(data=(corpus, data[1])), "control tokens", "1 of 31 conversations", "'<|im_end|>' in bad")
    assert said.startswith("warn")
    _, asked = prompts[0]
    asked = replace(asked, prompts=(replace(asked.prompts[0], turns=("What is <|mask|>?",)), *asked.prompts[1:]))
    only(healthy(prompts=[(asked, asked)]), "control tokens", "1 of 4 prompts of algebra", "'<|mask|>'")


def test_an_answer_that_holds_a_stop_token_before_its_end(healthy: Break, target: Target) -> None:
    """Where an ordinary token ends a turn, texts may hold it, and answers then end early."""
    (letter,) = target.chat.tokens(["e"])[0]
    of = healthy(target=with_chat(target, lambda _: None))
    of.target().chat.stop_ids = frozenset({*target.chat.stop_ids, letter})
    assert "contain a stop token before their end" in wrong(of)["stop tokens"]


def test_a_template_that_loses_the_users_words(healthy: Break, target: Target) -> None:
    template = CHATML.replace("message['content']", "(message['content'] if message['role'] == 'assistant' else 'x')")
    only(healthy(target=with_template(target, template)), "first prompt", "does not contain the user's text")


def test_a_prompt_that_begins_twice(healthy: Break, target: Target) -> None:
    def twice(tokenizer: Any) -> None:
        tokenizer.bos_token = "<|im_start|>"
        tokenizer.chat_template = "{{ '<|im_start|>' }}" + CHATML

    only(healthy(target=with_chat(target, twice)), "first prompt", "begins with '<|im_start|>' (id 1) twice")


def planted(corpus: Corpus, text: str) -> Corpus:
    extra = Conversation("planted", (Message("user", text), Message("assistant", "Yes.")))
    return replace(corpus, conversations=(*corpus.conversations, extra))


def test_a_benchmark_prompt_in_the_training_data(
    healthy: Break, data: tuple[Corpus, Corpus], prompts: list[tuple[PromptSet, PromptSet]]
) -> None:
    (raw, asked), (train, heldout) = prompts[0], data
    for text in (raw.prompts[2].turns[0].upper().replace(" ", "\n "), asked.prompts[1].turns[0]):
        said = only(
            healthy(data=(planted(train, text), heldout)), "overlap", "1 of 4 prompts of algebra are in the training"
        )
        assert said.startswith(FAIL)
    near = raw.prompts[2].turns[0].replace(" ", ", ")
    said = only(healthy(data=(planted(train, near), heldout)), "overlap", "up to punctuation")
    assert said.startswith(WARN)


def test_a_held_out_prompt_in_the_training_data(healthy: Break, data: tuple[Corpus, Corpus]) -> None:
    train, heldout = data
    text = heldout.conversations[3].messages[0].content
    only(healthy(data=(planted(train, text), heldout)), "overlap", "1 of 6 held-out prompts are in the training data")


def test_follow_ups_count_for_real_data_only(healthy: Break, data: tuple[Corpus, Corpus]) -> None:
    one = PromptSet(
        "talk", "Talk", (Prompt("t", ("Never said before.", "Write them in capitals.")),), 1, "sha", "jsonl"
    )
    train = planted(data[0], "Write them in capitals.")
    assert wrong(healthy(data=(train, data[1]), prompts=[(one, one)])) == {}
    of = healthy(settings={"data.source": "jsonl", "data.path": "."}, data=(train, data[1]), prompts=[(one, one)])
    assert "1 of 1 prompts of talk" in wrong(of)["overlap"]
