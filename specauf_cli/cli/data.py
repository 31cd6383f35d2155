"""Real data: data fetch."""

from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, help_alone
from specauf_cli.config.overrides import overrides_of

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    """Real data: fetch the training conversations and benchmarks."""
    help_alone(context)


@app.command("fetch", context_settings=OVERRIDES)
def fetch_data(
    out: Annotated[Path, typer.Option(help="Folder to write: DIR/train/*.jsonl and DIR/benchmarks/*.jsonl.")],
    overrides: Overrides = None,
) -> None:
    """Download ShareGPT and the six real benchmarks from the Hugging Face hub into DIR, as profile=cpu_real reads
    them."""
    from specauf_cli.config import compose
    from specauf_cli.data import fetch

    config = compose.compose(["data=sharegpt", "benchmark=all", f"data_root={out}", *overrides_of(overrides)])
    fetch.fetch(out, config.benchmark, config.data, echo=print)
