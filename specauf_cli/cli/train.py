"""Training: one drafter, a sweep, several together; the small target alone."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides
from specauf_cli.config.groups import check_once
from specauf_cli.config.overrides import key_of, overrides_of, value_of
from specauf_cli.errors import InputError

if TYPE_CHECKING:
    from specauf_cli.config.schema import Config

app = typer.Typer()


@app.command(context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train one drafter; -m sweeps, --help lists all settings, --force trains a finished one again (the old one is
    kept).

    --together trains all drafters of a sweep at once, from one pass over data and target: each ends exactly as if
    trained alone. --eval measures each when it is trained, with its benchmarks.
    """
    own = {"--force", "--together", "--eval"} & set(context.args)
    words = [w for w in context.args if w not in own]
    if {"--help", "-h"} & set(words):
        from specauf_cli.config import reference

        print(reference.train_help())
        return
    check_once(words)
    words = _of_experiment(words)
    if "--together" in own:
        if "--eval" in own:
            raise InputError("--together trains only; measure with specauf eval --all-runs, or leave --together out")
        _train_together(words, force="--force" in own)
        return
    from specauf_cli.config import compose

    def job(config: "Config", overrides: list[str]) -> None:
        _say_other_name(config, overrides)
        from specauf_cli.reporting import summary
        from specauf_cli.session import open_session
        from specauf_cli.study.executors import Worker

        if "--eval" not in own:
            print(open_session(config).train(config, overrides, force="--force" in own))
            return
        record, path = Worker().fill(config, overrides, force="--force" in own)
        print("\n".join(summary.of_record(record, "engine")))
        print(f"  record: {path}")

    compose.run_hydra(job, words)


def _say_other_name(config: "Config", overrides: Sequence[str]) -> None:
    """Says what an objective is called on this backbone, where that is not the name that was typed."""
    typed = next((value_of(w) for w in overrides if key_of(w) == "objective"), config.objective.name)
    renamed = any(key_of(w) == "objective.name" for w in overrides)
    if typed != config.objective.name and not renamed:
        print(f"specauf: objective={typed} is {config.objective.name} on {config.backbone.name}", file=sys.stderr)


def _of_experiment(words: Sequence[str]) -> list[str]:
    """``experiment=NAME`` as the drafters of that table: its backbone, and its objectives as a sweep."""
    named = [w for w in words if key_of(w) == "experiment"]
    if not named:
        return list(words)
    from specauf_cli.config.specs import BaselinesSpec, ComparisonSpec, DraftersSpec, load_spec

    spec = load_spec(value_of(named[-1]))
    if not {"-m", "--multirun", "--together", "--cfg", "-c"} & set(words):
        raise InputError(
            f"{named[-1]!r} names several drafters; add -m to train each of them: specauf train -m {named[-1]}"
        )
    if isinstance(spec, BaselinesSpec | DraftersSpec):
        raise InputError(f"{named[-1]!r} has several backbones; specauf table {spec.name} trains its drafters")
    if isinstance(spec, ComparisonSpec):
        raise InputError(f"{named[-1]!r}: its rows have settings of their own; specauf table {spec.name} trains them")
    given = {key_of(w) for w in words}
    drafters = {"backbone": spec.backbone, "objective": ",".join(row.objective for row in spec.rows)}
    return [
        *(w for w in words if w not in named),
        *(f"{group}={choice}" for group, choice in drafters.items() if group not in given),
    ]


def _train_together(words: Sequence[str], *, force: bool) -> None:
    """Trains every drafter of a sweep in one pass over data and target, and prints their folders."""
    from specauf_cli.config import compose
    from specauf_cli.session import open_session

    option = next((w for w in words if w.startswith("-") and w not in ("-m", "--multirun")), None)
    if option is not None:
        raise InputError(f"--together takes overrides only, not {option!r}")
    sweep = compose.sweep([w for w in words if not w.startswith("-")])
    jobs = [(compose.compose(overrides), overrides) for overrides in sweep]
    for config, overrides in jobs:
        _say_other_name(config, overrides)
    session = open_session(jobs[0][0])
    other = next((" ".join(o) for c, o in jobs if not session.serves(c)), None)
    if other is not None:
        raise InputError(
            f"--together: {other} has another target, other data or other batches than {' '.join(jobs[0][1])}"
        )
    outcomes = session.train_together(jobs, force=force)
    for outcome in outcomes:
        if not isinstance(outcome, InputError):
            print(outcome)
    failures = [str(outcome) for outcome in outcomes if isinstance(outcome, InputError)]
    if failures:
        raise InputError(" | ".join(failures))


@app.command(context_settings=OVERRIDES)
def target(overrides: Overrides = None) -> None:
    """Train the profile's small target on its own (train, eval and table do it when it is missing)."""
    from specauf_cli.config import compose
    from specauf_cli.session import open_session

    print(open_session(compose.compose(overrides_of(overrides))).target.config.path)


@app.command(hidden=True)
def worker() -> None:
    """What a table's worker processes run: jobs come on stdin, answers go to stdout."""
    from specauf_cli.study import executors

    executors.serve()
