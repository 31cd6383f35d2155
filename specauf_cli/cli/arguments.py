"""What several commands share: arguments, and the help of a command group alone."""

import sys
from typing import Annotated

import typer

OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides, e.g. profile=smoke seed=1")
]
RunOption = Annotated[
    list[str] | None, typer.Option(help="Run id or folder; repeatable. Default: the latest finished run.")
]


def help_alone(context: typer.Context) -> None:
    """Shows the help of a group of commands that was called without one; exit code 2."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
