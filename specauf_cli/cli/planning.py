"""Before a training: doctor, plan."""

from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides
from specauf_cli.config.overrides import overrides_of, runs_folder
from specauf_cli.errors import InputError

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def doctor(
    overrides: Overrides = None,
    run: Annotated[
        str | None, typer.Option(help="A finished run (id or folder): its own settings and drafter are checked.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only the checks that need no target and no download.")
    ] = False,
) -> None:
    """Check target, data and drafter for known mistakes: one line and a fix each; exit code 1 if a check failed."""
    from specauf_cli.config import compose
    from specauf_cli.doctor.examination import run_checks
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs

    extra, folder, asked = overrides_of(overrides), None, None
    if run is not None:
        (folder,) = layout.find(Path(runs_folder(extra)), [run], every=False)
        config, asked = configs(folder, extra, "all")
    else:
        config = compose.compose(extra)
    if not run_checks(config, folder, dry=dry_run, asked=asked):
        raise typer.Exit(1)


@app.command(context_settings=OVERRIDES)
def plan(
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="Hours on a named GPU (h200, h100, a100, ...) instead of this machine.")
    ] = None,
    devices: Annotated[int, typer.Option(help="GPUs that share the training (with --gpu).")] = 1,
    utilisation: Annotated[
        float,
        typer.Option(help="Share of the peak speed that training is assumed to reach (where nothing is measured)."),
    ] = 0.4,
) -> None:
    """What a training will take: parameters, work, memory, disk, hours. Nothing is trained or downloaded."""
    from specauf_cli.config import compose
    from specauf_cli.planning.estimate import estimate

    if gpu is None and devices != 1:
        raise InputError(f"--devices {devices}: only with --gpu; without it this machine is timed")
    config = compose.compose(overrides_of(overrides))
    for line in estimate(config, gpu=gpu, devices=devices, utilisation=utilisation):
        print(line)
