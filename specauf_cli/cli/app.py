"""The commands. Nothing heavy is imported at module level, so ``specauf --help`` answers at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specauf_cli import __version__
from specauf_cli.cli import drafters, engine, evaluate
from specauf_cli.cli.arguments import OVERRIDES, Definition, Overrides
from specauf_cli.config.overrides import overrides_of, runs_folder_only
from specauf_cli.errors import InputError

if TYPE_CHECKING:
    from specauf_cli.config.schema import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Real data: fetch the training conversations and benchmarks.")
app.add_typer(data_app, name="data")
app.add_typer(drafters.app)
app.add_typer(engine.app)
app.add_typer(evaluate.app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train, verify and compare block drafters for speculative decoding.

    The main job: `specauf table` trains and evaluates what a table lacks and prints it beside the paper's numbers.
    """
    if version:
        print(__version__)
        raise typer.Exit


@app.command(context_settings={**OVERRIDES, "help_option_names": []}, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train one drafter; -m sweeps, --help lists the groups, --force trains a finished one again (the old one is kept).

    --together trains all drafters of a sweep at once, from one pass over data and target: each ends as it would alone.
    --eval measures each when it is trained, with its benchmarks.
    """
    from specauf_cli.config import compose

    own = {"--force", "--together", "--eval"} & set(context.args)
    words = [w for w in context.args if w not in own]
    if "--together" in own:
        if "--eval" in own:
            raise InputError("--together trains only; measure with specauf eval --all-runs, or leave --together out")
        _train_together(compose.sweep(words), force="--force" in own)
        return

    def job(config: "Config", overrides: list[str]) -> None:
        from specauf_cli.reporting import summary
        from specauf_cli.session import open_session
        from specauf_cli.study.executors import Worker

        if "--eval" not in own:
            print(open_session(config).train(config, overrides, force="--force" in own))
            return
        record, path = Worker().fill(config, overrides, force="--force" in own)
        print("\n".join(summary.of_record(record, "engine")))
        print(f"  record: {path}")

    compose.run_hydra(job, words)


@app.command(context_settings=OVERRIDES)
def table(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]... [KEY=VALUE]...",
            help="Experiment files or names (default: the paper's tables), and Hydra overrides.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0",
    publish: Annotated[
        bool, typer.Option("--publish", help="Copy the records into results/ and render there (clean tree only).")
    ] = False,
    launcher: Annotated[
        str | None, typer.Option(help="A launcher for the jobs, one of conf/hydra/launcher: slurm, local.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Comma-separated objectives: train these rows alone, the others stay a dash.")
    ] = None,
) -> None:
    """Train and evaluate whatever an experiment lacks, then print its table and write it to runs/tables/.

    workers=N trains N jobs side by side; --launcher hands them to a cluster.
    """
    from specauf_cli.study import run

    names = [w for w in words or [] if "=" not in w]
    for word in words or []:
        key = word.partition("=")[0].lstrip("+~")
        if "=" in word and key in ("backbone", "objective", "seed"):
            raise InputError(
                f"{word!r}: a table chooses its own {key}; its rows are in the yaml, seeds are given by --seeds"
            )
    overrides_ = overrides_of([w for w in words or [] if "=" in w])
    rows = None if only is None else only.split(",")
    run.run(names, overrides_, _seeds(seeds), publish=publish, launcher=launcher, only=rows)


@app.command("ls", context_settings=OVERRIDES)
def list_runs(overrides: Overrides = None) -> None:
    """List the runs with their state: finished, training, interrupted at step n, failed and why."""
    from specauf_cli.reporting import escape, summary
    from specauf_cli.store import layout

    local = Path(runs_folder_only(overrides_of(overrides)))
    found = layout.states(local)
    if not found:
        raise InputError(f"no run under {local}/ yet; specauf train objective=auf backbone=dflash")
    apart = summary.apart(found)
    for run in found:
        text = f"{run.state} at step {run.step}  {run.reason}"
        if run.state == "finished":
            try:
                known = layout.measured(local / run.name)
                text = "  ".join(
                    [*filter(None, [run.origin]), summary.averages(known[-1], "engine") if known else "not measured"]
                )
            except InputError as error:
                text = f"damaged record: {error}"
        print(escape.plain("  ".join(filter(None, [run.name, apart.get(run.name), text]))).rstrip())


@app.command(context_settings=OVERRIDES)
def show(
    words: Annotated[list[str] | None, typer.Argument(metavar="[RUN]... [runs=FOLDER]")] = None,
    definition: Definition = "engine",
) -> None:
    """Show a run (default: the latest finished one): its choices, progress or result, loss, tau per benchmark."""
    from specauf_cli.reporting import summary
    from specauf_cli.store import layout
    from specauf_cli.types import check_definition

    check_definition(definition)
    names = [w for w in words or [] if "=" not in w]
    local = Path(runs_folder_only([w for w in words or [] if "=" in w]))
    for folder in layout.find(local, names, every=False, finished_only=False):
        run = layout.state(folder)
        print("\n".join(summary.of_state(run.name, run.state, run.step, run.about, run.log, run.reason, run.origin)))
        known = layout.measured(folder)
        print("\n".join(summary.of_record(known[-1], definition)) if known else "  not measured yet")


@app.command(context_settings=OVERRIDES)
def figures(overrides: Overrides = None) -> None:
    """Draw the figures of the last table of a profile into runs/figures/ (SVG and PNG)."""
    from specauf_cli.study import run

    run.figures(overrides_of(overrides))


@app.command(context_settings=OVERRIDES)
def report(overrides: Overrides = None) -> None:
    """Write one self-contained HTML report of the last table of a profile into runs/reports/."""
    from specauf_cli.study import run

    run.report(overrides_of(overrides))


@app.command(context_settings=OVERRIDES)
def target(overrides: Overrides = None) -> None:
    """Train the profile's small target on its own (train, eval and table do it when it is missing)."""
    from specauf_cli.config import compose
    from specauf_cli.session import open_session

    print(open_session(compose.compose(overrides_of(overrides))).target.config.path)


@app.command(hidden=True)
def worker() -> None:
    """What a table's worker processes run: jobs come on stdin, answers go to stdout."""
    from specauf_cli.study import executors

    executors.serve()


@app.command()
def render() -> None:
    """Render every table, figure and report under results/, and the tables quoted in README.md, from the committed
    records."""
    from specauf_cli.study import run

    run.render()


@data_app.command(context_settings=OVERRIDES)
def fetch(
    out: Annotated[Path, typer.Option(help="Folder to write: DIR/train/*.jsonl and DIR/benchmarks/*.jsonl.")],
    overrides: Overrides = None,
) -> None:
    """Download ShareGPT and the six real benchmarks from the Hugging Face hub into DIR, as profile=cpu_real reads
    them."""
    from specauf_cli.config import compose
    from specauf_cli.data.fetch import fetch as fetch_all

    config = compose.compose(["data=sharegpt", "benchmark=all", f"data_root={out}", *overrides_of(overrides)])
    fetch_all(out, config.benchmark, config.data, echo=print)


def _train_together(jobs: "Sequence[tuple[Config, Sequence[str]]]", *, force: bool) -> None:
    from specauf_cli.session import open_session

    session = open_session(jobs[0][0])
    other = next((" ".join(o) for c, o in jobs if not session.serves(c)), None)
    if other is not None:
        raise InputError(
            f"--together: {other} has another target, other data or other batches than {' '.join(jobs[0][1])}"
        )
    found = session.train_together(jobs, force=force)
    for one in found:
        if not isinstance(one, InputError):
            print(one)
    failures = [str(one) for one in found if isinstance(one, InputError)]
    if failures:
        raise InputError(" | ".join(failures))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text!r}: give different integers separated by commas, for example 0,1,2")
    return seeds
