"""Measuring one drafter on every benchmark: trajectories, replay or live decoding, audit, block-mask accuracy."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from specauf_cli.config.schema import Config, EvaluationConfig
from specauf_cli.data import benchmarks
from specauf_cli.errors import InputError
from specauf_cli.evaluation import accuracy, tau, trajectories
from specauf_cli.evaluation.decode import Drafted, decode_all
from specauf_cli.evaluation.draft_cost import describe
from specauf_cli.evaluation.replay import every_start, replay
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives.terms import bind
from specauf_cli.runtime import ranks
from specauf_cli.store.provenance import peak_memory_mib
from specauf_cli.store.records import Audit, BenchmarkResult, Cost, FirstDifference, Heldout
from specauf_cli.types import Corpus, PromptSet, Trace, Trajectory


def load_benchmarks(config: Config) -> list[PromptSet]:
    """The prompt sets of the configuration. Errors: InputError when there are none."""
    if not config.benchmark:
        raise InputError("no benchmark chosen; choose some with --benchmarks or benchmark=...")
    root = Path(config.benchmark_root) if config.benchmark_root else None
    most = config.evaluation.prompts
    if root is not None and all(b.source == "offline" for b in config.benchmark.values()):
        raise InputError(
            f"benchmark_root={root} is given, but every chosen benchmark is generated; choose real ones: --benchmarks "
            "gsm8k,mbpp or benchmark=all"
        )
    chosen = [replace(b, limit=min(b.limit, most or b.limit)) for b in config.benchmark.values()]
    return [benchmarks.load(b, root=root) for b in chosen]


def own_answers(
    config: Config, target: Target, prompts: PromptSet, temperature: float, cache: Path, *, shared: bool = False
) -> trajectories.Generated:
    """The target's trajectories of one benchmark, with a tail as long as a round of ``config.backbone`` can be.

    ``shared``: every rank calls this and generates its part.
    """
    settings = config.evaluation
    return trajectories.get(
        target,
        prompts,
        temperature=temperature,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        tail=config.backbone.block_size + 1,
        batch_size=settings.batch_size,
        cache=cache,
        draw=settings.draw,
        show=_say,
        shared=shared,
    )


def least_confidence(config: Config, drafter: DFlash) -> float:
    """``evaluation.confidence``. Errors: InputError for a drafter that has no trained confidence head."""
    least = config.evaluation.confidence
    if least > 0 and not (drafter.confident() and bind(config.objective, config.trainer.normalize).confident):
        why = "was trained without the loss `confidence`" if drafter.confident() else "has no confidence head"
        raise InputError(
            f"evaluation.confidence={least:g}: this {config.backbone.title} drafter of objective "
            f"{config.objective.name!r} {why}; leave it at 0"
        )
    return least


@dataclass(frozen=True)
class Evaluated:
    """What was measured: results per benchmark and temperature, block-mask sums on held-out conversations, cost."""

    benchmarks: tuple[BenchmarkResult, ...]
    heldout: Heldout
    cost: Cost


def evaluate(
    config: Config, target: Target, drafter: DFlash, heldout: Corpus, prompts: Sequence[PromptSet], cache: Path
) -> Evaluated:
    """Measures ``drafter`` on every benchmark and temperature, and on held-out conversations."""
    settings = config.evaluation
    clock = time.perf_counter()
    heldout_sums = accuracy.heldout_blocks(
        target,
        drafter,
        heldout,
        max_length=config.trainer.max_length,
        anchors=settings.heldout_anchors,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    seconds = {"heldout": time.perf_counter() - clock, "trajectories": 0.0, "traces": 0.0, "audit": 0.0}
    results = []
    for temperature in settings.temperatures:
        live = partial(_live, target, drafter, temperature, settings)
        for prompt_set in prompts:
            clock = time.perf_counter()
            answers = own_answers(config, target, prompt_set, temperature, cache, shared=True)
            seconds["trajectories"] += time.perf_counter() - clock
            clock = time.perf_counter()
            starts: dict[str, tuple[int, ...]] = {}
            sample = answers.trajectories[: settings.audit]  # None: all of them
            if settings.mode == "replay":
                traces = _replayed(target, drafter, answers.trajectories, settings)
                seconds["traces"] += time.perf_counter() - clock
                clock = time.perf_counter()
                audit = _audit(sample, live(sample) if sample else [], traces)
            else:
                lived = live(answers.trajectories)
                traces = [trace for trace, _ in lived]
                seconds["traces"] += time.perf_counter() - clock
                clock = time.perf_counter()
                audit = _audit(sample, lived, _replayed(target, drafter, sample, settings) if sample else [])
            seconds["audit"] += time.perf_counter() - clock
            if settings.all_starts:
                starts = _every_start(target, drafter, answers.trajectories, settings)
            chosen = config.benchmark[prompt_set.name]
            results.append(
                BenchmarkResult(
                    benchmark=prompt_set.name,
                    title=prompt_set.title,
                    column=chosen.column,
                    temperature=temperature,
                    prompts_sha256=prompt_set.sha256,
                    prompts=len(prompt_set.prompts),
                    origin=prompt_set.origin,
                    skipped=answers.skipped,
                    audit=audit,
                    starts=starts,
                    traces=tuple(traces),
                )
            )
            line = f"{prompt_set.title:>28}  T={temperature:g}  tau {tau.mean(traces):.3f}"
            if audit.requests:
                line += f"  audit: {audit.identical} of {audit.requests} live outputs equal the target's own"
            _say(line)
    cost = Cost(
        **{k: round(v, 2) for k, v in seconds.items()},
        peak_memory_mib=peak_memory_mib(),
        drafter=describe(target, drafter),
    )
    return Evaluated(tuple(results), heldout_sums, cost)


def _replayed(target: Target, drafter: DFlash, all_: Sequence[Trajectory], settings: EvaluationConfig) -> list[Trace]:
    """The replay of every trajectory, divided among the ranks."""
    own_share = replay(target, drafter, ranks.share(all_), batch_size=settings.batch_size)
    rows = ranks.collect([trace.accepted for trace in own_share], target.device)
    return [
        Trace(t.prompt_id, t.turn, tuple(row), drafter.backbone.proposals, t.length, t.ended)
        for t, row in zip(all_, rows, strict=True)
    ]


def _live(
    target: Target, drafter: DFlash, temperature: float, settings: EvaluationConfig, all_: Sequence[Trajectory]
) -> list[tuple[Trace, tuple[int, ...]]]:
    """Every request decoded live, divided among the ranks: trace and tokens."""
    own_share = decode_all(
        target,
        Drafted(target, drafter),
        ranks.share(all_),
        temperature=temperature,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        draw=settings.draw,
    )
    accepted = ranks.collect([trace.accepted for trace, _ in own_share], target.device)
    ends = ranks.collect([[trace.tokens, trace.ended] for trace, _ in own_share], target.device)
    emitted = ranks.collect([tokens for _, tokens in own_share], target.device)
    return [
        (Trace(t.prompt_id, t.turn, tuple(a), drafter.backbone.proposals, count, bool(ended)), tuple(tokens))
        for t, a, (count, ended), tokens in zip(all_, accepted, ends, emitted, strict=True)
    ]


def _every_start(
    target: Target, drafter: DFlash, all_: Sequence[Trajectory], settings: EvaluationConfig
) -> dict[str, tuple[int, ...]]:
    """Sums over every possible start of every trajectory, divided among the ranks."""
    every = every_start(target, drafter, ranks.share(all_), batch_size=settings.batch_size)
    sums = {"histogram": every.histogram(), "valid": every.valid, "correct": every.correct}
    added = ranks.add([torch.tensor(v, device=target.device) for v in sums.values()])
    return {k: tuple(v.tolist()) for k, v in zip(sums, added, strict=True)}


def _audit(
    sample: Sequence[Trajectory], lived: Sequence[tuple[Trace, tuple[int, ...]]], replayed: Sequence[Trace]
) -> Audit:
    """Of the requests decoded live: how many outputs equal the target's own, and how many have the replay's rounds."""
    identical, same_rounds = 0, 0
    first: FirstDifference | None = None
    for trajectory, known, (trace, tokens) in zip(sample, replayed, lived, strict=False):
        own = trajectory.tokens[: trajectory.length]
        identical += tokens == own
        same_rounds += trace.accepted == known.accepted
        if tokens != own and first is None:
            at = next(
                (k for k, (a, b) in enumerate(zip(tokens, own, strict=False)) if a != b), min(len(tokens), len(own))
            )
            first = FirstDifference(prompt=trajectory.prompt_id, turn=trajectory.turn, token=at)
    return Audit(requests=len(sample), identical=identical, same_rounds=same_rounds, first_difference=first)


_say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
