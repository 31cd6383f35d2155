"""Arguments that several commands share, and the help of a command group."""

import sys
from typing import Annotated

import typer

from specauf_cli.errors import unknown_option

OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


def no_options(context: typer.Context, words: list[str] | None) -> list[str] | None:
    """``words``, none of which is an option that the command does not have. Errors: InputError for one that is."""
    valid = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    for word in words or []:
        if word.startswith("-"):
            raise unknown_option(word, valid)
    return words


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides, e.g. profile=smoke seed=1", callback=no_options),
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
