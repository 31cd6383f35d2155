"""The procedural corpus: conversations generated from a seed, for work without network.

Six families mirror six public benchmarks; their templates are in ``families``. Structure is predictable and
content is not, so a small language model learns most tokens and a drafter still makes mistakes.

Train, held-out and benchmark prompts never overlap, for any seeds and counts: a hash of the first user turn alone
decides to which split a draw belongs, and a draw that belongs to another split is skipped.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from itertools import islice

from specauf_cli.data.families import SCHEMAS, Turns
from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Conversation, Corpus, Message, Prompt

FAMILIES: tuple[str, ...] = tuple(SCHEMAS)

_BUCKETS = 20  # one for benchmark prompts, one for held-out conversations, the other eighteen for training
_PATIENCE = 20_000  # consecutive draws without a new prompt after which a family counts as exhausted


def conversations(count: int, *, seed: int) -> Corpus:
    """``count`` training conversations: conversation ``i`` is of family ``i mod 6``; ids are numbered within a family.

    A smaller corpus is a prefix of a larger one with the same seed. Prompts (first user turns) are distinct.
    Raises ``InputError`` when ``count`` is below 1 or a family has no more distinct prompts.
    """
    return _corpus("train", count, seed)


def heldout(count: int, *, seed: int) -> Corpus:
    """As ``conversations``, from the held-out split: no prompt is in any training corpus or any ``prompts``."""
    return _corpus("heldout", count, seed)


def prompts(family: str, count: int, *, seed: int) -> tuple[Prompt, ...]:
    """``count`` benchmark prompts of ``family``, none of them in any corpus of this module.

    ``turns`` are the user turns, ``reference`` the assistant turns joined by a blank line, ``category`` the schema.
    Raises ``InputError`` for an unknown family, a ``count`` below 1, or a family without that many distinct prompts.
    """
    if family not in FAMILIES:
        valid = ", ".join(FAMILIES)
        raise InputError(f"offline family {family!r} is unknown; valid: {valid}.{nearest(family, FAMILIES)}")
    _check_count(count)
    return tuple(
        Prompt(f"{family}-prompt-{number:06d}", turns[0::2], category=schema, reference="\n\n".join(turns[1::2]))
        for number, (schema, turns) in enumerate(islice(_draws(family, "prompts", seed), count))
    )


def _corpus(side: str, count: int, seed: int) -> Corpus:
    _check_count(count)
    streams = [_draws(family, side, seed) for family in FAMILIES]
    tag = "" if side == "train" else f"{side}-"
    talks = []
    for index in range(count):
        number, which = divmod(index, len(FAMILIES))
        family = FAMILIES[which]
        _, turns = next(streams[which])
        messages = tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(turns))
        talks.append(Conversation(f"{family}-{tag}{number:06d}", messages, source=family))
    return Corpus("offline", tuple(talks), sha256=_content_hash(talks))


def _draws(family: str, side: str, seed: int) -> Iterator[tuple[str, Turns]]:
    """Endless (schema name, turns) of one family in one split, each with a first user turn not drawn before."""
    # One generator per (seed, side, family): a family's draws do not depend on how many another family made.
    r = random.Random(f"offline/{seed}/{side}/{family}")
    seen: set[str] = set()
    fruitless = 0
    while fruitless < _PATIENCE:
        schema = r.choice(SCHEMAS[family])
        turns = schema(r)
        fruitless += 1
        if turns[0] not in seen and _side(turns[0]) == side:
            seen.add(turns[0])
            fruitless = 0
            yield schema.__name__.lstrip("_"), turns
    raise InputError(f"offline family {family!r} has no more than {len(seen)} {side} prompts; ask for fewer.")


def _side(prompt: str) -> str:
    """The split of a prompt, from its text alone; hashlib because hash() differs between processes."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % _BUCKETS
    return {0: "prompts", 1: "heldout"}.get(bucket, "train")


def _content_hash(talks: list[Conversation]) -> str:
    rows = [{"id": c.id, "source": c.source, "messages": [[m.role, m.content] for m in c.messages]} for c in talks]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_count(count: int) -> None:
    if count < 1:
        raise InputError(f"count is {count}; valid: 1 or more.")
