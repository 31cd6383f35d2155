"""Arguments that several commands share."""

from typing import Annotated

import typer

OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides, e.g. profile=smoke seed=1")
]
RunOption = Annotated[
    list[str] | None, typer.Option(help="Run id or folder; repeatable. Default: the latest finished run.")
]
