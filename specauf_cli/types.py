"""What flows through SpecAUF: frozen dataclasses only, no I/O and no tensor operations.

    Conversation -> Example -> Batch -> Blocks --credit--> loss          (train)
    Prompt -> Trajectory --drafter--> Trace -> RunRecord -> Table        (evaluate, report)

Axes used in every signature and docstring:

    B  sequences of a batch       T  tokens of a sequence      A  anchors (blocks) of a sequence
    N  blocks of a batch (B * A)  K  slots of a block          P  slots that are proposed, at most K
    W  positions of a block: its slots, and the anchor's where the backbone has no slot there; AW is A * W
    V  vocabulary                 D  width of a hidden state   F  target features of a token (tapped layers * D)
    H  attention heads            Hkv  heads of keys, values   Dh  width of a head
    C  tokens in a cache, those of the present pass included   L  positions whose logits are returned
    G  width of Domino's GRU      M  some of the blocks or sequences
    *X  any leading axes

Slot ``k`` (0-based) is the (k+1)-th token after the anchor, for every backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, get_args

from specauf_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

Definition = Literal["engine", "pooled", "per_response", "eos_truncated"]
TAU_DEFINITIONS = get_args(Definition)
"""Names of the definitions of mean emitted length tau in use; ``evaluation/tau.py`` has their formulas."""


def check_definition(name: str) -> None:
    """InputError for an unknown definition of tau."""
    if name not in TAU_DEFINITIONS:
        raise InputError(
            f"unknown definition of tau {name!r}; valid: {', '.join(TAU_DEFINITIONS)}.{nearest(name, TAU_DEFINITIONS)}"
        )


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
    """Conversations with what was left out: ``dropped`` maps a reason to its count, ``sha256`` names the content.

    More conversations than memory holds are read from a file one by one (``data/spool.py``).
    """

    name: str
    conversations: Sequence[Conversation]
    dropped: dict[str, int] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Prompt:
    """A benchmark prompt: the user's turns in order, template suffixes applied. One prompt is one statistical
    cluster."""

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
class BlockStats:
    """Detached facts about a batch of drafted blocks; credits and metrics read these and nothing else.

    ``correct [N, K]``: the drafter's own argmax equals the label. ``gold_logprob [N, K]``: log q_i(y_i). ``mask [N,
    K]``: the slot is supervised; always a contiguous prefix of the block. ``gold_rank [N, K]``: tokens with a higher
    logit than the label; ``target_gold_logprob [N, K]``: log p_i(y_i), the target's; ``overlap [N, K]``: sum over the
    vocabulary of min(p_i, q_i), the probability that a sampled draft token is accepted. These three are computed only
    for a credit that asks for them (``config/names.py``, ``PROVIDED``).
    """

    correct: Tensor
    gold_logprob: Tensor
    mask: Tensor
    gold_rank: Tensor | None = None
    target_gold_logprob: Tensor | None = None
    overlap: Tensor | None = None


Credit = Callable[..., "Tensor"]
"""Maps ``BlockStats``, and the data that its further positional arguments name, to a detached weight ``[N, K]`` >= 0.
Keyword-only arguments of a credit are its yaml keys."""
Loss = Callable[..., "Tensor"]
"""Maps logits ``[*, V]`` and labels ``[*]``, and the target's logits ``[*, V]`` where its third argument is
``target_logits``, to a number ``[*]`` for each position, with gradient. Keyword-only arguments are its yaml keys."""


@dataclass(frozen=True)
class Trajectory:
    """What the target alone emits for one request. It does not depend on any drafter.

    ``tokens`` holds the completion (``length`` tokens, the end-of-turn token included) followed by a tail that the
    target emits when it is run on past the end: verification rounds overshoot, and replay must see the same tokens.
    """

    prompt_id: str
    turn: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    length: int
    ended: bool


@dataclass(frozen=True)
class Trace:
    """What happened when one request was decoded speculatively: ``accepted[r]`` draft tokens in round ``r``.

    ``tokens`` is the completion length (prefill token included, cut at the end of turn or at the length limit), as
    serving engines count it; the last round may have accepted beyond it. ``proposed`` draft tokens in every round,
    at most as many with prompt lookup.
    """

    prompt_id: str
    turn: int
    accepted: tuple[int, ...]
    proposed: int
    tokens: int
    ended: bool

    @cached_property
    def reached(self) -> tuple[int, ...]:
        """Rounds that accepted at least k draft tokens, k = 0 .. proposed."""
        counts = [0] * (self.proposed + 1)
        for a in self.accepted:
            counts[a] += 1
        return tuple(accumulate(reversed(counts)))[::-1]

    def at_least(self, k: int) -> int:
        """Rounds that accepted at least ``k`` draft tokens."""
        return self.reached[k] if k <= self.proposed else 0
