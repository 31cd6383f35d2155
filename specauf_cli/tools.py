"""Commands around a training: what is checked and estimated before it, where its drafter goes after it."""

from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.arguments import OVERRIDES, Overrides, configs, overrides_of, runs_folder

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def doctor(
    overrides: Overrides = None,
    run: Annotated[
        str | None, typer.Option(help="A finished run (id or folder): its own settings and drafter are checked.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only what needs no target and no download.")] = False,
) -> None:
    """Check target, data and drafter for what breaks drafters: a line and a fix each; exit code 1 when a check failed."""
    from specauf_cli import compose, runs
    from specauf_cli import doctor as clinic

    extra, folder = overrides_of(overrides), None
    if run is not None:
        (folder,) = runs.find(Path(runs_folder(extra)), [run], every=False)
        config, _ = configs(folder, extra, "all")
    else:
        config = compose.compose(extra)
    if not clinic.run(config, folder, dry=dry_run):
        raise typer.Exit(1)
