"""Where the tokens of answers come from: view."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Benchmarks, no_options
from specauf_cli.config.overrides import overrides_of, runs_folder, setting
from specauf_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from specauf_cli.config.schema import Config
    from specauf_cli.evaluation.trajectories import Generated
    from specauf_cli.reporting.view import Viewed
    from specauf_cli.types import PromptSet, Trajectory

app = typer.Typer()

PROMPTS = 2
"""Prompts of each benchmark that are shown unless the options say otherwise."""


@app.command(context_settings=OVERRIDES)
def view(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [RUN_B] [KEY=VALUE]...", callback=no_options)
    ] = None,
    benchmarks: Benchmarks = "all",
    prompts: Annotated[
        int | None, typer.Option(help=f"The first N prompts of each benchmark. Default: {PROMPTS}.")
    ] = None,
    ids: Annotated[str | None, typer.Option(help="Prompts by id, comma-separated, instead of the first ones.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the target's sampling; 0 is greedy.")] = 0.0,
    terminal: Annotated[bool, typer.Option("--terminal", help="Print here instead of writing a page.")] = False,
    out: Annotated[Path | None, typer.Option(help="The page. Default: runs/views/RUN.html.")] = None,
) -> None:
    """See where tokens come from: answers by verification round, of one drafter or of two (one HTML page)."""
    names = [w for w in words or [] if "=" not in w]
    overrides = overrides_of([w for w in words or [] if "=" in w])
    if len(names) > 2 or len(set(names)) < len(names):
        raise InputError(f"view {' '.join(names)}: give one run, or two different ones")
    if prompts is not None and ids is not None:
        raise InputError("--prompts and --ids both choose prompts; give one of them")
    if prompts is not None and prompts < 1:
        raise InputError(f"--prompts {prompts} must be at least 1")
    if terminal and out is not None:
        raise InputError(f"--out {out}: --terminal writes no page; leave one of them out")
    fixed = next(iter(setting(overrides, ["evaluation.mode", "evaluation.temperatures"])), None)
    if fixed:
        raise InputError(f"{fixed!r}: view replays at one temperature, given by --temperature; leave it out")
    from specauf_cli.reporting.view import html
    from specauf_cli.reporting.view import terminal as terminal_lines
    from specauf_cli.store import layout
    from specauf_cli.store.files import write_text

    runs = Path(runs_folder(overrides))
    folders = layout.find(runs, names, every=False)
    extra = [*overrides, f"evaluation.temperatures=[{temperature!r}]"]
    wanted = None if ids is None else [i for i in ids.split(",") if i]
    viewed, notes = _viewed(folders, extra, benchmarks, PROMPTS if prompts is None else prompts, wanted)
    if terminal:
        print(
            "\n".join(terminal_lines(viewed, color=sys.stdout.isatty() and "NO_COLOR" not in os.environ, notes=notes))
        )
        return
    path = out or layout.view(runs, [folder.name for folder in folders])
    write_text(path, html(viewed, notes=notes))
    print(path)


def _viewed(
    folders: Sequence[Path], extra: Sequence[str], benchmarks: str, prompts: int, ids: Sequence[str] | None
) -> tuple[list["Viewed"], list[str]]:
    """The chosen answers with the rounds of each run's drafter, and what to say above them."""
    from specauf_cli.evaluation.evaluate import load_benchmarks, own_answers
    from specauf_cli.evaluation.rounds import viewed_answers
    from specauf_cli.models import checkpoint
    from specauf_cli.reporting.view import Viewed
    from specauf_cli.session import open_session
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs

    settings = [configs(folder, extra, benchmarks) for folder in folders]
    as_trained, config = settings[0]
    session = open_session(as_trained, precision=config.evaluation.precision)
    target = session.at(config.evaluation.precision)
    for folder in folders:
        if layout.about_of(folder)["inputs"].get("target") != target.fingerprint:
            raise InputError(
                f"run {folder.name} was trained for another target than {folders[0].name} now has; view shows "
                "drafters of one target"
            )
    backbones = [own.backbone for _, own in settings]
    # A tail as long as the longest block, so that both drafters walk the same trajectories.
    widest = replace(config, backbone=max(backbones, key=lambda b: b.block_size))
    cache = layout.trajectories(Path(session.config.runs), target.fingerprint)
    temperature = config.evaluation.temperatures[0]
    loaded = load_benchmarks(config)
    if ids is not None:
        _check_ids(ids, loaded)
    chosen = [(p, own_answers(widest, target, p, temperature, cache)) for p in loaded if ids is None or _among(p, ids)]
    viewed = []
    for folder, backbone, (_, own) in zip(folders, backbones, settings, strict=True):
        weights = layout.drafter_of(folder)
        drafter = checkpoint.load(weights, target, backbone, run=folder.name).to(target.model.dtype)
        answers = [
            answer
            for prompt_set, generated in chosen
            for answer in viewed_answers(
                target,
                drafter,
                _chosen(prompt_set, generated, prompts, ids),
                benchmark=prompt_set.title,
                batch_size=config.evaluation.batch_size,
            )
        ]
        viewed.append(Viewed(folder.name, _title(own), tuple(answers)))
    return viewed, _notes(config, chosen)


def _among(prompt_set: "PromptSet", ids: Sequence[str]) -> bool:
    return any(p.id in ids for p in prompt_set.prompts)


def _check_ids(ids: Sequence[str], loaded: Sequence["PromptSet"]) -> None:
    """InputError for an id that no chosen benchmark has."""
    known = [p.id for prompt_set in loaded for p in prompt_set.prompts]
    unknown = next((i for i in ids if i not in known), None)
    if not ids or unknown is not None:
        shown = ", ".join(known[:5])
        raise InputError(
            f"--ids {unknown or ''}: no prompt of the chosen benchmarks has this id; the ids begin with {shown}."
            f"{nearest(unknown or '', known)}"
        )


def _chosen(
    prompt_set: "PromptSet", generated: "Generated", prompts: int, ids: Sequence[str] | None
) -> list["Trajectory"]:
    """The trajectories, all turns, of the chosen prompts. Errors: InputError when one of ``ids`` was skipped."""
    from specauf_cli.store.records import skips

    answered = list(dict.fromkeys(t.prompt_id for t in generated.trajectories))
    if ids is None:
        wanted = answered[:prompts]
    else:
        wanted = [p.id for p in prompt_set.prompts if p.id in ids]
        if lacking := next((i for i in wanted if i not in answered), None):
            raise InputError(f"--ids {lacking}: this prompt has no answer ({skips(generated.skipped)})")
    return [t for t in generated.trajectories if t.prompt_id in wanted]


def _title(config: "Config") -> str:
    return f"{config.backbone.title} {config.objective.title}, seed {config.seed}"


def _notes(config: "Config", chosen: Sequence[tuple["PromptSet", "Generated"]]) -> list[str]:
    """Target, temperature and length of the answers, and what was skipped."""
    from specauf_cli.store.records import skips

    settings = config.evaluation
    notes = [
        f"Target: {config.target.title}, T = {settings.temperatures[0]:g}, at most {settings.max_new_tokens} tokens an "
        f"answer, {settings.precision}; rounds by replay, as tau is measured."
    ]
    return notes + [f"{p.title}: {skips(g.skipped)}" for p, g in chosen if g.skipped]
