"""What flows through SpecAUF: frozen dataclasses only, no I/O and no tensor operations.

    Conversation -> Example -> Batch -> Blocks --credit--> loss          (train)
    Prompt -> Trajectory --drafter--> Trace -> RunRecord -> Table        (evaluate, report)

Axes used in every signature and docstring:

    B  sequences of a batch       T  tokens of a sequence    A  anchors (blocks) of a sequence
    N  blocks of a batch (B * A)  K  slots of a block        V  vocabulary    D  features

Slot ``k`` (0-based) is the (k+1)-th token after the anchor, for every backbone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field


class InputError(ValueError):
    """Something the user gave is wrong. Its text is the one line the user reads: what, where, what is valid."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """``' Did you mean X?'`` for the valid name closest to ``word``, or ``''`` when none is close."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Alternating user and assistant turns, user first, assistant last; one system turn may lead."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""


@dataclass(frozen=True)
class Corpus:
    """Conversations with what was left out: ``dropped`` maps a reason to its count, ``sha256`` names the content."""

    name: str
    conversations: tuple[Conversation, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Prompt:
    """A benchmark prompt: the user's turns in order, template suffixes applied. One prompt is one statistical cluster."""

    id: str
    turns: tuple[str, ...]
    category: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one benchmark as evaluated; ``total`` counts the rows the first ``limit`` were drawn from."""

    name: str
    title: str
    prompts: tuple[Prompt, ...]
    total: int
    sha256: str
    origin: str


@dataclass(frozen=True)
class Example:
    """A tokenised conversation. ``supervised[t]`` says that token ``t`` was written by the assistant."""

    id: str
    tokens: tuple[int, ...]
    supervised: tuple[bool, ...]


@dataclass(frozen=True)
class DataConfig:
    """``conf/data``: where the training conversations come from.

    ``source`` is ``offline`` (the procedural corpus), ``jsonl`` (``path``: a file or folder) or ``hub`` (``hub_id``).
    ``limit`` keeps the first n training conversations of a seeded permutation (None: all); ``heldout`` conversations
    are set aside by prompt for block-mask accuracy.
    """

    name: str
    source: str
    path: str | None
    hub_id: str | None
    revision: str | None
    files: str | None
    limit: int | None
    heldout: int
    seed: int


@dataclass(frozen=True)
class BenchmarkConfig:
    """``conf/benchmark``: one benchmark, data only.

    ``column`` is the paper's column it fills (``gsm8k`` ... ``alpaca``). ``source`` is ``offline`` (``family`` of the
    procedural corpus) or ``hub`` (``hub_id``, ``subset``, ``split``, ``revision``). ``turns`` names the row's fields
    (a field holding a list gives one turn per item); each turn is put into ``template`` at ``{turn}``. ``file`` is its name under
    ``benchmark_root``. ``limit`` keeps the first n prompts of a permutation seeded by ``seed``.
    """

    name: str
    title: str
    column: str
    source: str
    family: str | None
    hub_id: str | None
    subset: str | None
    split: str | None
    revision: str | None
    turns: tuple[str, ...]
    template: str
    file: str | None
    limit: int
    seed: int
