"""What the referee found of a running server: typed records of single requests, never only totals."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from specauf_cli.store.records import CodeState, Count, Number
from specauf_cli.store.typed import RecordFile

SCHEMA = 1

Verdict = Literal["equal", "rounding", "differs"]
"""``equal``: every answer and every count that could be compared. ``rounding``: answers differ only where the target's
logits tie within the precision that it is served in. ``differs``: anything else."""
VERDICTS: tuple[Verdict, ...] = ("equal", "rounding", "differs")
"""From the best to the worst."""

Subject = Literal["drafter", "lookup", "plain"]
"""What the server drafts with: a trained drafter, n-grams of its own text, nothing."""

LARGEST_Z = 4.0
"""Largest ``Sampling.z``, either way, at which a server's draws pass as the target's own."""

Flag = Annotated[bool, Strict()]


@dataclass(frozen=True)
class JudgedRequest:
    """One request. ``tokens``: length of the server's answer.

    ``same_answer``: None where it was not compared (T > 0). ``differs_at``: index in the answer of the first token that
    is not the target's own (T = 0), ``gap``: how much higher the logit of the target's own token is there, ``scale``:
    the largest absolute logit there; each None where every token is.
    ``ours``: accepted draft tokens of every round that the drafter has along the server's answer; ``open``: the last
    round may have accepted more, past the end of the answer, where the target's tokens are not known.
    ``replayed``: the same along the target's own answer of ``replayed_tokens`` tokens; None where it has none.
    ``rounds``, ``accepted``, ``histogram``, ``steps`` (accepted tokens round by round): the server's counts, None where
    it gives none for a single request.
    ``same_counts``: None where nothing could be compared.
    """

    prompt_id: str
    turn: Count
    tokens: Count
    same_answer: Flag | None
    differs_at: Count | None
    gap: Number | None
    scale: Number | None
    ours: tuple[Count, ...]
    open: Flag
    replayed: tuple[Count, ...] | None
    replayed_tokens: Count | None
    rounds: Count | None
    accepted: Count | None
    histogram: tuple[Count, ...] | None
    steps: tuple[Count, ...] | None
    same_counts: Flag | None


@dataclass(frozen=True)
class Pair:
    """tau of the server and of the replay by one ``definition``; None where a side cannot be counted by it."""

    definition: str
    server: Number | None
    ours: Number | None


@dataclass(frozen=True)
class Difference:
    """tau of the server minus the replay's by ``definition``, paired by prompt, with its 95 % interval; ``low`` and
    ``high`` are None where one prompt gives no interval."""

    definition: str
    value: Number
    low: Number | None
    high: Number | None
    prompts: Count

    @property
    def separable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Sampling:
    """T > 0: how the server's answers compare with draws from the target, over ``tokens`` tokens.

    ``z``: sum over tokens of (-log p of the token minus the entropy there), over the standard deviation that the
    target's own draws have. Within ± 4 for the target's own sampling in all but 1 of 16,000 cases.
    """

    tokens: Count
    z: Number


@dataclass(frozen=True)
class Judged:
    """One benchmark at one temperature. ``only_one``: requests that only one side answered; ``groups``: requests whose
    counts the server gives together only, with whether each sum is the replay's (None: not comparable)."""

    benchmark: str
    title: str
    temperature: Number
    verdict: Verdict
    requests: tuple[JudgedRequest, ...]
    groups: tuple[Flag | None, ...]
    only_one: Count
    skipped: dict[str, Count]
    taus: tuple[Pair, ...]
    difference: Difference | None
    sampling: Sampling | None

    @property
    def answers(self) -> tuple[int, int]:
        """Equal answers, and compared ones."""
        known = [r.same_answer for r in self.requests if r.same_answer is not None]
        return sum(known), len(known)

    @property
    def counts(self) -> tuple[int, int]:
        """Equal counts, and compared ones: of requests, or of groups."""
        known = [x for x in (*(r.same_counts for r in self.requests), *self.groups) if x is not None]
        return sum(known), len(known)


@dataclass(frozen=True)
class Average:
    """The unweighted mean over benchmarks at one temperature: tau, and its paired difference."""

    temperature: Number
    taus: tuple[Pair, ...]
    difference: Difference | None


@dataclass(frozen=True)
class Tried:
    """A known fault that was switched on here: how many of the ``examined`` requests have the server's answer and
    counts then."""

    kind: str
    title: str
    reproduced: Count
    examined: Count


@dataclass(frozen=True)
class First:
    """The first request that differs. ``position``: index in the answer of the first differing token, or of the first
    token of the first differing round; None where only the counts differ and no known fault says in which round.

    ``ours``, ``theirs``: the two tokens, ids and texts; None where only the counts differ. ``tie``: the finest
    precision in whose rounding ``gap`` is, None for no tie.
    """

    benchmark: str
    temperature: Number
    prompt_id: str
    turn: Count
    what: Literal["answer", "counts"]
    position: Count | None
    ours: tuple[Count, str] | None
    theirs: tuple[Count, str] | None
    gap: Number | None
    scale: Number | None
    tie: Literal["fp32", "bf16"] | None


@dataclass(frozen=True)
class RefereeRecord:
    """Everything that was compared with one server. ``reported``: in which settings the server says that it differs.

    ``server``: what it says of itself; ``unchecked``: what it does not say. ``first`` is None where no single request
    shows a difference. ``cause``: the known fault that reproduces
    the server (None: nothing differs, or none of the known faults does). ``tried`` is empty where nothing differs.
    Errors: pydantic's ValidationError, a ValueError, for values of another kind.
    """

    run: str | None
    subject: Subject
    backend: str
    profile: str
    concurrency: Count
    command: str
    config: dict[str, Any]
    code: CodeState
    environment: dict[str, str | int | float | None]
    inputs: dict[str, str | None]
    server: dict[str, Any]
    unchecked: tuple[str, ...]
    reported: tuple[str, ...]
    benchmarks: tuple[Judged, ...]
    averages: tuple[Average, ...]
    verdict: Verdict
    first: First | None
    tried: tuple[Tried, ...]
    cause: str | None
    seconds: Number
    written: str
    schema: int = Field(default=SCHEMA)

    @property
    def only_sampling(self) -> bool:
        """Whether everything is equal at T = 0, and the answers at T > 0 are not the target's draws."""
        greedy = [b.verdict == "equal" for b in self.benchmarks if b.temperature == 0]
        draws = [abs(b.sampling.z) for b in self.benchmarks if b.sampling is not None]
        return bool(greedy) and all(greedy) and max(draws, default=0.0) > LARGEST_Z

    @model_validator(mode="after")
    def _whole(self) -> "RefereeRecord":
        if not self.benchmarks:
            raise ValueError("nothing was compared")
        if self.verdict == "equal" and self.first is not None:
            raise ValueError(
                f"the verdict is {self.verdict}, but there is {'no' if self.first is None else 'a'} first difference"
            )
        return self


REFEREE = RecordFile(TypeAdapter(RefereeRecord), "specauf referee", SCHEMA, "tried")
