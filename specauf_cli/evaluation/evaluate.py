"""Measuring one drafter on every benchmark: trajectories, replay or live decoding, audit, block-mask accuracy."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specauf_cli.config.schema import Config, EvaluationConfig
from specauf_cli.data import benchmarks
from specauf_cli.errors import InputError
from specauf_cli.evaluation import accuracy, tau, trajectories
from specauf_cli.evaluation.decode import decode_all
from specauf_cli.evaluation.replay import every_start, replay
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.store.records import BenchmarkResult
from specauf_cli.types import Corpus, PromptSet, Trace, Trajectory


def load_benchmarks(config: Config) -> list[PromptSet]:
    """The prompt sets of the configuration. Errors: InputError when there are none."""
    if not config.benchmark:
        raise InputError("no benchmark chosen; choose some with --benchmarks or benchmark=...")
    root = Path(config.benchmark_root) if config.benchmark_root else None
    most = config.evaluation.prompts
    if root is not None and all(b.source == "offline" for b in config.benchmark.values()):
        raise InputError(
            f"benchmark_root={root} is given, but every chosen benchmark is made here; choose real ones: --benchmarks "
            "gsm8k,mbpp or benchmark=all"
        )
    chosen = [replace(b, limit=min(b.limit, most or b.limit)) for b in config.benchmark.values()]
    return [benchmarks.load(b, root=root) for b in chosen]


def own_answers(
    config: Config, target: Target, prompts: PromptSet, temperature: float, cache: Path, *, shared: bool = False
) -> trajectories.Generated:
    """The target's trajectories of one benchmark, with a tail as long as a round of ``config.backbone`` may reach.

    ``shared``: every rank calls this, and each generates a part.
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
        show=_say,
        shared=shared,
    )


def evaluate(
    config: Config, target: Target, drafter: DFlash, heldout: Corpus, prompts: Sequence[PromptSet], cache: Path
) -> tuple[tuple[BenchmarkResult, ...], dict[str, Any], dict[str, float]]:
    """Results per benchmark and temperature, block-mask sums on held-out conversations, and seconds by part."""
    settings = config.evaluation
    clock = time.perf_counter()
    blocks = accuracy.heldout_blocks(
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
            made = own_answers(config, target, prompt_set, temperature, cache, shared=True)
            seconds["trajectories"] += time.perf_counter() - clock
            clock = time.perf_counter()
            starts: dict[str, list[int]] = {}
            sample = made.trajectories[: settings.audit]  # None: all of them
            if settings.mode == "replay":
                traces = _replayed(target, drafter, made.trajectories, settings)
                seconds["traces"] += time.perf_counter() - clock
                clock = time.perf_counter()
                audit = _audit(sample, live(sample) if sample else [], traces)
            else:
                lived = live(made.trajectories)
                traces = [trace for trace, _ in lived]
                seconds["traces"] += time.perf_counter() - clock
                clock = time.perf_counter()
                audit = _audit(sample, lived, _replayed(target, drafter, sample, settings) if sample else [])
            seconds["audit"] += time.perf_counter() - clock
            if settings.all_starts:
                starts = _every_start(target, drafter, made.trajectories, settings)
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
                    skipped=made.skipped,
                    audit=audit,
                    starts=starts,
                    traces=tuple(traces),
                )
            )
            identical = f"{audit['identical']} of {audit['requests']} live outputs equal the target's own"
            _say(f"{prompt_set.title:>28}  T={temperature:g}  tau {tau.mean(traces):.3f}  audit: {identical}")
    return tuple(results), blocks, {k: round(v, 2) for k, v in seconds.items()}


def _replayed(target: Target, drafter: DFlash, all_: Sequence[Trajectory], settings: EvaluationConfig) -> list[Trace]:
    """The replay of every trajectory, a part of them by each rank."""
    found = replay(target, drafter, ranks.share(all_), batch_size=settings.batch_size)
    rows = ranks.collect([trace.accepted for trace in found], target.device)
    return [
        Trace(t.prompt_id, t.turn, tuple(row), drafter.backbone.proposals, t.length, t.ended)
        for t, row in zip(all_, rows, strict=True)
    ]


def _live(
    target: Target, drafter: DFlash, temperature: float, settings: EvaluationConfig, all_: Sequence[Trajectory]
) -> list[tuple[Trace, tuple[int, ...]]]:
    """Every request decoded live, a part of them by each rank: what happened, and the tokens."""
    found = decode_all(
        target,
        drafter,
        ranks.share(all_),
        temperature=temperature,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
    )
    accepted = ranks.collect([trace.accepted for trace, _ in found], target.device)
    ends = ranks.collect([[trace.tokens, trace.ended] for trace, _ in found], target.device)
    emitted = ranks.collect([tokens for _, tokens in found], target.device)
    return [
        (Trace(t.prompt_id, t.turn, tuple(a), drafter.backbone.proposals, count, bool(ended)), tuple(tokens))
        for t, a, (count, ended), tokens in zip(all_, accepted, ends, emitted, strict=True)
    ]


def _every_start(
    target: Target, drafter: DFlash, all_: Sequence[Trajectory], settings: EvaluationConfig
) -> dict[str, list[int]]:
    """Sums over every possible start of every trajectory, a part of them by each rank."""
    every = every_start(target, drafter, ranks.share(all_), batch_size=settings.batch_size)
    sums = {"histogram": every.histogram(), "valid": every.valid, "correct": every.correct}
    added = ranks.add([torch.tensor(v, device=target.device) for v in sums.values()])
    return {k: v.tolist() for k, v in zip(sums, added, strict=True)}


def _audit(
    sample: Sequence[Trajectory], lived: Sequence[tuple[Trace, tuple[int, ...]]], replayed: Sequence[Trace]
) -> dict[str, Any]:
    """Of the requests decoded live: how many outputs are the target's own, and how many have the replay's rounds."""
    identical, same_rounds, first = 0, 0, None
    for trajectory, known, (trace, tokens) in zip(sample, replayed, lived, strict=False):
        own = trajectory.tokens[: trajectory.length]
        identical += tokens == own
        same_rounds += trace.accepted == known.accepted
        if tokens != own and first is None:
            at = next(
                (k for k, (a, b) in enumerate(zip(tokens, own, strict=False)) if a != b), min(len(tokens), len(own))
            )
            first = {"prompt": trajectory.prompt_id, "turn": trajectory.turn, "token": at}
    return {"requests": len(sample), "identical": identical, "same_rounds": same_rounds, "first_difference": first}


_say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
