"""The commands. Nothing heavy is imported at module level, so ``specauf --help`` answers at once."""

from typing import Annotated

import typer

from specauf_cli import __version__
from specauf_cli.cli import (
    data,
    drafters,
    engine,
    evaluate,
    objectives,
    planning,
    referee,
    runs,
    speed,
    table,
    train,
    view,
)
from specauf_cli.cli.arguments import help_alone

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for commands in (train, evaluate, view, table, objectives, runs, drafters, engine, referee, planning, speed):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Train, verify and compare block drafters for speculative decoding.

    The main job: `specauf table` trains and evaluates what a table lacks and prints it next to the paper's numbers.
    """
    if version:
        print(__version__)
        raise typer.Exit
    help_alone(context)
