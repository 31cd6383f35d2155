"""Chat format: conversations become tokens and a loss mask, prompts become tokens, by rendering one chat template.

The central rule: the tokens before a supervised answer are exactly the tokens of the evaluation prompt
of that turn. Templates may render a finished last turn differently from a generation prompt or from an earlier turn
(Qwen3 writes an empty think block only in the last one), so each answer is rendered as the end of its own conversation,
and turns share one sequence only where the tokens of one are a prefix of the tokens of the next.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specauf_cli.config.schema import TargetConfig
from specauf_cli.data.spool import EXAMPLES, READ, Spool
from specauf_cli.errors import InputError, first_line
from specauf_cli.types import Conversation, Corpus, Example, Message

PAD, START, END, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


SPELLS_CONTROL = "a control token spelled out in the text"
"""Why a conversation is dropped or a request skipped."""

DATE = date(2024, 7, 26)
"""Some templates (Llama 3, gpt-oss) write the day into every prompt. This is the default of Llama 3's; today's date
would change the prompts."""
_SAME_DAY = "".join(f" | replace('%{letter}', '{DATE.strftime(f'%{letter}')}')" for letter in "aAbBdjmyYHIMSp")
FIXED_DAY = "{%- macro strftime_now(format) -%}{{ format" + _SAME_DAY + " }}{%- endmacro +%}"
"""In front of a template: the function by which it asks for today gives ``DATE`` instead."""


class Chat:
    """A tokenizer with its chat template, thinking off, and the special tokens the drafter needs."""

    def __init__(self, tokenizer: Any, mask_token: str | int | None, stop_ids: Iterable[int] = ()) -> None:
        """``stop_ids``: further tokens that end a turn, besides the tokenizer's EOS.

        Without ``mask_token`` the tokenizer's mask token is used. If it has none, ``mask_id`` is -1 until the target,
        which knows its embedding, chooses a free row.
        """
        if tokenizer.chat_template is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; give a file with one in Jinja, "
                "target.chat_template=FILE, or choose an instruction-tuned target"
            )
        self.tokenizer = tokenizer
        self.vocab = len(tokenizer)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so no answer would end"
            )
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self.stop_ids = frozenset({self.eos_id, *stop_ids})
        if mask_token is None:
            self.mask_id = -1 if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id)
        elif isinstance(mask_token, int):
            if mask_token < 0:
                raise InputError(
                    f"target.mask_token={mask_token} must be an id of at least 0, a token, or null for a free row"
                )
            self.mask_id = mask_token
        else:
            known = tokenizer.get_vocab()
            if mask_token not in known:
                raise InputError(
                    f"mask token {mask_token!r} is not in the tokenizer; give a token of it, or an id, as "
                    "target.mask_token"
                )
            self.mask_id = known[mask_token]
        self._controls: tuple[int, re.Pattern[str]] | None = None

    @classmethod
    def load(cls, config: TargetConfig) -> "Chat":
        """The chat format of the target at ``config.path``."""
        from transformers import GenerationConfig

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        except Exception as error:  # any error of transformers in a foreign folder
            raise InputError(
                f"the tokenizer of target {config.path!r} cannot be loaded: {first_line(error)}"
            ) from error
        if config.chat_template is not None:
            tokenizer.chat_template = template_of(config.chat_template)
        stops: set[int] = set()
        try:
            declared = GenerationConfig.from_pretrained(config.path, revision=config.revision).eos_token_id
            stops = set(declared if isinstance(declared, list) else [declared]) - {None}
        except OSError:
            pass  # the file is optional; the tokenizer's EOS always ends a turn
        if not all(type(s) is int for s in stops):
            raise InputError(
                f"the generation config of target {config.path!r} has eos_token_id {declared!r}; valid: an id, or a "
                "list of them"
            )
        return cls(tokenizer, config.mask_token, stops)

    @classmethod
    def build(cls, texts: Iterable[str], vocab_size: int) -> "Chat":
        """A new ChatML byte-level BPE tokenizer trained on ``texts``; digits stay single tokens, as in Qwen3.

        The vocabulary can be smaller than ``vocab_size`` if the texts have too few frequent pairs.
        """
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, START, END, MASK],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token=END, pad_token=PAD, mask_token=MASK, clean_up_tokenization_spaces=False
        )
        tokenizer.chat_template = CHATML
        return cls(tokenizer, MASK)

    def changed(self, *, mask_id: int | None = None, vocab: int | None = None) -> "Chat":
        """This format with another mask token, or another count of tokens; the tokenizer is shared."""
        other = copy(self)
        other.mask_id = self.mask_id if mask_id is None else mask_id
        other.vocab = self.vocab if vocab is None else vocab
        return other

    def within(self, rows: int) -> "Chat":
        """This format for a model with so many rows of the embedding.

        Special tokens after them (a placeholder of pictures in the text-only Gemma 3 1B) are left out: no text has
        one. Other tokens are not: a text with one could not be read.
        """
        added = self.tokenizer.added_tokens_decoder
        spare = self.vocab > rows and all(i in added and added[i].special for i in range(rows, self.vocab))
        return self.changed(vocab=rows) if spare else self

    def save(self, folder: Path) -> None:
        """Writes the tokenizer in the Hugging Face layout."""
        self.tokenizer.save_pretrained(folder)

    def control_token(self, *texts: str) -> str | None:
        """The first control token written out in ``texts``; in a conversation it would be read as markup, not as text.

        Control tokens are the tokenizer's special tokens, and its added tokens that end a turn, pad or mask.
        """
        return next(filter(None, map(self._control_token, texts)), None)

    def _control_token(self, text: str) -> str | None:
        pattern = self._control_pattern()
        match = pattern.search(text)
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        if match is None and normalizer is not None:  # which may turn other characters into a token's own
            match = pattern.search(normalizer.normalize_str(text))
        return None if match is None else match[0]

    def _control_pattern(self) -> re.Pattern[str]:
        if self._controls is None or self._controls[0] != self.mask_id:  # a copy with another mask token
            added = self.tokenizer.added_tokens_decoder
            ids = {self.mask_id, self.pad_id, *self.stop_ids}
            names = {t.content for i, t in added.items() if t.special or i in ids}
            longest_first = sorted(filter(None, names | set(self.tokenizer.all_special_tokens)), key=len, reverse=True)
            pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
            self._controls = self.mask_id, re.compile(pattern)
        return self._controls[1]

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The template's text for ``messages``; ``generation`` adds the opening of the assistant's turn."""
        rows = [{"role": m.role, "content": m.content} for m in messages]
        try:
            template: str = self.tokenizer.get_chat_template()
            text: str = self.tokenizer.apply_chat_template(
                rows,
                chat_template=FIXED_DAY + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
                date_string=DATE.strftime("%d %b %Y"),
            )
        except Exception as error:  # any error in a foreign template
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path!r} cannot render the turns "
                f"{', '.join(m.role for m in messages)}: {first_line(error)}"
            ) from error
        return text

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that already hold their special tokens."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The evaluation prompt: everything up to the start of the assistant's next answer."""
        return tuple(self.tokens([self.render(messages, generation=True)])[0])

    def text(self, tokens: Sequence[int]) -> str:
        """Plain text of a completion without special tokens."""
        decoded: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return decoded

    def answers(self, conversation: Conversation) -> list[tuple[str, str]]:
        """For each assistant turn: the text of the evaluation prompt, and the text of the answer including the closing
        text of the template.

        Errors: InputError when the template does not continue its own generation prompt, so no loss mask can be
        derived.
        """
        turns = []
        for k, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            prompt = self.render(conversation.messages[:k], generation=True)
            whole = self.render(conversation.messages[: k + 1], generation=False)
            if not whole.startswith(prompt):
                raise InputError(
                    f"conversation {conversation.id}: the chat template renders the finished turn differently from its "
                    "generation prompt, so training and evaluation would see different prompts; use a template that "
                    "continues it"
                )
            turns.append((prompt, whole[len(prompt) :]))
        return turns


def template_of(file: str) -> str:
    """The chat template in ``file``. Errors: InputError when it cannot be read, or holds nothing."""
    try:
        template = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"target.chat_template={file} cannot be read: {first_line(error)}") from error
    if not template.strip():
        raise InputError(f"target.chat_template={file} is empty; it holds a chat template in Jinja")
    return template


def free_tokens(tokenizer: Any) -> list[int]:
    """Ids of special tokens whose name says they are spare (reserved, unused, extra): they occur in no text."""
    special = tokenizer.get_added_vocab()
    return sorted(i for token, i in special.items() if re.search(r"reserved|unused|extra_\d|placeholder", token))


def encode(chat: Chat, corpus: Corpus, *, max_length: int) -> tuple[Sequence[Example], dict[str, int]]:
    """Examples of a corpus, with counts of conversations, examples and tokens and of everything cut or dropped.

    A conversation with a control token written out in its text is dropped: the text would be tokenised, and
    supervised, as markup. A conversation gives one example if the tokens of every turn extend those of the turn
    before, else one per such run of turns. An answer is supervised from its first token to its end-of-turn token.
    Examples longer than ``max_length`` are truncated. Many examples are kept in a temporary file (``spool.py``).
    Errors: InputError when no example with two neighbouring supervised tokens remains.
    """
    examples = Spool(EXAMPLES, f"examples of {corpus.name}")
    counts: Counter[str] = Counter(
        conversations=len(corpus.conversations), **{f"dropped: {k}": v for k, v in corpus.dropped.items()}
    )
    spelled, lost, sums = Counter[str](), Counter[str](), Counter[str]()
    for name, tokens, supervised in _runs(chat, corpus.conversations, spelled):
        if len(tokens) > max_length:
            lost["examples cut at max_length"] += 1
            lost["tokens cut"] += len(tokens) - max_length
        cut = Example(name, tuple(tokens[:max_length]), tuple(supervised[:max_length]))
        if any(a and b for a, b in zip(cut.supervised, cut.supervised[1:], strict=False)):
            examples.append(cut)
            sums.update(examples=1, tokens=len(cut.tokens))
            sums["supervised tokens"] += sum(cut.supervised)
        else:
            lost["dropped: nothing to supervise"] += 1
    if not sums:
        raise InputError(
            f"data {corpus.name!r}: nothing to supervise in {len(corpus.conversations)} conversations "
            f"(no answer of two tokens within trainer.max_length={max_length}; "
            f"{spelled.total()} dropped: {SPELLS_CONTROL})"
        )
    return examples.rows(), {**counts, **spelled, **lost, **sums}


def _runs(
    chat: Chat, conversations: Iterable[Conversation], spelled: Counter[str]
) -> Iterator[tuple[str, list[int], list[bool]]]:
    """Name, tokens and supervision of every run of turns; conversations that are dropped are counted in ``spelled``."""
    run: tuple[str, list[int], list[bool]] | None = None
    source = iter(conversations)
    while group := list(islice(source, READ)):  # the tokenizer takes many texts at once; not all there are
        plain = [c for c in group if chat.control_token(*(m.content for m in c.messages)) is None]
        if len(plain) < len(group):
            spelled[f"dropped: {SPELLS_CONTROL}"] += len(group) - len(plain)
        turns = [(c, *turn) for c in plain for turn in chat.answers(c)]
        prompts = chat.tokens([prompt for _, prompt, _ in turns])
        closings = chat.tokens([answer for _, _, answer in turns])
        for (conversation, _, _), prompt, closing in zip(turns, prompts, closings, strict=True):
            answer = _to_the_end(chat, conversation, closing)
            if run is None or conversation.id != run[0] or prompt[: len(run[1])] != run[1]:
                if run is not None:
                    yield run
                run = (conversation.id, [], [])
            _, tokens, supervised = run
            supervised += [False] * (len(prompt) - len(tokens)) + [True] * len(answer)
            tokens += prompt[len(tokens) :] + answer
    if run is not None:
        yield run


def _to_the_end(chat: Chat, conversation: Conversation, closing: Sequence[int]) -> list[int]:
    """The tokens of an answer, up to its end of turn. Errors: InputError when it has none."""
    ends = {chat.eos_id} if chat.eos_id in closing else chat.stop_ids
    last = max((i for i, token in enumerate(closing) if token in ends), default=None)
    if last is None:
        raise InputError(
            f"conversation {conversation.id}: the chat template does not end an answer with the end-of-turn token "
            f"{chat.tokenizer.eos_token!r} or another one that ends a turn, so a drafter could never learn to stop"
        )
    return list(closing[: last + 1])
