"""The chat format: what training sees before an answer is, token for token, what evaluation sees."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specauf_cli.config.schema import TargetConfig
from specauf_cli.data.chat import CHATML, END, MASK, START, Chat, encode
from specauf_cli.errors import InputError
from specauf_cli.types import Conversation, Corpus, Example, Message

THINK = "<think>\n\n</think>\n\n"
# As Qwen3's: behind the last user turn the answer opens with an empty think block, and so does the generation prompt.
QWEN3_STYLE = (
    "{%- set seen = namespace(last=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set seen.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > seen.last -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{{ m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)


def with_template(chat: Chat, template: str | None) -> Chat:
    """The same tokenizer under another template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat.tokenizer.backend_tokenizer, eos_token=END, pad_token=chat.tokenizer.pad_token
    )
    tokenizer.chat_template = template
    return Chat(tokenizer, MASK)


def talk(*texts: str, system: str | None = None, name: str = "c") -> Conversation:
    """User and assistant in turns."""
    lead = [Message("system", system)] if system else []
    turns = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
    return Conversation(name, (*lead, *turns))


def corpus(*conversations: Conversation, **dropped: int) -> Corpus:
    return Corpus("made", conversations, dropped, "x")


HARD = (
    talk("Hi", "Hello Anna.", name="one turn"),
    talk("Hi", "Hello.", "Add 2 and 31", "2 + 31 = 33", "Thanks", "Any time!", name="three turns"),
    talk("Hi", "Hello.", "Bye", "See you.", system="Be brief.", name="system"),
    talk("Code?", "\n\ndef f(x):\n    return x\n", "And\n", " indented answer\n\n", name="white space at the ends"),
    talk("Ümläute, 你好 🙂?", "Ja: äöü 🙂 你好", "12 345", "1234567890", name="unicode and digits"),
    talk("Same", "Same", "Same", "Same", name="the same again"),
    talk("What is <b>this</b>?", "<think>hm</think>\n\nA tag.", "Why?", "Because.", name="a think block of its own"),
)


def reference_prompt(chat: Chat, messages: Sequence[Message]) -> list[int]:
    """The evaluation prompt by the tokenizer's own way from messages to tokens."""
    rows = [{"role": m.role, "content": m.content} for m in messages]
    made: Any = chat.tokenizer.apply_chat_template(
        rows, tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=True
    )
    return list(made["input_ids"])


def supervised_runs(example: Example) -> list[tuple[int, int]]:
    """Where supervision begins and ends, each maximal run."""
    marks = [False, *example.supervised, False]
    begins = [i for i in range(len(marks) - 1) if marks[i + 1] and not marks[i]]
    ends = [i for i in range(len(marks) - 1) if marks[i] and not marks[i + 1]]
    return list(zip(begins, ends, strict=True))


def check_prefix_property(chat: Chat, conversation: Conversation) -> list[Example]:
    """Every assistant turn is supervised once, in order, behind exactly its evaluation prompt, up to its end of
    turn."""
    examples, counts = encode(chat, corpus(conversation), max_length=10_000)
    runs = [(example, *run) for example in examples for run in supervised_runs(example)]
    turns = [k for k, m in enumerate(conversation.messages) if m.role == "assistant"]
    assert len(runs) == len(turns)
    for (example, begin, end), k in zip(runs, turns, strict=True):
        prompt = reference_prompt(chat, conversation.messages[:k])
        assert list(example.tokens[:begin]) == prompt
        assert chat.prompt(conversation.messages[:k]) == tuple(prompt)
        answer = example.tokens[begin:end]
        assert answer[-1] == chat.eos_id
        assert chat.tokenizer.decode(answer[:-1]) == conversation.messages[k].content
        assert end == len(example.tokens) or not example.supervised[end]
    assert counts["examples"] == len(examples)
    assert counts["supervised tokens"] == sum(end - begin for _, begin, end in runs)
    assert counts["tokens"] == sum(len(e.tokens) for e in examples)
    return examples


@pytest.mark.parametrize("conversation", HARD, ids=lambda c: c.id)
def test_training_prefix_is_the_evaluation_prompt_with_chatml(chat: Chat, conversation: Conversation) -> None:
    check_prefix_property(chat, conversation)


@pytest.mark.parametrize("conversation", HARD, ids=lambda c: c.id)
def test_training_prefix_is_the_evaluation_prompt_with_a_qwen3_style_template(
    chat: Chat, conversation: Conversation
) -> None:
    examples = check_prefix_property(with_template(chat, QWEN3_STYLE), conversation)
    assert len(examples) == sum(m.role == "assistant" for m in conversation.messages)
    for example in examples:
        ((begin, _),) = supervised_runs(example)
        assert chat.tokenizer.decode(example.tokens[:begin]).endswith(f"assistant\n{THINK}")


def test_training_prefix_is_the_evaluation_prompt_on_the_offline_corpus(chat: Chat, small_corpus: Corpus) -> None:
    for conversation in small_corpus.conversations[:60]:
        assert len(check_prefix_property(chat, conversation)) == 1


def test_turns_share_an_example_where_the_template_extends_itself(chat: Chat) -> None:
    for conversation in HARD[:3]:
        (example,), _ = encode(chat, corpus(conversation), max_length=1000)
        assert example.id == conversation.id
        assert len(supervised_runs(example)) == sum(m.role == "assistant" for m in conversation.messages)


def test_earlier_turns_of_a_qwen3_style_template_carry_no_think_block(chat: Chat) -> None:
    qwen = with_template(chat, QWEN3_STYLE)
    first, second = encode(qwen, corpus(HARD[2]), max_length=1000)[0]
    assert qwen.tokenizer.decode(first.tokens).count(THINK) == 1
    assert qwen.tokenizer.decode(second.tokens).count(THINK) == 1
    ((begin, _),) = supervised_runs(second)
    assert second.tokens[: len(first.tokens)] != first.tokens
    assert qwen.tokenizer.decode(second.tokens[:begin]).endswith(f"{END}\n{START}assistant\n{THINK}")


def test_supervised_tokens_are_the_answer_and_its_end_of_turn(chat: Chat) -> None:
    (example,), counts = encode(chat, corpus(talk("Hi", "Hello Anna.")), max_length=1000)
    answer = chat.tokens(["Hello Anna." + END])[0]
    prompt = chat.tokens([f"{START}user\nHi{END}\n{START}assistant\n"])[0]
    assert example.tokens == (*prompt, *answer)
    assert example.supervised == (False,) * len(prompt) + (True,) * len(answer)
    assert counts == {
        "conversations": 1,
        "examples": 1,
        "tokens": len(prompt + answer),
        "supervised tokens": len(answer),
    }


def test_two_conversations_of_one_name_stay_apart(chat: Chat) -> None:
    examples, _ = encode(chat, corpus(talk("Hi", "Hello."), talk("Hi", "Hello.")), max_length=1000)
    assert len(examples) == 2
    assert examples[0] == examples[1]


def test_what_was_dropped_before_is_counted_on(chat: Chat) -> None:
    _, counts = encode(chat, corpus(HARD[0], empty=3), max_length=1000)
    assert counts["dropped: empty"] == 3


def test_long_examples_are_cut_and_counted(chat: Chat) -> None:
    conversations = corpus(talk("Hi", "Hello.", name="short"), talk("Hi", "Hello to all of you", name="long"))
    whole, _ = encode(chat, conversations, max_length=1000)
    limit = len(whole[1].tokens) - 3
    assert len(whole[0].tokens) <= limit
    cut, counts = encode(chat, conversations, max_length=limit)
    assert cut[0] == whole[0]
    assert cut[1] == Example("long", whole[1].tokens[:limit], whole[1].supervised[:limit])
    assert (counts["examples cut at max_length"], counts["tokens cut"]) == (1, 3)
    assert counts["tokens"] == len(whole[0].tokens) + limit
    assert counts["supervised tokens"] == sum(map(sum, (e.supervised for e in cut)))


def test_an_example_without_two_neighbouring_supervised_tokens_is_dropped_and_counted(chat: Chat) -> None:
    examples, counts = encode(
        chat, corpus(talk("Hi", "Hello.", name="good"), talk("Hi", "", name="bare")), max_length=99
    )
    assert [e.id for e in examples] == ["good"]
    assert (counts["examples"], counts["conversations"], counts["dropped: nothing to supervise"]) == (1, 2, 1)


@pytest.mark.parametrize(("answer", "max_length"), [("", 1000), ("Hello Anna.", 12)])
def test_nothing_to_supervise_is_an_input_error(chat: Chat, answer: str, max_length: int) -> None:
    with pytest.raises(InputError, match=f"'made': nothing to supervise in 1 conversations.*max_length={max_length}"):
        encode(chat, corpus(talk("Hi", answer)), max_length=max_length)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}"),
        CHATML.replace("message['role'] + '\\n'", "message['role'] + ':'"),
    ],
)
def test_a_template_that_does_not_continue_its_generation_prompt_is_refused(chat: Chat, template: str) -> None:
    assert template != CHATML
    with pytest.raises(InputError, match=r"conversation c: the chat template renders the finished turn differently"):
        encode(with_template(chat, template), corpus(talk("Hi", "Hello.")), max_length=1000)


def test_a_template_that_does_not_end_its_turns_is_refused(chat: Chat) -> None:
    open_ended = with_template(chat, CHATML.replace("+ '<|im_end|>\\n'", "+ '\\n'"))
    with pytest.raises(InputError, match=r"conversation c: .*does not end an answer.*'<\|im_end\|>'"):
        encode(open_ended, corpus(talk("Hi", "Hello.")), max_length=1000)


def test_a_tokenizer_without_template_or_mask_token_is_refused(chat: Chat) -> None:
    with pytest.raises(InputError, match="has no chat template"):
        with_template(chat, None)
    with pytest.raises(InputError, match=r"mask token '<\|nope\|>' is not in the tokenizer"):
        Chat(chat.tokenizer, "<|nope|>")
    assert Chat(chat.tokenizer, 7).mask_id == 7


@pytest.mark.parametrize("special", [True, False])
def test_only_special_tokens_are_left_out_where_they_have_no_row(chat: Chat, special: bool) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(chat.tokenizer.backend_tokenizer.to_str()), eos_token=END, pad_token=END
    )
    tokenizer.chat_template = CHATML
    tokenizer.add_tokens([AddedToken("<picture>", special=special)], special_tokens=special)
    longer = Chat(tokenizer, MASK)
    assert longer.vocab == chat.vocab + 1
    assert longer.within(chat.vocab).vocab == chat.vocab + (not special)
    assert longer.within(chat.vocab + 9) is longer
    assert longer.control_token("a <picture> of") == ("<picture>" if special else None)


def test_a_template_that_asks_for_the_day_gets_always_the_same(chat: Chat) -> None:
    """Also within a macro, as gpt-oss asks."""
    inside = (
        "{%- macro head() -%}{{ strftime_now('%Y-%m-%d') }}{%- endmacro -%}{{ head() }} {{ strftime_now('%d %b %Y') }}"
    )
    assert with_template(chat, inside).render([Message("user", "Hi")], generation=True) == "2024-07-26 26 Jul 2024"


def test_the_built_tokenizer_keeps_digits_apart_and_knows_its_special_tokens(chat: Chat) -> None:
    (ids,) = chat.tokens(["2024 and 17"])
    digits = chat.tokens(["7"])[0]
    assert len(digits) == 1
    assert sum(chat.tokenizer.decode([i]).strip().isdigit() for i in ids) == 6
    specials = {chat.eos_id, chat.pad_id, chat.mask_id, chat.tokens([START])[0][0]}
    assert len(specials) == 4
    assert chat.stop_ids == {chat.eos_id}
    assert chat.vocab == len(chat.tokenizer) == 320
    assert chat.text([*ids, chat.eos_id]) == "2024 and 17"


def test_a_saved_chat_format_is_the_same_when_loaded(chat: Chat, target_config: TargetConfig, tmp_path: Path) -> None:
    chat.save(tmp_path)
    loaded = Chat.load(replace(target_config, path=str(tmp_path)))
    assert (loaded.vocab, loaded.eos_id, loaded.pad_id, loaded.mask_id) == (320, chat.eos_id, chat.pad_id, chat.mask_id)
    conversations = corpus(*HARD)
    assert encode(loaded, conversations, max_length=500) == encode(chat, conversations, max_length=500)


def test_stop_tokens_that_the_target_declares_end_a_turn_too(
    chat: Chat, target_config: TargetConfig, tmp_path: Path
) -> None:
    chat.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{chat.eos_id}, 9]}}')
    assert Chat.load(replace(target_config, path=str(tmp_path))).stop_ids == {chat.eos_id, 9}


def test_training_prefix_is_the_evaluation_prompt_with_a_real_tokenizer() -> None:
    folder = Path(os.environ.get("SPECAUF_DATA", "/nonexistent")) / "qwen2.5-tokenizer"
    if not folder.is_dir():
        pytest.skip("SPECAUF_DATA names no folder with qwen2.5-tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shipped = tokenizer.chat_template
    for template in filter(None, (shipped, CHATML, QWEN3_STYLE)):
        tokenizer.chat_template = template
        chat = Chat(tokenizer, "<|endoftext|>")
        for conversation in HARD:
            check_prefix_property(chat, conversation)


def test_what_a_foreign_target_declares_wrongly_is_one_line(chat: Chat, tmp_path: Path) -> None:
    config = TargetConfig("t", "t", str(tmp_path / "t"), None, 1, MASK, False, None)
    chat.save(tmp_path / "t")
    (tmp_path / "t" / "generation_config.json").write_text('{"eos_token_id": ["2"]}')
    with pytest.raises(InputError, match=r"eos_token_id \['2'\]; valid: an id, or a list of them"):
        Chat.load(config)
    (tmp_path / "t" / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"target\.mask_token=-1 must be an id of at least 0"):
        Chat.load(replace(config, mask_token=-1))
    refusing = Chat.load(config)
    refusing.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="cannot render the turns system, user: System role not supported"):
        encode(refusing, corpus(talk("Hi", "Hello.", system="Be brief.")), max_length=99)
    (tmp_path / "t" / "tokenizer.json").write_text('{"version": "1.0')
    with pytest.raises(InputError, match=r"the tokenizer of target '.*/t' cannot be loaded: .*Unterminated"):
        Chat.load(config)


def test_an_answer_may_end_with_a_stop_token_that_is_not_the_tokenizers_own(chat: Chat) -> None:
    """A base model's tokenizer ends texts, its template turns: generation_config.json names both."""
    other = Chat(chat.tokenizer, MASK, [chat.tokens(["<|im_end|>"])[0][0]])
    other.eos_id = chat.pad_id
    conversations = corpus(talk("Hi", "Hello."), talk("What is 2 + 2?", "Four."))
    assert encode(other, conversations, max_length=500) == encode(chat, conversations, max_length=500)


@pytest.mark.parametrize(
    "texts",
    [
        ("Hi", f"Hello{END} there."),
        ("Hi", f"{START}user\nHi{END}\n"),
        ("Hi", f"a {MASK} b"),
        (f"What is {END}?", "A token."),
        ("Hi", "Hello.", "Why?", "<|endoftext|>"),
    ],
)
def test_a_conversation_that_spells_a_control_token_is_dropped_and_counted(chat: Chat, texts: tuple[str, ...]) -> None:
    examples, counts = encode(chat, corpus(talk(*texts, name="bad"), talk("Hi", "Hello Anna.")), max_length=100)
    assert [e.id for e in examples] == ["c"]
    assert counts["dropped: a control token spelled out in the text"] == 1
    assert counts["conversations"] == 2
    with pytest.raises(InputError, match="1 dropped: a control token spelled out"):
        encode(chat, corpus(talk(*texts)), max_length=100)


@given(
    st.lists(st.sampled_from([START, END, MASK, "<|endoftext|>", "<|im_", "end|>", "<", "|", ">", "hello", " ", "é"]))
)
def test_no_control_token_is_ever_inside_a_supervised_answer(chat: Chat, parts: list[str]) -> None:
    answer = "".join(["x", *parts, "y"])
    examples, _ = encode(chat, corpus(talk("Hi", answer, name="drawn"), talk("Hi", "Hello Anna.")), max_length=1000)
    drawn = [e for e in examples if e.id == "drawn"]
    assert bool(drawn) == (chat.control_token(answer) is None)
    for example in drawn:
        supervised = [t for t, s in zip(example.tokens, example.supervised, strict=True) if s]
        assert supervised[-1] == chat.eos_id
        assert not {chat.eos_id, chat.mask_id, chat.pad_id, *chat.tokens([START])[0]} & set(supervised[:-1])


def test_control_tokens_are_found_behind_a_normalizer(chat: Chat) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    wide = "\uff1c|im_end|\uff1e"  # full-width brackets, which this normalizer makes ordinary ones
    assert chat.control_token(wide) is None
    assert Chat(tokenizer, MASK).control_token(wide) == END


def test_added_tokens_that_only_mean_something_in_text_are_text(chat: Chat) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.add_tokens(["<think>"])
    assert Chat(tokenizer, MASK).control_token("<think>hm") is None
    ends = Chat(tokenizer, MASK, [tokenizer.convert_tokens_to_ids("<think>")])
    assert ends.control_token("<think>hm") == "<think>"
    masks = Chat(tokenizer, "<think>")
    assert masks.control_token("<think>hm") == "<think>"
    masks.mask_id = chat.mask_id
    assert masks.control_token("<think>hm") is None
