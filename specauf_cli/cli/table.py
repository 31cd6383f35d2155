"""Whole tables and what is drawn from them: table, figures, report, render."""

from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, no_options
from specauf_cli.config.overrides import key_of, overrides_of
from specauf_cli.errors import InputError

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def table(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]... [KEY=VALUE]...",
            help="Experiment files or names (default: the paper's tables), and Hydra overrides.",
            callback=no_options,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0",
    publish: Annotated[
        bool, typer.Option("--publish", help="Copy the records into results/ and render there (clean tree only).")
    ] = False,
    launcher: Annotated[
        str | None, typer.Option(help="A launcher for the jobs, one of conf/hydra/launcher: slurm, local.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated rows, by name: train only these; the others show a dash.")
    ] = None,
    conditions: Annotated[
        str | None, typer.Option(help="Comma-separated conditions of a page that has some: only these are trained.")
    ] = None,
) -> None:
    """Train and evaluate what an experiment lacks, then print its table and write it to runs/tables/.

    workers=N runs N jobs at a time; --launcher hands them to a cluster.
    """
    from specauf_cli.study.table import run

    names = [w for w in words or [] if "=" not in w]
    for word in words or []:
        key = key_of(word)
        if "=" in word and key in ("backbone", "objective", "seed"):
            raise InputError(
                f"{word!r}: a table chooses its own {key}; its rows are in the yaml, seeds are given by --seeds"
            )
    overrides = overrides_of([w for w in words or [] if "=" in w])
    rows, chosen = (None if words is None else words.split(",") for words in (only, conditions))
    run(names, overrides, _seeds(seeds), publish=publish, launcher=launcher, only=rows, conditions=chosen)


@app.command(context_settings=OVERRIDES)
def figures(overrides: Overrides = None) -> None:
    """Draw the figures of the last table of a profile into runs/figures/ (SVG and PNG)."""
    from specauf_cli.study.last import draw_figures

    draw_figures(overrides_of(overrides))


@app.command(context_settings=OVERRIDES)
def report(overrides: Overrides = None) -> None:
    """Write one self-contained HTML report of the last table of a profile into runs/reports/."""
    from specauf_cli.study.last import write_report

    write_report(overrides_of(overrides))


@app.command("render")
def render_results() -> None:
    """Render every table, figure and report under results/, and the tables quoted in README.md, from the committed
    records."""
    from specauf_cli.study.render import render

    render()


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r}: give different integers separated by commas, for example 0,1,2")
    return seeds
