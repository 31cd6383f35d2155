"""Timing: whole requests decoded live by several methods in turn, and single rounds at given sizes.

A round is a draft of P tokens, one pass of the target over P + 1, and the rest: accepting, rolling the cache back,
reading the new features. Plain decoding is the same loop with nothing drafted. Methods take turns in a random order on
every request, so that a machine that slows down slows all of them.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from specauf_cli.config.schema import Draw
from specauf_cli.evaluation.decode import Proposer, decode, now_on, target_pass
from specauf_cli.evaluation.replay import every_start
from specauf_cli.evaluation.verify import accepted_prefix
from specauf_cli.models.dflash import Context, DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime.progress import track
from specauf_cli.store.speed import PLAIN, TimedRequest, TimedRounds
from specauf_cli.types import Trace, Trajectory

WARM_UP = 3
"""Repetitions of every single round that are not counted."""


def time_requests(
    target: Target,
    proposers: dict[str, Proposer],
    requests: Sequence[tuple[str, Trajectory]],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    repeats: int,
    draw: Draw = "inverse_cdf",
) -> tuple[list[TimedRequest], dict[str, int]]:
    """Every request (benchmark, trajectory) by every method, ``repeats`` times, in a random order that ``seed`` fixes.

    Also returns how many outputs of each method differ from the target's own (0 of each is lossless).
    """
    order = random.Random(seed)
    timed: list[TimedRequest] = []
    different = dict.fromkeys(proposers, 0)
    visits = [(repeat, i) for repeat in range(repeats) for i in range(len(requests))]
    warm_up = [(key, 0, 0) for key in proposers]
    turns = [(key, repeat, i) for repeat, i in visits for key in order.sample(list(proposers), len(proposers))]
    with track("decoding live", len(turns)) as show:
        for n, (key, repeat, i) in enumerate([*warm_up, *turns]):
            benchmark, t = requests[i]
            trace, tokens, clock = decode(
                target, proposers[key], t, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, draw=draw
            )
            if n < len(warm_up):
                continue
            different[key] += tokens != t.tokens[: t.length]
            timed.append(
                TimedRequest(
                    key,
                    repeat,
                    benchmark,
                    t.prompt_id,
                    t.turn,
                    trace.tokens,
                    trace.accepted,
                    clock.prefill,
                    clock.draft,
                    clock.verify,
                    clock.rest,
                    clock.decode,
                )
            )
            show(n + 1 - len(warm_up), key)
    return timed, different


@torch.no_grad()
def time_rounds(
    target: Target,
    drafters: dict[str, DFlash],
    tokens: Int[Tensor, "B T"],
    *,
    batch_sizes: Sequence[int],
    proposals: dict[str, Sequence[int]],
    repetitions: int,
    seed: int,
) -> list[TimedRounds]:
    """Single rounds: plain steps, and each drafter's with each number of proposals, after the first of ``tokens``.

    ``B`` is at least the largest batch size. Every repetition visits all of them in a new random order, and the next
    one has a token more before it, as in a request: libraries prepare anew for every length. The rest of a round reads
    the features of all its tokens, as a batch must.
    """
    order, visits = random.Random(seed), WARM_UP + repetitions
    results: list[TimedRounds] = []
    for size in batch_sizes:
        rows, cache = tokens[:size], target.new_cache()
        length = tokens.shape[1] - visits
        _, features = target_pass(target, rows[:, : length - 1], cache, True, True)
        assert features is not None
        contexts = {key: drafter.context(features) for key, drafter in drafters.items()}
        kinds = [(PLAIN, 0), *((key, p) for key in drafters for p in proposals[key])]
        seconds: dict[tuple[str, int], list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        with track(f"single rounds, batch size {size}", visits) as show:
            for visit in range(visits):
                anchor = rows[:, length - 1 : length]
                for key, count in order.sample(kinds, len(kinds)):
                    for _ in range(2):  # the second one counts: a round of another kind emptied the processor's caches
                        if key == PLAIN:
                            parts = _time_step(target, cache, anchor)
                        else:
                            parts = _time_round(target, drafters[key], contexts[key], cache, anchor, length - 1, count)
                    if visit >= WARM_UP:
                        seconds[key, count].append(parts)
                _, features = target_pass(target, anchor, cache, True)
                assert features is not None
                for key, drafter in drafters.items():
                    contexts[key] = contexts[key].extend(drafter.context(features, start=length - 1))
                length += 1
                show(visit + 1, "")
        for (key, count), each in seconds.items():
            draft, verify, rest = zip(*each, strict=True)
            results.append(TimedRounds(key, size, count, draft, verify, rest))
    return results


def _time_step(target: Target, cache: Any, anchor: Int[Tensor, "B 1"]) -> tuple[float, float, float]:
    """Seconds of a plain step, all of them the target's; the cache is left as it was."""
    start = now_on(target.device)
    logits, _ = target_pass(target, anchor, cache, False)
    logits.argmax(dim=-1).tolist()
    end = now_on(target.device)
    cache.crop(-1)
    return 0.0, end - start, 0.0


def _time_round(
    target: Target,
    drafter: DFlash,
    context: Context,
    cache: Any,
    anchor: Int[Tensor, "B 1"],
    position: int,
    proposals: int,
) -> tuple[float, float, float]:
    """Seconds of one round: draft, verification, rest; the cache is left as it was."""
    positions = torch.full_like(anchor, position)
    first = now_on(target.device)
    with _proposing(drafter, proposals):
        proposal = drafter.draft(target, context, anchor, positions)[:, 0]
    second = now_on(target.device)
    logits, features = target_pass(target, torch.cat([anchor, proposal], dim=1), cache, True)
    truth = logits.argmax(dim=-1)
    third = now_on(target.device)
    accepted_prefix(proposal, truth[:, :proposals]).tolist()
    cache.crop(-1 - proposals)
    assert features is not None
    context.extend(drafter.context(features, start=position))
    return second - first, third - second, now_on(target.device) - third


def context_rows(trajectories: Sequence[Trajectory], batch_size: int, repetitions: int) -> Int[Tensor, "B T"]:
    """Rows for ``time_rounds``: the middle length of a request, then a token for every repetition.

    Requests are used again where they are too few, and so are the tokens of one that is too short.
    """
    middles = sorted(len(t.prompt) + max(1, t.length // 2) for t in trajectories)
    width = middles[len(middles) // 2] + WARM_UP + repetitions
    whole = [[*t.prompt, *t.tokens] for t in trajectories]
    return torch.tensor(
        [[row[k % len(row)] for k in range(width)] for row in (whole[i % len(whole)] for i in range(batch_size))]
    )


def curve_of_drafter(
    target: Target, drafter: DFlash, trajectories: Sequence[Trajectory], *, batch_size: int
) -> dict[int, dict[str, tuple[int, int]]]:
    """Pooled tokens and rounds of every prompt with at most P proposals, exactly, for every P from 1 on.

    One draft at every token says how every round goes, wherever the rounds before it ended.
    """
    starts = every_start(target, drafter, trajectories, batch_size=batch_size)
    counts = range(1, drafter.backbone.proposals + 1)
    return {p: walked(starts.accepted, [t.prompt_id for t in trajectories], p) for p in counts}


def walked(accepted: Sequence[Sequence[int]], prompts: Sequence[str], proposals: int) -> dict[str, tuple[int, int]]:
    """Pooled tokens and rounds by prompt, where a block anchored at token s of request i accepts ``accepted[i][s]``
    tokens, cut at ``proposals``."""
    sums: dict[str, tuple[int, int]] = {}
    for prompt, row in zip(prompts, accepted, strict=True):
        tokens, rounds = sums.get(prompt, (0, 0))
        at = 0
        while at < len(row):
            step = min(row[at], proposals) + 1
            tokens, rounds, at = tokens + step, rounds + 1, at + step
        sums[prompt] = tokens, rounds
    return sums


def curve_of_traces(traces: Sequence[Trace]) -> dict[str, tuple[int, int]]:
    """Pooled tokens and rounds by prompt of traces as they are."""
    sums: dict[str, tuple[int, int]] = {}
    for trace in traces:
        tokens, rounds = sums.get(trace.prompt_id, (0, 0))
        sums[trace.prompt_id] = tokens + sum(trace.accepted) + len(trace.accepted), rounds + len(trace.accepted)
    return sums


@contextmanager
def _proposing(drafter: DFlash, proposals: int) -> Iterator[None]:
    """The drafter with another number of proposals for a while."""
    own = drafter.backbone
    drafter.backbone = replace(own, proposals=proposals)
    try:
        yield
    finally:
        drafter.backbone = own
