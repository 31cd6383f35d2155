"""Checks of the text: rendering in training and evaluation, stop tokens, control tokens, first prompts, overlap."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain

from specauf_cli.data.chat import Chat
from specauf_cli.doctor.subject import FAIL, OK, WARN, Finding, LeftOut, Subject
from specauf_cli.errors import InputError
from specauf_cli.types import Conversation, Corpus, Example, Message, PromptSet

SHOWN = 240
"""Characters of a prompt that are shown."""


def rendering(subject: Subject) -> Finding:
    """The tokens before a trained answer are exactly those of the evaluation prompt.

    Qwen3's template writes an empty think block in a generation prompt with thinking off, but only in the last
    assistant turn of a finished conversation (SpecForge#296, #182).
    """
    chat, sample = subject.target().chat, subject.sample()
    turns = 0
    for conversation in sample:
        for k, messages in _asked(conversation):
            whole = chat.render([*messages, conversation.messages[k]], generation=False)
            prompt = chat.render(messages, generation=True)
            turns += 1
            if not whole.startswith(prompt):
                trained, asked = chat.tokens([whole])[0], chat.tokens([prompt])[0]
                return Finding(
                    FAIL,
                    f"conversation {conversation.id}, message {k + 1}: {_difference(chat, trained, asked)}",
                    "use a template whose finished answer continues its own generation prompt (thinking off in both)",
                )
    try:
        examples = subject.examples()
    except LeftOut as error:
        if stop_tokens(subject).verdict == FAIL:
            raise
        return Finding(FAIL, error.reason, "give conversations with answers that fit trainer.max_length")
    encoded: dict[str, list[Example]] = {}
    for example in examples:
        encoded.setdefault(example.id, []).append(example)
    for conversation in sample:
        for k, messages in _asked(conversation):
            trained_on, asked = encoded.get(conversation.id, []), list(chat.prompt(messages))
            if not any(_continues(e, asked) for e in trained_on) and not _cut(trained_on, asked, subject):
                closest = max(trained_on, key=lambda e: _common(e.tokens, asked))
                return Finding(
                    FAIL,
                    f"conversation {conversation.id}, message {k + 1}: {_difference(chat, closest.tokens, asked)}",
                    "encode every answer after its own evaluation prompt",
                )
    split = sum(len(e) > 1 for e in encoded.values())
    note = f"; {split} conversations are split, since the template rewrites earlier turns" if split else ""
    return Finding(
        OK, f"{turns} answers of {len(sample)} conversations follow their evaluation prompt token by token{note}"
    )


def _asked(conversation: Conversation) -> Iterable[tuple[int, Sequence[Message]]]:
    """Index of every answer, and the messages before it."""
    return ((k, conversation.messages[:k]) for k, m in enumerate(conversation.messages) if m.role == "assistant")


def _continues(example: Example, prompt: list[int]) -> bool:
    """True when the example starts with the prompt unchanged and is supervised from the next token on."""
    end = len(prompt)
    same = list(example.tokens[:end]) == prompt and len(example.tokens) > end
    return same and example.supervised[end] and not example.supervised[end - 1]


def _cut(examples: Sequence[Example], prompt: list[int], subject: Subject) -> bool:
    """True when the answer is beyond ``trainer.max_length``, or all of the conversation is."""
    most = subject.config.trainer.max_length
    return len(prompt) + 2 > most or not examples or any(len(e.tokens) >= most for e in examples)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _difference(chat: Chat, trained: Sequence[int], asked: Sequence[int]) -> str:
    at = _common(trained, asked)
    in_training, in_evaluation = (_token(chat, x[at]) if at < len(x) else "nothing" for x in (trained, asked))
    if at == len(asked):
        return (
            f"all {at} prompt tokens agree, but the answer's first token is not supervised, or the prompt's last one is"
        )
    return f"token {at} is {in_training} in training and {in_evaluation} at evaluation"


def _token(chat: Chat, token: int) -> str:
    return f"{chat.tokenizer.decode([token])!r} (id {token})"


def stop_tokens(subject: Subject) -> Finding:
    """The token that ends an answer in training stops generation, and no answer contains a stop token before its
    end."""
    chat, sample = subject.target().chat, subject.sample()
    special = set(chat.tokenizer.all_special_ids) | set(chat.tokenizer.added_tokens_decoder)
    stops = ", ".join(_token(chat, t) for t in sorted(chat.stop_ids))
    ends, early, answers = set[int](), 0, 0
    for conversation in (c for c in sample if not _spelled(chat, c)):
        try:
            closings = [closing for _, closing in chat.answers(conversation)]
        except InputError as error:
            raise LeftOut("rendering", "training and evaluation render answers differently, see rendering") from error
        for closing in chat.tokens(closings):
            answers += 1
            marks = [t for t in closing if t in special or t in chat.stop_ids]
            if not marks or marks[-1] not in chat.stop_ids:
                last = _token(chat, marks[-1]) if marks else "no special token"
                return Finding(
                    FAIL,
                    f"conversation {conversation.id}: an answer ends with {last}, generation stops at {stops}",
                    "add that token to eos_token_id in the target's generation_config.json (or as its tokenizer's "
                    "eos_token)",
                )
            ends.add(marks[-1])
            early += any(t in chat.stop_ids for t in marks[:-1])
    for example in subject.examples():
        end = max(i for i, s in enumerate(example.supervised) if s)
        cut = len(example.tokens) >= subject.config.trainer.max_length
        if not cut and example.tokens[end] not in chat.stop_ids:
            return Finding(
                FAIL,
                f"example {example.id}: the last supervised token is {_token(chat, example.tokens[end])}, not a stop "
                "token",
                "supervise an answer up to and including its end-of-turn token",
            )
    if early:
        return Finding(
            WARN,
            f"{early} of {answers} answers contain a stop token before their end",
            "remove special tokens from the text of your data",
        )
    last = ", ".join(_token(chat, t) for t in sorted(ends))
    return Finding(OK, f"{answers} answers end with {last}; generation stops at {stops}")


def _spelled(chat: Chat, conversation: Conversation) -> str | None:
    """The first control token written out in a conversation."""
    return chat.control_token(*(m.content for m in conversation.messages))


def control_tokens(subject: Subject) -> Finding:
    """No text spells out a control token: such conversations are dropped from training, such prompts are skipped."""
    chat, corpora = subject.target().chat, subject.data()
    total = sum(len(corpus.conversations) for corpus in corpora)
    everything = chain.from_iterable(corpus.conversations for corpus in corpora)
    spelling = {c.id: token for c in everything if (token := _spelled(chat, c)) is not None}
    counted = [f"{len(spelling)} of {total} conversations"] if spelling else []
    with suppress(LeftOut):  # the benchmarks have a line of their own
        for _, asked in subject.prompts():
            in_prompts = {p.id: token for p in asked.prompts if (token := chat.control_token(*p.turns)) is not None}
            if in_prompts:
                counted.append(f"{len(in_prompts)} of {len(asked.prompts)} prompts of {asked.name}")
            spelling |= in_prompts
    if not spelling:
        return Finding(OK, f"none is spelled out in {total} conversations or in a prompt")
    name, token = next(iter(spelling.items()))
    return Finding(
        WARN,
        f"{'; '.join(counted)} spell out a control token, the first one {token!r} in {name}; they are left out",
        "write it in another way in your data, or accept that they are left out",
    )


def first_prompt(subject: Subject) -> Finding:
    """The first training prompt and the first benchmark prompt, as the target reads them; it must contain the user's
    text."""
    chat = subject.target().chat
    conversation = subject.data()[0].conversations[0]
    _, messages = next(iter(_asked(conversation)))
    asked = [("train", conversation.id, messages)]
    with suppress(LeftOut):  # the benchmarks have a line of their own
        asked += [
            (p.name, p.prompts[0].id, (Message("user", p.prompts[0].turns[0]),)) for _, p in subject.prompts()[:1]
        ]
    shown = []
    for where, name, turns in asked:
        tokens = chat.prompt(turns)
        text = chat.tokenizer.decode(list(tokens), skip_special_tokens=False)
        if turns[-1].content.strip() not in chat.render(turns, generation=True):
            return Finding(
                FAIL, f"{where}, {name}: the prompt does not contain the user's text", "use another chat template"
            )
        first = chat.tokenizer.bos_token_id
        if first is not None and tokens[:2] == (first, first):
            return Finding(
                FAIL,
                f"{where}, {name}: the prompt begins with {_token(chat, first)} twice",
                "let the template or the tokenizer write the first token, not both",
            )
        shown.append(f"{where}, {name}, {len(tokens)} tokens: {_short(text)}")
    return Finding(OK, "shown below", shown=tuple(shown))


def _short(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"


def overlap(subject: Subject) -> Finding:
    """Neither benchmark prompts nor held-out prompts are in the training data; counted by hashes of the text alone.

    Loading already excludes them; this is an independent check with another normalisation: equal text up to case,
    Unicode form and white space fails, equal letters and digits are a warning. In the offline corpus only first turns
    count, since its follow-ups ("Write them in capitals.") come from a short list.
    """
    train, heldout = subject.data()
    only_first = subject.config.data.source == "offline"
    trained = {strict: _hashes(_user_turns(train), strict=strict) for strict in (True, False)}
    fails, warns, counts = list[str](), list[str](), list[str]()
    for raw, asked in subject.prompts():
        planted = {b: _planted(raw, asked, trained[b], strict=b, only_first=only_first) for b in (True, False)}
        size = len(raw.prompts)
        fails += [f"{planted[True]} of {size} prompts of {raw.name}"] if planted[True] else []
        more = planted[False] - planted[True]
        warns += [f"{more} of {size} prompts of {raw.name}"] if more > 0 else []
        counts.append(str(size))
    first, held = (_hashes(_user_turns(c, first=True), strict=True) for c in (train, heldout))
    shared = len(first & held)
    fails += [f"{shared} of {len(held)} held-out prompts"] if shared else []
    if fails:
        return Finding(
            FAIL,
            f"{'; '.join(fails)} are in the training data",
            "remove them: choose those benchmarks when training (benchmark=...), or take them out of the data",
        )
    if warns:
        return Finding(
            WARN,
            f"{'; '.join(warns)} are in the training data up to punctuation",
            "look at them, and remove them from the training data",
        )
    repeated = len(train.conversations) - len(first)
    total = f"{len(train.conversations)} training conversations ({repeated} with a first prompt seen before)"
    return Finding(OK, f"none of {' + '.join(counts) or '0'} benchmark and {len(held)} held-out prompts in {total}")


def _planted(raw: PromptSet, asked: PromptSet, trained: set[bytes], *, strict: bool, only_first: bool) -> int:
    """The number of prompts with a turn, raw or in its template, whose hash is among ``trained``."""
    count = 0
    for plain, templated in zip(raw.prompts, asked.prompts, strict=True):
        most = 1 if only_first else len(plain.turns)
        count += bool(_hashes([*plain.turns[:most], *templated.turns[:most]], strict=strict) & trained)
    return count


def _user_turns(corpus: Corpus, *, first: bool = False) -> list[str]:
    turns = [[m.content for m in c.messages if m.role == "user"] for c in corpus.conversations]
    return [t[0] for t in turns] if first else [text for t in turns for text in t]


def _hashes(texts: Iterable[str], *, strict: bool) -> set[bytes]:
    return {_hash(t, strict=strict) for t in texts}


def _hash(text: str, *, strict: bool = True) -> bytes:
    text = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(c for c in text if c.isalnum())
    compared = " ".join(text.split()) if strict or len(letters) < 12 else letters  # punctuation of "Go on." counts
    return hashlib.sha256(compared.encode("utf-8", "surrogatepass")).digest()


def data(subject: Subject) -> Finding:
    """The training and held-out conversations can be read."""
    train, heldout = subject.data()
    dropped = f" ({sum(train.dropped.values())} left out)" if train.dropped else ""
    return Finding(
        OK, f"{len(train.conversations)} training{dropped} and {len(heldout.conversations)} held-out conversations"
    )


def prompts(subject: Subject) -> Finding:
    """The benchmarks can be read."""
    sets = subject.prompts()
    if not sets:
        return Finding(WARN, "no benchmark is chosen", "choose some: benchmark=offline or benchmark=all")
    return Finding(OK, ", ".join(f"{p.name} {len(p.prompts)}" for _, p in sets))
