"""Training conversations: read, normalised, split by prompt.

A row of either public shape becomes a ``Conversation``. Unusable rows are dropped and *counted*; a row that is not
understood is an ``InputError`` that names the file and the line, since a guess would train on the wrong text.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from specauf_cli.config.schema import DataConfig
from specauf_cli.data.rows import Row, hub_rows, is_unicode, json_rows, kind, names
from specauf_cli.data.spool import CONVERSATIONS, Names, Spool, select
from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Conversation, Corpus, Message, PromptSet

# All role names found in public ShareGPT-like sets (SpecForge's scripts/prepare_data.py maps the same names).
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

SHAPES = '{"conversations" or "messages": [{"from","value"} or {"role","content"}, ...]}'


def load(config: DataConfig, *, exclude: Iterable[PromptSet] = ()) -> tuple[Corpus, Corpus]:
    """The training and the held-out conversations of ``conf/data``.

    Held-out and training conversations never share a first user turn. ``exclude``: benchmark prompts as returned by
    ``benchmarks.load_raw`` (see ``remove_prompts``). Dropped rows are counted in the training corpus, since both come
    from the same rows. Raises ``InputError`` for a missing setting, and bad or too little data.
    """
    excluded = tuple(exclude)
    if config.source == "offline":
        from specauf_cli.data import offline

        if not config.limit or config.limit < 1 or config.heldout < 1:
            raise InputError(
                f"data={config.name}: the offline corpus is unlimited, so data.limit and data.heldout must be numbers "
                f">= 1, not {config.limit} and {config.heldout}"
            )
        train = offline.conversations(count=config.limit, seed=config.seed)
        heldout = offline.heldout(config.heldout, seed=config.seed)
        return remove_prompts(train, excluded), remove_prompts(heldout, excluded)
    if config.source == "jsonl":
        if not config.path:
            raise InputError(f"data={config.name} needs a file or a folder: data.path=FILE_OR_FOLDER")
        corpus = load_jsonl(Path(config.path))
    else:
        if not config.hub_id:
            raise InputError(f"data={config.name} needs a data set of the Hugging Face hub: data.hub_id=OWNER/NAME")
        corpus = load_hub(config.hub_id, revision=config.revision, files=config.files)
    train, heldout = split_by_prompt(remove_prompts(corpus, excluded), config.heldout, seed=config.seed)
    return take(train, config.limit, seed=config.seed), heldout


def load_jsonl(path: Path) -> Corpus:
    """Conversations of a ``.jsonl`` or ``.json`` file, or of all such files below a folder, sorted by path.

    ``sha256`` is over the contents of the files in that order, so it depends on the data and not on the path (for
    one file it is what ``sha256sum`` prints). A repeated id gets ``#2``, ``#3``, ...: ids name statistical clusters.
    Raises ``InputError`` naming file and line for malformed JSON, a row of another shape or an unknown role, and for a
    missing path, an empty file or folder, or if no conversation is left.
    """
    digest = hashlib.sha256()

    def rows() -> Iterator[tuple[str, str, str, Row]]:
        for file in _files(path):
            for number, where, row in json_rows(file, digest.update):
                yield where, f"{file.stem}-{number}", file.stem, row

    conversations, dropped = _collect(rows(), where=str(path))
    return Corpus(path.resolve().stem, conversations, dropped, digest.hexdigest())


def load_hub(hub_id: str, *, revision: str | None, files: str | None) -> Corpus:
    """Conversations of the ``train`` split of a Hugging Face data set (``files``: only these of its files).

    ``name`` is ``ID@COMMIT`` with the resolved commit, ``sha256`` is over the normalised conversations. Raises
    ``InputError`` when the hub cannot be reached or has no such set, and for rows as ``load_jsonl`` does.
    """
    rows, commit = hub_rows(
        hub_id,
        subset=None,
        split="train",
        revision=revision,
        files=files,
        instead="use a local copy: data=jsonl data.path=FILE_OR_FOLDER",
    )
    name = hub_id.rsplit("/", 1)[-1]
    placed = ((f"{hub_id}, row {number}", f"{name}-{number}", name, row) for number, row in enumerate(rows))
    conversations, dropped = _collect(placed, where=hub_id)
    return Corpus(f"{hub_id}@{commit}", conversations, dropped, content_hash(conversations))


def split_by_prompt(corpus: Corpus, heldout: int, *, seed: int) -> tuple[Corpus, Corpus]:
    """``(train, held-out)`` with exactly ``heldout`` held-out conversations, each with a different prompt.

    Prompts (first user turns, see ``prompt_key``) are taken in the order of a seeded hash: it depends on the prompt
    alone, so a smaller ``heldout`` is a prefix of a larger one. The first conversation of a taken prompt is held out;
    its others are dropped and counted in train. Raises ``InputError`` unless a prompt is left to train on.
    """
    if heldout < 0:
        raise InputError(f"data.heldout must be >= 0, not {heldout}")
    first = _first_by_hash(corpus.conversations, heldout + 1, seed)
    if len(first) <= heldout:
        raise InputError(
            f"{corpus.name}: {len(first)} different prompts are too few to hold out {heldout} and train on the rest; "
            + ("give more data" if len(first) < 2 else f"use data.heldout <= {len(first) - 1} or more data")
        )
    taken = dict(sorted(first.items())[:heldout])
    order = enumerate(corpus.conversations)
    train = array("q", (i for i, conversation in order if _prompt_hash(conversation, seed) not in taken))
    dropped = len(corpus.conversations) - len(train) - len(taken)
    return (
        _derived(corpus, train, "same prompt as a held-out conversation", dropped),
        replace(
            _derived(corpus, list(taken.values()), "", 0),
            name=f"{corpus.name}-heldout",
            dropped={},  # counted once, in train
        ),
    )


def take(corpus: Corpus, limit: int | None, *, seed: int) -> Corpus:
    """The first ``limit`` conversations after a seeded permutation (None: all of them, in that order).

    Conversations beyond the limit are counted; fewer than the limit is not an error. Raises ``InputError`` for a
    limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"data.limit must be >= 1, or null for everything, not {limit}")
    order = array("q", range(len(corpus.conversations)))
    random.Random(seed).shuffle(order)
    kept = order[:limit]
    return _derived(corpus, kept, "beyond data.limit", len(order) - len(kept))


def remove_prompts(corpus: Corpus, prompt_sets: Iterable[PromptSet]) -> Corpus:
    """``corpus`` without the conversations in which a user turn equals a benchmark's turn; they are counted.

    Turns are compared after ``prompt_key``. Pass the prompts of ``benchmarks.load_raw``: a turn inside its template
    would match no training turn. Raises ``InputError`` when nothing is left.
    """
    turns = {prompt_key(turn) for prompts in prompt_sets for prompt in prompts.prompts for turn in prompt.turns}
    if not turns:
        return corpus
    kept = array(
        "q",
        (
            index
            for index, conversation in enumerate(corpus.conversations)
            if not any(m.role == "user" and prompt_key(m.content) in turns for m in conversation.messages)
        ),
    )
    if not kept and corpus.conversations:
        raise InputError(f"{corpus.name}: all {len(corpus.conversations)} conversations are in a benchmark")
    return _derived(corpus, kept, "in a benchmark", len(corpus.conversations) - len(kept))


def prompt_key(text: str) -> str:
    """``text`` in lower case with white space collapsed: two prompts with one key count as the same prompt."""
    return " ".join(text.split()).lower()


def content_hash(conversations: Iterable[Conversation]) -> str:
    """SHA-256 over ids, roles and contents, in order."""
    digest = hashlib.sha256()
    for conversation in conversations:
        turns = [[message.role, message.content] for message in conversation.messages]
        digest.update(json.dumps([conversation.id, turns], separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (".jsonl", ".json"):
            raise InputError(f"{path}: unknown kind of file {path.suffix!r}; valid: .jsonl, .json, or a folder of them")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give data.path=FILE.jsonl or a folder of such files")
    files = [file for file in path.rglob("*") if file.suffix in (".jsonl", ".json") and file.is_file()]
    if not files:
        raise InputError(f"{path}: no *.jsonl or *.json file in this folder")
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def _collect(rows: Iterable[tuple[str, str, str, Row]], *, where: str) -> tuple[Sequence[Conversation], dict[str, int]]:
    kept = Spool(CONVERSATIONS, where)
    dropped: Counter[str] = Counter()
    with closing(Names()) as ids:
        for place, default_id, source, row in rows:
            conversation = _conversation(row, where=place, default_id=default_id, default_source=source)
            if isinstance(conversation, str):  # why it is dropped
                dropped[conversation] += 1
                continue
            again, unique = 1, conversation.id
            while not ids.add(unique):
                again += 1
                unique = f"{conversation.id}#{again}"
            kept.append(replace(conversation, id=unique))
    conversations = kept.rows()
    if not conversations:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no rows"
        raise InputError(f"{where}: no conversation is left to use (dropped: {counts})")
    return conversations, dict(dropped)


def _conversation(row: Row, *, where: str, default_id: str, default_source: str) -> Conversation | str:
    """The row as a conversation, or the reason it is dropped. Null counts as absent: Arrow fills gaps with nulls."""
    turns = row.get("conversations")
    if turns is None:
        turns = row.get("messages")
    if turns is None:
        raise InputError(f"{where}: no 'conversations' or 'messages' (it has: {names(row)}); valid: {SHAPES}")
    if not isinstance(turns, list):
        raise InputError(f"{where}: the turns must be a list, found {kind(turns)}; valid: {SHAPES}")
    messages = tuple(_message(turn, where=f"{where}, turn {number}") for number, turn in enumerate(turns, 1))
    reason = _unusable(messages)
    if reason:
        return reason
    return Conversation(
        id=_label(row, "id", where) or default_id,
        messages=messages,
        source=_label(row, "source", where) or default_source,
    )


def _message(turn: object, *, where: str) -> Message:
    if not isinstance(turn, dict):
        raise InputError(f"{where}: expected a JSON object, found {kind(turn)}; valid: {SHAPES}")
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if role is None or content is None:
        missing = "'role' or 'from'" if role is None else "'content' or 'value'"
        raise InputError(f"{where}: no {missing} (it has: {names(turn)}); valid: {SHAPES}")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}: unknown role {role!r}; valid: {', '.join(ROLES)}.{nearest(str(role), ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"{where}: the content must be a string, found {kind(content)}")
    return Message(ROLES[role], content)


def _unusable(messages: tuple[Message, ...]) -> str | None:
    if any(not message.content.strip() for message in messages):
        return "empty turn"
    if any(not is_unicode(message.content) for message in messages):
        return "not valid Unicode"
    roles = [message.role for message in messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    if not roles:
        return "no turns"
    if "system" in roles:
        return "system turn not at the front"
    if roles[0] != "user":
        return "does not start with the user"
    if any(here == after for here, after in pairwise(roles)):
        return "does not alternate"
    return None if roles[-1] == "assistant" else "does not end with the assistant"


def _label(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: {field!r} must be a string or a whole number, found {kind(value)}")
    return str(value)


def _first_user_turn(conversation: Conversation) -> str:
    return next(message.content for message in conversation.messages if message.role == "user")


def _prompt_hash(conversation: Conversation, seed: int) -> bytes:
    """Where a conversation's prompt comes in the order of prompts that ``seed`` gives."""
    return hashlib.sha256(f"{seed}\n{prompt_key(_first_user_turn(conversation))}".encode()).digest()


def _first_by_hash(conversations: Iterable[Conversation], count: int, seed: int) -> dict[bytes, int]:
    """The first ``count`` prompts by their hash, each with the index of its first conversation. No more are held."""
    first: dict[bytes, int] = {}
    largest: list[int] = []  # a heap of the hashes as negative numbers, so the largest is on top
    for index, conversation in enumerate(conversations):
        key = _prompt_hash(conversation, seed)
        number = -int.from_bytes(key, "big")
        if key in first or (len(first) == count and number < largest[0]):
            continue
        first[key] = index
        heapq.heappush(largest, number)
        if len(first) > count:
            del first[(-heapq.heappop(largest)).to_bytes(len(key), "big")]
    return first


def _derived(corpus: Corpus, index: Sequence[int], reason: str, count: int) -> Corpus:
    """The conversations of ``corpus`` at these places; ``count`` are dropped for ``reason``."""
    dropped = dict(corpus.dropped)
    if count:
        dropped[reason] = dropped.get(reason, 0) + count
    kept = select(corpus.conversations, index)
    return Corpus(corpus.name, kept, dropped, content_hash(kept))
