"""Commands around a training: what is checked and estimated before it, where its drafter goes after it."""

from typing import Annotated

import typer

from specauf_cli.arguments import OVERRIDES, Overrides, overrides_of

app = typer.Typer()


@app.command("serve-command", context_settings=OVERRIDES)
def serve_command(
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="Run id or folder. Default: the latest finished run.")] = None,
    backend: Annotated[str, typer.Option(help="sglang or vllm.")] = "sglang",
    drafter: Annotated[
        str | None,
        typer.Option(help="Folder of the exported drafter. Default: runs/RUN/export/hf (vllm: export/vllm)."),
    ] = None,
) -> None:
    """Print the command that serves a run's drafter with SGLang or vLLM, for `specauf eval --backend`."""
    from specauf_cli import serving

    serving.serve_command(backend, run, drafter, overrides_of(overrides))
