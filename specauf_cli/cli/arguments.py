"""Arguments that several commands share, and the help of a command group."""

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
RunName = Annotated[str | None, typer.Option("--run", help="Run id or folder. Default: the latest finished run.")]
Benchmarks = Annotated[str, typer.Option(help="all (those of the profile), or names: gsm8k,mbpp")]
Definition = Annotated[str, typer.Option(help="engine, pooled, per_response or eos_truncated.")]


def help_alone(context: typer.Context) -> None:
    """Shows the help of a group of commands that was called without one; exit code 2."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
