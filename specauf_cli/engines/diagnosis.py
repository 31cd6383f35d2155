"""Which known fault makes a server what it is: each is switched on here and replayed over a few requests."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from specauf_cli.data.chat import Chat
from specauf_cli.engines.along import Along, RememberingTarget, first_other_token
from specauf_cli.engines.answers import Answer
from specauf_cli.engines.faults import KINDS, Fault, Render
from specauf_cli.engines.verdict import Followed, same_counts, within
from specauf_cli.errors import InputError
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime.progress import track
from specauf_cli.store.referee import Tried
from specauf_cli.types import Message, Trajectory

EXAMINED, AGREEING = 6, 2
"""Requests that a fault is tried on: at most so many that differ, and so many that do not."""

DECIDING = 48
"""Requests, at most, that decide between faults which reproduce equally many."""

NAMED = 0.5
"""A fault is named as the cause when it reproduces at least this share of the examined requests, and more of them than
serving without a fault would."""


@dataclass(frozen=True)
class Case:
    """A request with the server's answer, as it is diagnosed. ``benchmark``: its title; ``messages``: the chat
    that was rendered as ``prompt``.

    ``own``: the target's own answer to this prompt, None where it is not known; ``tail``: the target's tokens after
    the server's answer, as far as they are known. ``differs_at``: index of the answer's first token that is not the
    target's (T = 0), ``own_token`` the target's there, ``gap`` how much higher its logit is, ``scale`` the largest
    absolute logit.
    """

    benchmark: str
    temperature: float
    prompt_id: str
    turn: int
    prompt: tuple[int, ...]
    messages: tuple[Message, ...]
    answer: Answer
    own: Trajectory | None
    tail: tuple[int, ...] = ()
    same_answer: bool | None = None
    differs_at: int | None = None
    own_token: int | None = None
    gap: float | None = None
    scale: float | None = None
    same_counts: bool | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The answer's tokens."""
        assert self.answer.tokens is not None, "answers without tokens are not diagnosed"
        return self.answer.tokens

    @property
    def differs(self) -> bool:
        """Whether its answer or its counts differ."""
        return self.same_answer is False or self.same_counts is False


@dataclass(frozen=True)
class Diagnosis:
    """What was tried; ``cause``: the fault that reproduces the server, None where none does; ``rivals``: faults that
    reproduce exactly as many requests."""

    tried: tuple[Tried, ...]
    cause: Fault | None
    rivals: tuple[Fault, ...] = ()

    @property
    def title(self) -> str | None:
        """The cause in words."""
        return None if self.cause is None else ", or ".join(f.title for f in (self.cause, *self.rivals))


def chosen(cases: Sequence[Case]) -> list[Case]:
    """The cases that faults are tried on: those that differ, with other counts and at T = 0 first, and a few others."""
    differing, others = _usable(cases)
    return differing[:EXAMINED] + others[:AGREEING]


def _usable(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Cases that differ, those that say most first, and cases whose counts agree."""
    usable = [c for c in cases if c.answer.tokens is not None]
    order = sorted((c for c in usable if c.differs), key=lambda c: (c.temperature > 0, c.same_counts is not False))
    return order, [c for c in usable if not c.differs and c.same_counts is not False]


def diagnose(cases: Sequence[Case], faults: Iterable[Fault], replayed: "Trying") -> Diagnosis:
    """Tries the faults on a few of the ``cases``; those that reproduce equally many are told apart by more cases."""
    examined = chosen(cases)
    results: list[tuple[Fault, int]] = []
    with track("trying known faults", len(KINDS)) as show:
        for number, (kind, variants) in enumerate(groupby(faults, key=lambda fault: fault.kind), 1):
            for fault in variants:
                with suppress(InputError):  # this drafter or target cannot have the fault
                    results.append((fault, sum(replayed.reproduced(fault, examined))))
            show(number, KINDS[kind])
    tried = {f: Tried(f.kind, f.title, n, len(examined)) for f, n in results}
    usual = sum(replayed.reproduced(Fault("none", "no fault"), examined))
    best = max((n for _, n in results), default=0)
    if best <= usual or best < NAMED * len(examined):
        return Diagnosis(tuple(tried.values()), None)
    named = [f for f, n in results if n == best]
    if len(named) > 1:
        differing, others = _usable(cases)
        more = [*differing, *others][:DECIDING]
        counts = [sum(replayed.reproduced(f, more)) for f in named]
        tried |= {f: Tried(f.kind, f.title, n, len(more)) for f, n in zip(named, counts, strict=True)}
        named = [f for f, n in zip(named, counts, strict=True) if n == max(counts)]
    return Diagnosis(tuple(tried.values()), named[0], tuple(named[1:]))


@dataclass(frozen=True)
class Trying:
    """What cases are replayed with. ``precision``: that of the server; ``cuts``: as in ``same_counts``."""

    target: Target
    drafter: DFlash | None
    precision: str
    cuts: bool
    batch_size: int

    @cached_property
    def known(self) -> Target:
        """The target, with the features that it gave."""
        return RememberingTarget(self.target)

    def reproduced(self, fault: Fault, cases: Sequence[Case]) -> list[bool]:
        """Which of the cases have the server's answer and counts under a fault. Errors: InputError for a fault that
        this target or drafter cannot have."""
        target = fault.target(self.target)
        target = self.known if target is self.target else target
        drafter = None if self.drafter is None else fault.drafter(self.drafter)
        read = [case if fault.prompt is None else _reading(case, fault.prompt, target.chat) for case in cases]
        # Other drafts change no answer, so an answer that differs rules such a fault out before anything is replayed.
        possible = [bool(c.prompt) and (not fault.of_drafts_only or self._answers(fault, target, c)) for c in read]
        replayed = [c for c, is_possible in zip(read, possible, strict=True) if is_possible]
        along = Along(target, drafter, None, self.batch_size)
        rounds = iter(along.follow([(c.prompt, c.tokens, c.tail) for c in replayed]) if replayed else [])
        return [
            is_possible and self._counts(next(rounds), c) and self._answers(fault, target, c)
            for c, is_possible in zip(read, possible, strict=True)
        ]

    def _counts(self, ours: Followed, case: Case) -> bool:
        """Whether the server's counts are those of ``ours``, as far as both are known."""
        return self.drafter is None or same_counts(ours, case.answer, cuts=self.cuts) is not False

    def _answers(self, fault: Fault, target: Target, case: Case) -> bool:
        """Whether the target gives the case's answer under a fault."""
        if case.same_answer is not False or case.temperature > 0:
            return True
        changed = fault.precision is not None and target is not self.known
        if not changed and fault.prompt is None:
            return within(case.gap, case.scale, self.precision)
        precision = fault.precision if changed and fault.precision is not None else self.precision
        other = first_other_token(target, case.prompt, case.tokens)
        return other is None or within(other[2], other[3], precision)


def _reading(case: Case, render: Render, chat: Chat) -> Case:
    """The case as a server answers it that reads another prompt."""
    prompt = render(chat, case.messages)
    if prompt == case.prompt:
        return case
    compared = False if case.temperature == 0 else None
    return replace(case, prompt=prompt, tail=(), same_answer=compared, gap=None, scale=None)
