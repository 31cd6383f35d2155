"""Prompt lookup measured like a drafter: replayed over the target's trajectories, some requests decoded live."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from specauf_cli.config.schema import Config
from specauf_cli.config.specs import BaselinesSpec
from specauf_cli.errors import InputError
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.decode import PromptLookup, decode_all
from specauf_cli.evaluation.evaluate import load_benchmarks, own_answers
from specauf_cli.evaluation.lookup import LookupRule, repeated_grams, replay_lookup
from specauf_cli.models.target import Target
from specauf_cli.session import open_session
from specauf_cli.store import layout
from specauf_cli.store.lookup import LookupRecord, RepeatedGrams, load_lookup, lookup_id, save_lookup
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.records import Audit, BenchmarkResult, CodeState
from specauf_cli.types import Trace, Trajectory


def measure_lookup(config: Config, spec: BaselinesSpec, words: Sequence[str]) -> LookupRecord:
    """Measures prompt lookup with the evaluation settings of ``config``; a record that exists is returned.

    ``words``: the command's own. Errors: InputError for proposals that do not fit into a round of ``config.backbone``.
    """
    rule = LookupRule(spec.lookup.longest, spec.lookup.shortest, spec.lookup.proposals)
    if rule.proposals > config.backbone.block_size:
        raise InputError(f"lookup.proposals={rule.proposals} must be at most {config.backbone.block_size}")
    prompts = load_benchmarks(config)
    session = open_session(config, precision=config.evaluation.precision)
    target = session.at(config.evaluation.precision)
    settings = {
        **{key: config.resolved[key] for key in ("profile", "evaluation", "benchmark")},
        "lookup": {"longest": rule.longest, "shortest": rule.shortest, "proposals": rule.proposals},
    }
    inputs = {"target": target.fingerprint, **{f"prompts of {p.name}": p.sha256 for p in prompts}}
    folder = layout.lookup(Path(config.runs))
    path = folder / f"{lookup_id(target.fingerprint, settings)}.json"
    if path.is_file() and (known := load_lookup(path)).inputs == inputs:
        print("prompt lookup: measured already", file=sys.stderr)
        return known
    cache = layout.trajectories(Path(config.runs), target.fingerprint)
    results, repetition = [], []
    for temperature in config.evaluation.temperatures:
        for prompt_set in prompts:
            answers = own_answers(config, target, prompt_set, temperature, cache)
            traces = replay_lookup(rule, answers.trajectories)
            column = config.benchmark[prompt_set.name].column
            grams = [repeated_grams(t.tokens[: t.length]) for t in answers.trajectories]
            repetition.append(RepeatedGrams(column, temperature, sum(a for a, _ in grams), sum(b for _, b in grams)))
            results.append(
                BenchmarkResult(
                    benchmark=prompt_set.name,
                    title=prompt_set.title,
                    column=column,
                    temperature=temperature,
                    prompts_sha256=prompt_set.sha256,
                    prompts=len(prompt_set.prompts),
                    origin=prompt_set.origin,
                    skipped=answers.skipped,
                    audit=_audit(config, target, rule, answers.trajectories, traces, temperature),
                    starts={},
                    traces=tuple(traces),
                )
            )
            line = f"{prompt_set.title:>28}  T={temperature:g}  tau {tau.mean(traces):.3f}  prompt lookup"
            print(line, file=sys.stderr, flush=True)
    record = LookupRecord(
        profile=config.profile.name,
        command=command_line(words),
        config=settings,
        code=CodeState(**code_state()),
        environment=environment(str(target.device), torch.get_num_threads()),
        inputs=inputs,
        target=session.target_section(config),
        benchmarks=tuple(results),
        repetition=tuple(repetition),
        written=now(),
    )
    save_lookup(record, folder)
    return record


def _audit(
    config: Config,
    target: Target,
    rule: LookupRule,
    answers: Sequence[Trajectory],
    traces: Sequence[Trace],
    temperature: float,
) -> Audit:
    """Of the first requests, decoded live: how many outputs are the target's own, how many have the replay's rounds."""
    settings = config.evaluation
    asked = answers[: settings.audit]  # None: all of them
    lived = decode_all(
        target,
        PromptLookup(rule),
        asked,
        temperature=temperature,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        draw=settings.draw,
    )
    identical = sum(tokens == t.tokens[: t.length] for t, (_, tokens) in zip(asked, lived, strict=True))
    same = sum(live.accepted == trace.accepted for (live, _), trace in zip(lived, traces, strict=False))
    return Audit(requests=len(asked), identical=identical, same_rounds=same)
