"""The commands. Nothing heavy is imported at module level, so ``specauf --help`` answers at once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from specauf_cli import __version__
from specauf_cli.schema import InputError, nearest

if TYPE_CHECKING:
    from specauf_cli.schema import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Real data: fetch the training conversations and benchmarks.")
app.add_typer(data_app, name="data")
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides, e.g. profile=smoke seed=1")
]
RunOption = Annotated[
    list[str] | None, typer.Option(help="Run id or folder; repeatable. Default: the latest finished run.")
]


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
    """Train one drafter; -m sweeps, --help lists the groups."""
    from specauf_cli import compose

    def job(config: "Config", overrides: list[str]) -> None:
        from specauf_cli import runs

        folder = runs.train(runs.open_bench(config), config, overrides)
        print(folder)

    compose.run_hydra(job, context.args)


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
            "--every-checkpoint", help="Measure the drafters kept along the way too (trainer.snapshot_every)."
        ),
    ] = False,
) -> None:
    """Measure finished drafters: tau per benchmark and block-mask accuracy."""
    from specauf_cli import runs
    from specauf_cli.evaluation import metrics
    from specauf_cli.reporting import summary

    metrics.check_definition(definition)
    extra = _overrides(overrides)
    extra += [f"evaluation.mode={mode}"] if mode is not None else []
    extra += [f"evaluation.audit={cross_check}"] if cross_check is not None else []
    extra += ["evaluation.all_starts=true"] if all_starts else []
    words = ["eval", "--benchmarks", benchmarks, *extra]
    folders = runs.find(Path(_runs_folder(extra)), run or [], every=all_runs)
    bench: runs.Bench | None = None
    failed: list[str] = []
    for folder in folders:
        try:
            as_trained, config = _configs(folder, extra, benchmarks)
            if bench is None or not bench.serves(as_trained):
                bench = runs.open_bench(as_trained)
            for step in runs.snapshots(folder) if every_checkpoint else []:
                early = runs.measure(bench, config, folder, [*words, "--every-checkpoint"], step=step)
                print(f"  step {step:>6}  {summary.averages(early, definition)}")
            record = runs.measure(bench, config, folder, words)
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
    from specauf_cli import runs
    from specauf_cli.evaluation import metrics
    from specauf_cli.reporting import summary

    metrics.check_definition(definition)
    names = [w for w in words if "=" not in w]
    if len(names) < 2:
        raise InputError(f"compare needs two runs or more, got {len(names)}; `specauf compare RUN_A RUN_B`")
    local = Path(_runs_folder([w for w in words if "=" in w]))
    records = [runs.all_measured(folder) for folder in runs.find(local, names, every=False)]
    print("\n".join(summary.comparison(records, definition)))


@app.command(context_settings=OVERRIDES)
def audit(
    overrides: Overrides = None,
    run: RunOption = None,
    benchmarks: Annotated[str, typer.Option(help="all (those of the profile), or names: gsm8k,mbpp")] = "all",
) -> None:
    """Check losslessness: fp32 output must equal the target's own, token for token; bf16 is reported as regret."""
    from specauf_cli import runs

    extra = [*_overrides(overrides), "evaluation.precision=fp32"]
    broken = 0
    for folder in runs.find(Path(_runs_folder(extra)), run or [], every=False):
        as_trained, config = _configs(folder, extra, benchmarks)
        broken += runs.audit(runs.open_bench(as_trained), config, folder)
    if broken:
        raise InputError(f"{broken} fp32 outputs differ from the target's own: this decoding is not lossless")
    print("lossless: every fp32 output is the target's own, token for token")


@app.command(context_settings=OVERRIDES)
def table(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]... [KEY=VALUE]...",
            help="Experiment files or names (default: all), and Hydra overrides.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0",
    publish: Annotated[
        bool, typer.Option("--publish", help="Copy the records into results/ and render there (clean tree only).")
    ] = False,
) -> None:
    """Train and evaluate whatever an experiment lacks, then print its table and write it to runs/tables/."""
    from specauf_cli import study

    names = [w for w in words or [] if "=" not in w]
    for word in words or []:
        key = word.partition("=")[0].lstrip("+~")
        if "=" in word and key in ("backbone", "objective", "seed"):
            raise InputError(
                f"{word!r}: a table chooses its own {key}; its rows are in the yaml, seeds are given by --seeds"
            )
    study.run(names, _overrides([w for w in words or [] if "=" in w]), _seeds(seeds), publish=publish)


@app.command("ls", context_settings=OVERRIDES)
def list_runs(overrides: Overrides = None) -> None:
    """List the runs with their state: finished, interrupted at step n, failed and why."""
    from specauf_cli import runs
    from specauf_cli.reporting import summary

    local = Path(_runs_folder(_overrides(overrides)))
    found = runs.states(local)
    if not found:
        raise InputError(f"no run under {local}/ yet; specauf train objective=auf backbone=dflash")
    for run in found:
        known = runs.measured(local / run.name)
        detail = summary.averages(known[-1], "engine") if known else "not measured"
        print(
            f"{run.name}  {detail if run.state == 'finished' else f'{run.state} at step {run.step}  {run.reason}'}".rstrip()
        )


@app.command(context_settings=OVERRIDES)
def show(
    words: Annotated[list[str] | None, typer.Argument(metavar="[RUN]... [runs=FOLDER]")] = None,
    definition: Annotated[str, typer.Option(help="engine, pooled, per_response or eos_truncated.")] = "engine",
) -> None:
    """Show a run (default: the latest finished one): its choices, progress or result, loss, tau per benchmark."""
    from specauf_cli import runs
    from specauf_cli.evaluation import metrics
    from specauf_cli.reporting import summary

    metrics.check_definition(definition)
    names = [w for w in words or [] if "=" not in w]
    local = Path(_runs_folder([w for w in words or [] if "=" in w]))
    for folder in runs.find(local, names, every=False, finished_only=False):
        run = runs.state(folder)
        print("\n".join(summary.of_state(run.name, run.state, run.step, run.about, run.log, run.reason)))
        known = runs.measured(folder)
        print("\n".join(summary.of_record(known[-1], definition)) if known else "  not measured yet")


@app.command(context_settings=OVERRIDES)
def figures(overrides: Overrides = None) -> None:
    """Draw the figures of the last table of a profile into runs/figures/ (SVG and PNG)."""
    from specauf_cli import study

    study.figures(_overrides(overrides))


@app.command(context_settings=OVERRIDES)
def report(overrides: Overrides = None) -> None:
    """Write one self-contained HTML report of the last table of a profile into runs/reports/."""
    from specauf_cli import study

    study.report(_overrides(overrides))


@app.command(context_settings=OVERRIDES)
def target(overrides: Overrides = None) -> None:
    """Train the profile's small target on its own (train, eval and table do it when it is missing)."""
    from specauf_cli import compose, runs

    print(runs.open_bench(compose.compose(_overrides(overrides))).target.config.path)


@app.command()
def render() -> None:
    """Render every table, figure and report under results/, and the tables quoted in README.md, from the committed records."""
    from specauf_cli import study

    study.render()


@data_app.command(context_settings=OVERRIDES)
def fetch(
    out: Annotated[Path, typer.Option(help="Folder to write: DIR/train/*.jsonl and DIR/benchmarks/*.jsonl.")],
    overrides: Overrides = None,
) -> None:
    """Download ShareGPT and the six real benchmarks from the Hugging Face hub into DIR, as profile=cpu_real reads them."""
    from specauf_cli import compose
    from specauf_cli.data.fetch import fetch as fetch_all

    config = compose.compose(["data=sharegpt", "benchmark=all", *_overrides(overrides)])
    fetch_all(out, config.benchmark, config.data, echo=print)


def main() -> None:
    """Entry point: one clear line and a non-zero exit for what the user can mend, never a traceback for it."""
    _quiet_environment()
    try:
        code = app(standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from error
    except InputError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped; nothing that was saved is lost, run the same command to continue", 130)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
        command = " ".join(["specauf", *sys.argv[1:]]) if not sys.argv[0].startswith("specauf") else " ".join(sys.argv)
        _fail(f"{error}. Continue with: {command}", getattr(error, "exit_code", 130))


def _fail(text: str, code: int) -> None:
    print(f"specauf: {text}", file=sys.stderr)
    raise SystemExit(code)


def _quiet_environment() -> None:
    """Settings that must stand before the heavy imports.

    Idle OpenMP threads spin briefly, then sleep: spinning for long, the default, made training many times slower on two
    cores beside another busy process; never spinning made it clearly slower alone. And no foreign progress bars among ours.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _overrides(words: Sequence[str] | None) -> list[str]:
    for word in words or []:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{word!r} is not an override; write key=value, for example profile=smoke")
    return list(words or [])


def _seeds(text: str) -> list[int]:
    try:
        return [int(s) for s in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r}: give integers separated by commas, for example 0,1,2") from None


def _runs_folder(overrides: Sequence[str]) -> str:
    return next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("runs=")), "runs")


def _configs(folder: Path, extra: Sequence[str], benchmarks: str) -> "tuple[Config, Config]":
    """How a run was trained (its data were cleaned of the benchmarks chosen then), and how it is measured now."""
    from specauf_cli import compose, runs

    own = runs.overrides_of(folder)
    as_trained = compose.compose([*own, *(o for o in extra if not o.startswith("benchmark="))])
    runs.check_same_training(as_trained, folder)
    chosen = [o for o in own if not (o.startswith("benchmark=") and any(e.startswith("benchmark=") for e in extra))]
    return as_trained, _with_benchmarks(compose.compose([*chosen, *extra]), benchmarks)


def _with_benchmarks(config: "Config", names: str) -> "Config":
    """``config`` restricted to the named benchmarks; names outside the profile's own are read from conf/benchmark."""
    from dataclasses import replace

    from specauf_cli import compose

    if names == "all":
        return config
    chosen = {}
    for name in names.split(","):
        valid = compose.groups()["benchmark"]
        if name not in valid:
            raise InputError(
                f"unknown benchmark {name!r}; valid: all, {', '.join(v for v in valid if v != 'all')}.{nearest(name, valid)}"
            )
        found = config if name in config.benchmark else compose.compose([f"benchmark={name}"])
        chosen.update({name: found.benchmark[name]} if name in found.benchmark else found.benchmark)
    resolved = {**config.resolved, "benchmark": {n: _plain(b) for n, b in chosen.items()}}
    return replace(config, benchmark=chosen, resolved=resolved)


def _plain(benchmark: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(benchmark)  # type: ignore[call-overload, no-any-return]
