"""The commands. Nothing heavy is imported at module level, so ``specauf --help`` answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from specauf_cli import __version__
from specauf_cli.cli import data, drafters, planning, runs, table, train
from specauf_cli.cli.arguments import OVERRIDES, Overrides, RunOption, help_alone
from specauf_cli.config.overrides import overrides_of, runs_folder, runs_folder_only
from specauf_cli.errors import InputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for commands in (train, table, runs, drafters, planning):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Train, verify and compare block drafters for speculative decoding.

    The main job: `specauf table` trains and evaluates what a table lacks and prints it beside the paper's numbers.
    """
    if version:
        print(__version__)
        raise typer.Exit
    help_alone(context)


@app.command("eval", context_settings=OVERRIDES)
def evaluate(
    overrides: Overrides = None,
    run: RunOption = None,
    all_runs: Annotated[bool, typer.Option("--all-runs", help="Every finished run.")] = False,
    benchmarks: Annotated[str, typer.Option(help="all (those of the profile), or names: gsm8k,mbpp")] = "all",
    mode: Annotated[
        str | None, typer.Option(help="replay (default) or decode: the live loop for every request.")
    ] = None,
    all_starts: Annotated[
        bool, typer.Option("--all-starts", help="Also draft at every position: acceptance with less noise.")
    ] = False,
    cross_check: Annotated[
        int | None, typer.Option(help="Requests per benchmark to decode live and compare with the replay.")
    ] = None,
    definition: Annotated[str, typer.Option(help="engine, pooled, per_response or eos_truncated.")] = "engine",
    every_checkpoint: Annotated[
        bool,
        typer.Option(
            "--every-checkpoint",
            help="Measure the drafters kept along the way too (trainer.snapshot_every, and the best of "
            "trainer.eval_every).",
        ),
    ] = False,
    backend: Annotated[str | None, typer.Option(help="sglang or vllm: ask a running server, which counts.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The server, e.g. http://127.0.0.1:30000")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once, of a server.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds a server may take for one request.")] = 600.0,
    retries: Annotated[int, typer.Option(help="Further tries of a request that a server fails to answer.")] = 5,
    served_model: Annotated[str | None, typer.Option(help="The name by which the server knows the target.")] = None,
    served_drafter: Annotated[str | None, typer.Option(help="The name by which the server knows the drafter.")] = None,
) -> None:
    """Measure finished drafters: tau per benchmark and block-mask accuracy; with --backend, by a running server."""
    others = (concurrency, timeout, retries) != (8, 600.0, 5)  # than their defaults
    if others or any(word is not None for word in (backend, base_url, served_model, served_drafter)):
        from specauf_cli.engines import serving

        here = {
            "--all-runs": all_runs,
            "--mode": mode,
            "--all-starts": all_starts,
            "--cross-check": cross_check is not None,
            "--definition": definition != "engine",
            "--every-checkpoint": every_checkpoint,
        }
        options = serving.options(backend, base_url, concurrency, timeout, retries, served_model, served_drafter, here)
        serving.evaluate(options, run or [], benchmarks, overrides_of(overrides))
        return
    from specauf_cli.reporting import summary
    from specauf_cli.session import Session, open_session
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs
    from specauf_cli.types import check_definition

    check_definition(definition)
    if all_runs and run:
        raise InputError("--all-runs measures every finished run; leave --run out, or leave --all-runs out")
    extra = overrides_of(overrides)
    extra += [f"evaluation.mode={mode}"] if mode is not None else []
    extra += [f"evaluation.audit={cross_check}"] if cross_check is not None else []
    extra += ["evaluation.all_starts=true"] if all_starts else []
    words = ["eval", "--benchmarks", benchmarks, *extra]
    folders = layout.find(Path(runs_folder(extra)), run or [], every=all_runs)
    session: Session | None = None
    failed: list[str] = []
    for folder in folders:
        try:
            as_trained, config = configs(folder, extra, benchmarks)
            if session is None or not session.serves(as_trained):
                session = open_session(as_trained, precision=config.evaluation.precision)
            for step in layout.snapshot_steps(folder) if every_checkpoint else []:
                early = session.measure(config, folder, [*words, "--every-checkpoint"], step=step)
                print(f"  step {step:>6}  {summary.averages(early, definition)}")
            record = session.measure(config, folder, words)
        except InputError as error:
            if len(folders) == 1:
                raise
            failed.append(folder.name)  # the others go on
            print(f"specauf: {folder.name}: {error}", file=sys.stderr)
            continue
        print("\n".join(summary.of_record(record, definition, all_starts=all_starts)))
        print(f"  record: {folder / 'records' / record.id}.json")
    if failed:
        raise InputError(f"{len(failed)} of {len(folders)} runs were not measured: {', '.join(failed)}")


@app.command(context_settings=OVERRIDES)
def compare(
    words: Annotated[list[str], typer.Argument(metavar="RUN_A RUN_B [RUN_C]... [runs=FOLDER]")],
    definition: Annotated[str, typer.Option(help="engine, pooled, per_response or eos_truncated.")] = "engine",
) -> None:
    """Compare measured runs with the first one, paired by prompt: differences of tau with 95 % intervals."""
    from specauf_cli.reporting import summary
    from specauf_cli.store import layout
    from specauf_cli.types import check_definition

    check_definition(definition)
    names = [w for w in words if "=" not in w]
    if len(names) < 2:
        raise InputError(f"compare needs two runs or more, got {len(names)}; `specauf compare RUN_A RUN_B`")
    if len(set(names)) < len(names):
        raise InputError(f"compare {' '.join(names)}: a run is compared with others, not with itself")
    local = Path(runs_folder_only([w for w in words if "=" in w]))
    records = [layout.all_measured(folder) for folder in layout.find(local, names, every=False)]
    print("\n".join(summary.comparison(records, definition)))


@app.command(context_settings=OVERRIDES)
def audit(
    overrides: Overrides = None,
    run: RunOption = None,
    benchmarks: Annotated[str, typer.Option(help="all (those of the profile), or names: gsm8k,mbpp")] = "all",
) -> None:
    """Check losslessness: fp32 output must equal the target's own, token for token; bf16 is reported as regret."""
    from specauf_cli.session import open_session
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs

    extra = overrides_of(overrides)
    fixed = next((o for o in extra if o.lstrip("+").startswith(("evaluation.precision=", "evaluation.mode="))), None)
    if fixed:
        raise InputError(f"{fixed!r}: an audit decodes live, in fp32 and in bf16; leave it out")
    broken = 0
    for folder in layout.find(Path(runs_folder(extra)), run or [], every=False):
        as_trained, config = configs(folder, extra, benchmarks)
        broken += open_session(as_trained, precision="fp32").audit(config, folder)
    if broken:
        raise InputError(f"{broken} fp32 outputs differ from the target's own: this decoding is not lossless")
    print("lossless: every fp32 output is the target's own, token for token")
