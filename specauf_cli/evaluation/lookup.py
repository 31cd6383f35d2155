"""Prompt lookup: a drafter without weights, which proposes what followed the same words before; and how much an answer
repeats itself.

The rule is vLLM's ``ngram`` method (``vllm/v1/spec_decode/ngram_proposer.py``): of the last n tokens, n from
``prompt_lookup_max`` down to ``prompt_lookup_min``, the *earliest* other occurrence in prompt and answer is taken, and
the tokens that followed it are proposed, as many as there are, at most ``num_speculative_tokens``. Without an
occurrence nothing is proposed, and the round is a plain step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specauf_cli.errors import InputError
from specauf_cli.types import Trace, Trajectory

GRAM = 4
"""Length of the n-grams whose repetition is counted."""


@dataclass(frozen=True)
class LookupRule:
    """``longest`` and ``shortest`` n-gram that is looked up, and the most tokens that are proposed.

    vLLM calls them ``prompt_lookup_max``, ``prompt_lookup_min`` and ``num_speculative_tokens``; its own default is 5
    for the first two. Errors: InputError for what cannot be.
    """

    longest: int
    shortest: int
    proposals: int

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest or self.proposals < 1:
            raise InputError(
                f"prompt lookup of {self.longest} down to {self.shortest} tokens, {self.proposals} proposals: needed "
                "are 1 <= shortest <= longest and at least one proposal"
            )


class LookupIndex:
    """The tokens of one request so far, and where each of their n-grams first ended."""

    def __init__(self, rule: LookupRule) -> None:
        self.rule = rule
        self.tokens: list[int] = []
        self._first_end: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens of the prompt, or committed ones."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for n in range(self.rule.shortest, min(self.rule.longest, end) + 1):
                self._first_end.setdefault(tuple(self.tokens[end - n :]), end)

    def propose(self) -> list[int]:
        """The proposals after the last token: ``rule.proposals`` at most, often fewer, none without an occurrence."""
        here = len(self.tokens)
        for n in range(min(self.rule.longest, here), self.rule.shortest - 1, -1):
            end = self._first_end[tuple(self.tokens[here - n :])]
            if end < here:
                return self.tokens[end : end + self.rule.proposals]
        return []


def replay_lookup(
    rule: LookupRule,
    trajectories: Sequence[Trajectory],
    record: Callable[[int, tuple[int, ...]], None] = lambda index, proposal: None,
) -> list[Trace]:
    """The traces that decoding with prompt lookup gives, round by round, without the target.

    A round that proposes nothing is a round with A = 0: it is a pass of the target like any other. vLLM's counters
    leave such rounds out (``num_drafts``), so its tau of ``ngram`` is higher. ``record`` is called for every round, in
    order, with the index of its trajectory and the tokens proposed.
    """
    traces = []
    for i, trajectory in enumerate(trajectories):
        assert len(trajectory.tokens) >= trajectory.length - 1 + rule.proposals, "a tail of proposals - 1 is needed"
        index = LookupIndex(rule)
        index.extend([*trajectory.prompt, trajectory.tokens[0]])
        emitted, accepted = 1, list[int]()
        while emitted < trajectory.length:
            proposal = index.propose()
            record(i, tuple(proposal))
            count = agreeing(proposal, trajectory.tokens[emitted:])
            accepted.append(count)
            index.extend(trajectory.tokens[emitted : emitted + count + 1])
            emitted += count + 1
        traces.append(
            Trace(
                trajectory.prompt_id,
                trajectory.turn,
                tuple(accepted),
                rule.proposals,
                trajectory.length,
                trajectory.ended,
            )
        )
    return traces


def plain_traces(traces: Sequence[Trace]) -> list[Trace]:
    """The same requests decoded without a drafter: a round for every token after the first, nothing proposed."""
    return [Trace(t.prompt_id, t.turn, (0,) * (t.tokens - 1), 0, t.tokens, t.ended) for t in traces]


def agreeing(proposal: Sequence[int], truth: Sequence[int]) -> int:
    """A, the length of the longest prefix of ``proposal`` that equals ``truth``."""
    return next((i for i, (a, b) in enumerate(zip(proposal, truth, strict=False)) if a != b), len(proposal))


def repeated_grams(answer: Sequence[int]) -> tuple[int, int]:
    """Of the 4-grams of an answer: how many occurred in it before, and how many there are.

    A target that loops repeats nearly all of them, and is easy for every drafter.
    """
    grams = [tuple(answer[i : i + GRAM]) for i in range(len(answer) - GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)
