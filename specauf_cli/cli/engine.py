"""How a serving engine is started for a run's drafter: serve-command."""

from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, RunName
from specauf_cli.config.overrides import overrides_of

app = typer.Typer()


@app.command("serve-command", context_settings=OVERRIDES)
def print_serve_command(
    overrides: Overrides = None,
    run: RunName = None,
    backend: Annotated[str, typer.Option(help="sglang or vllm.")] = "sglang",
    drafter: Annotated[
        str | None,
        typer.Option(help="Folder of the exported drafter. Default: runs/RUN/export/hf (vllm: export/vllm)."),
    ] = None,
) -> None:
    """Print the command that serves a run's drafter with SGLang or vLLM, for `specauf eval --backend`."""
    from specauf_cli.engines.serve_command import serve_command

    serve_command(backend, run, drafter, overrides_of(overrides))
