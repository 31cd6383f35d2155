"""One benchmark at one temperature, judged: a server's answers beside the target's own and the drafter's rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specauf_cli.data.chat import Chat
from specauf_cli.engines.along import Along, first_other_token, sampling
from specauf_cli.engines.answers import Answer
from specauf_cli.engines.diagnosis import Case
from specauf_cli.engines.faults import Fault
from specauf_cli.engines.measure import Asked
from specauf_cli.engines.verdict import (
    OWN_DEFINITION,
    Followed,
    difference,
    same_counts,
    same_group,
    taus,
    tie,
    verdict,
)
from specauf_cli.errors import InputError
from specauf_cli.evaluation.rounds import pieces, viewed_answer
from specauf_cli.evaluation.trajectories import Generated
from specauf_cli.evaluation.turns import Request
from specauf_cli.models.target import Target
from specauf_cli.reporting.view import Round, Viewed, ViewedAnswer
from specauf_cli.store.referee import First, Judged, JudgedRequest, Subject
from specauf_cli.types import Message, PromptSet, Trace, Trajectory

Key = tuple[str, int]
"""Prompt id and turn."""


@dataclass(frozen=True)
class Judging:
    """What judges: the rounds ``along`` answers, the engine's name, the precision that the server runs in."""

    along: Along
    backend: str
    precision: str
    seed: int
    subject: Subject


@dataclass(frozen=True)
class Own:
    """What the target itself says to a request, and the rounds along it."""

    trajectory: Trajectory
    rounds: Followed


def judge_benchmark(
    judging: Judging, prompts: PromptSet, temperature: float, asked: Asked, generated: Generated
) -> tuple[Judged, list[Case]]:
    """The judgement, and every request as it would be diagnosed.

    ``generated``: the target's own answers. Errors: InputError when the server gives nothing that can be compared.
    """
    along = judging.along
    trajectories = generated.trajectories
    rounds = along.follow([(t.prompt, t.tokens[: t.length], t.tokens[t.length :]) for t in trajectories])
    own = {(t.prompt_id, t.turn): Own(t, r) for t, r in zip(trajectories, rounds, strict=True)}
    theirs = {(r.prompt_id, r.turn): (r, a) for r, a in asked.answered}
    chats = _chats(prompts, theirs, along.target)
    cases = [
        _compared(judging, prompts.title, temperature, request, answer, own.get(key), chats[key])
        for key, (request, answer) in theirs.items()
    ]
    along_theirs = _along(judging, cases, own)
    cases = [_counted(judging, case, ours) for case, ours in zip(cases, along_theirs, strict=True)]
    requests = tuple(
        _row(case, ours, own.get((case.prompt_id, case.turn)), judging.subject)
        for case, ours in zip(cases, along_theirs, strict=True)
    )
    by_key = {r.key: ours for (r, _), ours in zip(theirs.values(), along_theirs, strict=True)}
    groups = tuple(_group([by_key[k] for k in sorted(keys)], counts) for keys, counts in asked.waves)
    definition = OWN_DEFINITION[judging.backend]
    paired = None if judging.subject == "plain" else difference({prompts.name: requests}, definition, seed=judging.seed)
    pooled_only = judging.subject == "lookup"
    drawn = [(c.prompt, c.tokens) for c in cases if c.answer.tokens is not None and _known(c, along.target)]
    drawn_as = sampling(along.target, drawn, temperature) if temperature > 0 else None
    if temperature > 0 and drawn_as is None and paired is None and not any(c.same_counts is not None for c in cases):
        raise InputError(f"{prompts.title}, T={temperature:g}: the server gives neither tokens nor counts to compare")
    judged = Judged(
        benchmark=prompts.name,
        title=prompts.title,
        temperature=temperature,
        verdict=verdict(requests, groups, precision=judging.precision, sampling=drawn_as, difference=paired),
        requests=requests,
        groups=groups,
        only_one=len(set(own) ^ set(theirs)),
        skipped=dict(asked.skipped),
        taus=() if judging.subject == "plain" else taus(requests, judging.backend, pooled_only=pooled_only),
        difference=paired,
        sampling=drawn_as,
    )
    return judged, cases


def _chats(
    prompts: PromptSet, theirs: Mapping[Key, tuple[Request, Answer]], target: Target
) -> dict[Key, tuple[Message, ...]]:
    """The chat that every request was rendered from: the user's turns and the server's own earlier answers."""
    chats: dict[Key, tuple[Message, ...]] = {}
    turns = {p.id: p.turns for p in prompts.prompts}
    for prompt_id, turn in theirs:
        messages: list[Message] = []
        for earlier in range(turn):
            answer = theirs[prompt_id, earlier][1]
            text = target.chat.text(answer.tokens) if answer.tokens is not None else answer.text
            messages += [Message("user", turns[prompt_id][earlier]), Message("assistant", text)]
        chats[prompt_id, turn] = (*messages, Message("user", turns[prompt_id][turn]))
    return chats


def _compared(
    judging: Judging,
    title: str,
    temperature: float,
    request: Request,
    answer: Answer,
    own: Own | None,
    chat: tuple[Message, ...],
) -> Case:
    """A request with its answer compared; counts are not."""
    trajectory = own.trajectory if own is not None and own.trajectory.prompt == request.prompt else None
    answer = _with_end(answer, trajectory, judging.along.target.chat)
    where = (title, temperature, request.prompt_id, request.turn)
    case = Case(*where, request.prompt, chat, answer, trajectory)
    whole = None if trajectory is None else trajectory.tokens[: trajectory.length]
    if trajectory is not None and answer.tokens == whole:
        tail = trajectory.tokens[trajectory.length :]
        return replace(case, tail=tail, same_answer=True if temperature == 0 else None)
    if temperature > 0:
        return case
    if answer.tokens is None:
        text = None if whole is None else judging.along.target.chat.text(whole)
        return replace(case, same_answer=None if text is None else answer.text == text)
    return _first_other(judging, case, answer.tokens, whole)


def _with_end(answer: Answer, own: Trajectory | None, chat: Chat) -> Answer:
    """The answer with the token that ended it, which some servers count and do not return."""
    tokens = answer.tokens
    if tokens is None or not answer.ended or len(tokens) + 1 != answer.completion or tokens[-1] in chat.stop_ids:
        return answer
    same = own is not None and own.ended and own.length == answer.completion
    end = own.tokens[own.length - 1] if own is not None and same else chat.eos_id
    return replace(answer, tokens=(*tokens, end))


def _first_other(judging: Judging, case: Case, tokens: tuple[int, ...], whole: tuple[int, ...] | None) -> Case:
    """A greedy answer that is not the trajectory's: where it is not the target's own, and how far from it."""
    target = judging.along.target
    shorter = next((i for i, t in enumerate(tokens) if t >= target.chat.vocab), len(tokens))
    found = first_other_token(target, case.prompt, tokens[:shorter]) if shorter else None
    if found is not None:
        at, token, gap, scale = found
        return replace(case, same_answer=False, differs_at=at, own_token=token, gap=gap, scale=scale)
    if whole is None and shorter == len(tokens):  # after an earlier turn that differs
        return replace(case, same_answer=True)
    if whole is None:
        return replace(case, same_answer=False, differs_at=shorter)
    pairs = enumerate(zip(tokens, whole, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(whole)))
    if at < min(shorter, len(whole)):  # both have the highest logit, to the last bit
        return replace(case, same_answer=False, differs_at=at, own_token=whole[at], gap=0.0, scale=1.0)
    return replace(case, same_answer=False, differs_at=at, own_token=whole[at] if at < len(whole) else None)


def _known(case: Case, target: Target) -> bool:
    """Whether every token of the answer is in the target's vocabulary."""
    return all(t < target.chat.vocab for t in case.tokens)


def _along(judging: Judging, cases: Sequence[Case], own: Mapping[Key, Own]) -> list[Followed | None]:
    """The rounds along every server's answer; None where its tokens are not known."""
    found: dict[int, Followed] = {}
    walk: list[int] = []
    for i, case in enumerate(cases):
        known = own.get((case.prompt_id, case.turn))
        if case.same_answer and known is not None and known.trajectory.prompt == case.prompt:
            found[i] = known.rounds
        elif case.answer.tokens is not None and _known(case, judging.along.target):
            walk.append(i)
    followed = judging.along.follow([(cases[i].prompt, cases[i].tokens, cases[i].tail) for i in walk]) if walk else []
    found |= dict(zip(walk, followed, strict=True))
    return [found.get(i) for i in range(len(cases))]


def _counted(judging: Judging, case: Case, ours: Followed | None) -> Case:
    if ours is None or judging.subject == "plain":
        return case
    return replace(case, same_counts=same_counts(ours, case.answer, cuts=judging.backend == "sglang"))


def _row(case: Case, ours: Followed | None, own: Own | None, subject: Subject) -> JudgedRequest:
    answer = case.answer
    replayed = own.rounds.counted if own is not None and subject != "plain" else None
    return JudgedRequest(
        prompt_id=case.prompt_id,
        turn=case.turn,
        tokens=answer.completion,
        same_answer=case.same_answer,
        differs_at=case.differs_at,
        gap=case.gap,
        scale=case.scale,
        ours=ours.counted if ours is not None else (),
        open=ours.open if ours is not None else False,
        replayed=replayed,
        replayed_tokens=own.trajectory.length if own is not None and replayed is not None else None,
        rounds=answer.rounds,
        accepted=answer.accepted,
        histogram=answer.histogram,
        steps=answer.steps,
        same_counts=case.same_counts,
    )


def _group(ours: Sequence[Followed | None], counts: Sequence[int]) -> bool | None:
    known = [f for f in ours if f is not None]
    return same_group(known, counts[0], counts[2]) if len(known) == len(ours) else None


# ---- the first difference


@dataclass(frozen=True)
class FirstShown:
    """The first difference, and its answers as they are viewed: ours, and the server's."""

    first: First
    viewed: tuple[Viewed, Viewed]


def first_difference(cases: Sequence[Case], along: Along, cause: Fault | None) -> FirstShown | None:
    """The first request whose answer differs, else the first whose counts differ; None where no single one does.

    ``cause``: the fault that reproduces the server, which tells its rounds.
    """
    case = next((c for c in cases if c.same_answer is False), next((c for c in cases if c.same_counts is False), None))
    if case is None:
        return None
    chat, answers = along.target.chat, case.same_answer is False
    theirs, title = _server_rounds(case, along, cause)
    ours = _our_rounds(case, along) if case.own is not None or case.answer.tokens is not None else None
    position = case.differs_at if answers else _first_other_round(ours, theirs)
    theirs_token = None
    if case.answer.tokens is not None and case.differs_at is not None and case.differs_at < len(case.tokens):
        theirs_token = _named(chat, case, case.tokens[case.differs_at])
    first = First(
        benchmark=case.benchmark,
        temperature=case.temperature,
        prompt_id=case.prompt_id,
        turn=case.turn,
        what="answer" if answers else "counts",
        position=position,
        ours=None if case.own_token is None else _named(chat, case, case.own_token),
        theirs=theirs_token,
        gap=case.gap,
        scale=case.scale,
        tie=tie(case.gap, case.scale),
    )
    shown = Viewed("exact", "the replay", (_viewed(case, along.target, ours, own=True),))
    other = Viewed("as it answered", title, (_viewed(case, along.target, theirs, own=False),))
    return FirstShown(first, (shown, other))


@dataclass(frozen=True)
class Walked:
    """Rounds along one answer, with what each of them proposed; None where only the accepted tokens are known."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    rounds: Followed
    proposed: tuple[tuple[int, ...], ...] | None


def _walk(along: Along, prompt: tuple[int, ...], tokens: tuple[int, ...], tail: tuple[int, ...]) -> Walked | None:
    """The rounds along an answer; None where nothing drafts."""
    if along.drafter is None and along.rule is None:
        return None
    rounds, proposed = along.with_proposals((prompt, tokens, tail))
    return Walked(prompt, tokens, rounds, tuple(proposed))


def _our_rounds(case: Case, along: Along) -> Walked | None:
    """The rounds along the target's own answer, or along the server's where only the counts differ."""
    own = case.own
    if case.same_answer is False and own is not None:
        return _walk(along, own.prompt, own.tokens[: own.length], own.tokens[own.length :])
    return _walk(along, case.prompt, case.tokens, case.tail) if case.answer.tokens is not None else None


def _server_rounds(case: Case, along: Along, cause: Fault | None) -> tuple[Walked | None, str]:
    """The rounds of the server, where the replay or the fault that reproduces it tells them, and their title."""
    unknown = "the server (its rounds are not known)"
    if case.answer.tokens is None or not _known(case, along.target):
        return None, unknown
    if case.same_counts:
        return _walk(along, case.prompt, case.tokens, case.tail), "the server (its counts are those of these rounds)"
    if case.answer.steps is not None and (told := _told(case, along.proposals)) is not None:
        return told, "the server (the rounds that it tells)"
    if cause is None:
        return None, unknown
    drafter = along.drafter and cause.drafter(along.drafter)
    faulty = replace(along, target=cause.target(along.target), drafter=drafter)
    prompt = case.prompt if cause.prompt is None else cause.prompt(along.target.chat, case.messages)
    walked = _walk(faulty, prompt, case.tokens, case.tail)
    if walked is None or same_counts(walked.rounds, case.answer, cuts=True) is False:
        return None, unknown
    return walked, f"the server (rounds of the fault found: {cause.title})"


def _told(case: Case, proposals: int) -> Walked | None:
    """The rounds that a server tells; None where they do not emit the answer (it made passes without a draft too)."""
    steps = case.answer.steps or ()
    emitted = 1 + sum(a + 1 for a in steps)
    before = emitted - (steps[-1] + 1 if steps else 0)
    if not before < len(case.tokens) <= emitted:
        return None
    rounds = Followed(steps, tuple(max(a, proposals) for a in steps), False, len(case.tokens) - before)
    return Walked(case.prompt, case.tokens, rounds, None)


def _first_other_round(ours: Walked | None, theirs: Walked | None) -> int | None:
    """Index in the answer of the first token of the first round that differs."""
    if ours is None or theirs is None:
        return None
    at = 1
    for a, b in zip(ours.rounds.accepted, theirs.rounds.accepted, strict=False):
        if a != b:
            return at
        at += a + 1
    return None


def _named(chat: Chat, case: Case, token: int) -> tuple[int, str]:
    """A token with its text, as it is after the tokens before the first difference."""
    before = (*case.prompt, *case.tokens[: case.differs_at]) if case.answer.tokens is not None else case.prompt
    return token, pieces(chat, before, (token,))[0]


def _viewed(case: Case, target: Target, walked: Walked | None, *, own: bool) -> ViewedAnswer:
    """An answer as it is viewed, its rounds if they are known."""
    if walked is not None and walked.proposed is None:
        return _viewed_as_told(case, target, walked)
    if walked is not None and walked.proposed is not None:
        rounds = walked.rounds
        trajectory = Trajectory(case.prompt_id, case.turn, walked.prompt, walked.tokens, len(walked.tokens), False)
        proposed = max(rounds.drafted, default=0)
        trace = Trace(case.prompt_id, case.turn, rounds.accepted, proposed, len(walked.tokens), False)
        return viewed_answer(target.chat, trajectory, trace, walked.proposed, benchmark=case.benchmark)
    if own and case.own is not None:
        tokens = case.own.tokens[: case.own.length]
    elif case.answer.tokens is not None:
        tokens = case.tokens
    else:
        tokens = tuple(target.chat.tokens([case.answer.text])[0])
    texts = pieces(target.chat, case.prompt, tokens)
    asked = target.chat.tokenizer.decode(list(case.prompt), skip_special_tokens=False)
    return ViewedAnswer(case.prompt_id, case.benchmark, case.turn, asked, texts, None)


def _viewed_as_told(case: Case, target: Target, walked: Walked) -> ViewedAnswer:
    """An answer whose rounds are known by their accepted tokens alone; ``?`` stands for a rejected draft token."""
    texts = pieces(target.chat, walked.prompt, walked.tokens)
    rounds, at = [], 1
    for accepted, drafted in zip(walked.rounds.accepted, walked.rounds.drafted, strict=True):
        emitted = texts[at : at + accepted + 1]
        proposed = (*emitted[:accepted], *("?" for _ in range(drafted - len(emitted[:accepted]))))
        rounds.append(Round(proposed, accepted, emitted, "the rejected draft tokens are not known"))
        at += accepted + 1
    asked = target.chat.tokenizer.decode(list(walked.prompt), skip_special_tokens=False)
    return ViewedAnswer(case.prompt_id, case.benchmark, case.turn, asked, texts, tuple(rounds))
