"""Rounds as text: which tokens a drafter proposed for an answer, and what verification made of them."""

from collections.abc import Sequence

from specauf_cli.data.chat import Chat
from specauf_cli.evaluation.replay import replay
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.reporting.view import Round, ViewedAnswer
from specauf_cli.types import Trace, Trajectory

WINDOW = 16
"""Tokens before a token that are decoded with it: its text can depend on them (spaces, characters of several
tokens)."""
REPLACEMENT = "\ufffd"
"""What a tokenizer decodes bytes to that are no character."""


def viewed_answers(
    target: Target, drafter: DFlash, trajectories: Sequence[Trajectory], *, benchmark: str, batch_size: int
) -> list[ViewedAnswer]:
    """The answers of ``trajectories`` with the drafter's rounds, those that ``replay`` counts for tau.

    ``benchmark`` is its title. Each trajectory needs a tail of the drafter's proposals - 1 tokens.
    """
    proposed: list[list[tuple[int, ...]]] = [[] for _ in trajectories]
    traces = replay(target, drafter, trajectories, batch_size=batch_size, record=lambda i, p: proposed[i].append(p))
    return [
        viewed_answer(target.chat, trajectory, trace, proposals, benchmark=benchmark)
        for trajectory, trace, proposals in zip(trajectories, traces, proposed, strict=True)
    ]


def viewed_answer(
    chat: Chat, trajectory: Trajectory, trace: Trace, proposals: Sequence[Sequence[int]], *, benchmark: str
) -> ViewedAnswer:
    """One answer with its rounds; ``proposals[r]``: the draft tokens of round r of ``trace``."""
    prompt, length = trajectory.prompt, trajectory.length
    texts = pieces(chat, prompt, trajectory.tokens[:length])
    rounds, at = [], 1  # the prompt's own pass gives the first token
    for accepted, tokens in zip(trace.accepted, proposals, strict=True):
        drafted = pieces(chat, (*prompt, *trajectory.tokens[:at]), tokens)
        rounds.append(Round(drafted, accepted, texts[at : at + accepted + 1]))
        at += accepted + 1
    asked = chat.tokenizer.decode(list(prompt), skip_special_tokens=False)
    return ViewedAnswer(trajectory.prompt_id, benchmark, trajectory.turn, asked, texts, tuple(rounds))


def pieces(chat: Chat, before: Sequence[int], tokens: Sequence[int]) -> tuple[str, ...]:
    """The text that each of ``tokens`` adds after ``before``, special tokens by name.

    A character of several tokens is the text of the last of them; the others are given as bytes (``\\xe2``).
    """
    whole = [*before[-WINDOW:], *tokens]
    return tuple(
        _piece(chat, whole[max(0, end - WINDOW) : end]) for end in range(len(whole) - len(tokens) + 1, len(whole) + 1)
    )


def _piece(chat: Chat, tokens: Sequence[int]) -> str:
    """The text that the last of ``tokens`` adds to those before it."""
    text, known = (chat.tokenizer.decode(list(t), skip_special_tokens=False) for t in (tokens, tokens[:-1]))
    known = known.rstrip(REPLACEMENT)
    added = text[len(known) :].lstrip(REPLACEMENT) if text.startswith(known) else ""
    return _vocabulary_form(chat, tokens[-1]) if not added or added.endswith(REPLACEMENT) else added


def _vocabulary_form(chat: Chat, token: int) -> str:
    """A token that has no text of its own: its bytes, or its name in the vocabulary."""
    name = chat.tokenizer.convert_ids_to_tokens(token)
    if not name:
        return f"[token {token}]"
    if not all(c in BYTE_OF for c in name):
        return str(name)
    content = bytes(BYTE_OF[c] for c in name)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in content)


_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""The byte that a character stands for in a byte-level vocabulary (GPT-2's alphabet: a printed character for every
byte)."""
