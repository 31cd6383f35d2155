"""What is under ``runs/``: ls, show."""

from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, no_options
from specauf_cli.config.overrides import overrides_of, runs_folder_only
from specauf_cli.errors import InputError

app = typer.Typer()


@app.command("ls", context_settings=OVERRIDES)
def list_runs(overrides: Overrides = None) -> None:
    """List the runs with their state: finished, training, interrupted at step n, failed and why."""
    from specauf_cli.reporting import escape, summary
    from specauf_cli.store import layout

    local = Path(runs_folder_only(overrides_of(overrides)))
    states = layout.states(local)
    if not states:
        raise InputError(f"no run under {local}/ yet; specauf train objective=auf backbone=dflash")
    apart = summary.apart(states)
    for run in states:
        text = f"{run.state} at step {run.step}  {run.reason}"
        if run.state == "finished":
            try:
                records = layout.measured(local / run.name)
                averages = summary.averages(records[-1], "engine") if records else "not measured"
                text = "  ".join(filter(None, [run.origin, averages]))
            except InputError as error:
                text = f"damaged record: {error}"
        print(escape.plain("  ".join(filter(None, [run.name, apart.get(run.name), text]))).rstrip())


@app.command(context_settings=OVERRIDES)
def show(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN or FILE.json]... [runs=FOLDER]", callback=no_options)
    ] = None,
    definition: Annotated[str, typer.Option(help="engine, pooled, per_response or eos_truncated.")] = "engine",
) -> None:
    """Show a run (default: the latest finished one): its choices, progress or result, loss, tau per benchmark; or the
    content of a record (FILE.json)."""
    from specauf_cli.reporting import summary
    from specauf_cli.store import layout
    from specauf_cli.types import check_definition

    check_definition(definition)
    names = [w for w in words or [] if "=" not in w]
    local = Path(runs_folder_only([w for w in words or [] if "=" in w]))
    files = [name for name in names if name.endswith(".json")]
    for file in files:
        print("\n".join(summary.of_record(layout.record_of(file), definition)))
    runs = [name for name in names if name not in files]
    for folder in layout.find(local, runs, every=False, finished_only=False) if runs or not files else ():
        run = layout.state(folder)
        print("\n".join(summary.of_state(run.name, run.state, run.step, run.about, run.log, run.reason, run.origin)))
        records = layout.measured(folder)
        print("\n".join(summary.of_record(records[-1], definition)) if records else "  not measured yet")
