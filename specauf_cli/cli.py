"""The commands. Nothing heavy is imported at module level, so ``specauf --help`` answers at once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    """Train one drafter, or sweep with -m: specauf train objective=auf backbone=dflash (--help: all groups)."""
    from specauf_cli import compose

    def job(config: "Config", overrides: list[str]) -> None:
        from specauf_cli import runs

        folder = runs.train(runs.open_bench(config), config, overrides)
        print(folder)

    compose.run_hydra(job, context.args)


@app.command(context_settings=OVERRIDES)
def evaluate(
    overrides: Overrides = None,
    run: Annotated[
        list[str] | None, typer.Option(help="Run id or folder; repeatable. Default: the latest finished run.")
    ] = None,
    all_runs: Annotated[bool, typer.Option("--all-runs", help="Every finished run.")] = False,
    benchmarks: Annotated[str, typer.Option(help="all (those of the profile), or names: gsm8k,mbpp")] = "all",
) -> None:
    """Measure finished drafters: tau per benchmark and block-mask accuracy."""
    from specauf_cli import compose, runs
    from specauf_cli.evaluation.metrics import accuracy, tau

    extra = _overrides(overrides)
    bench = None
    for folder in runs.find(Path(_runs_folder(extra)), run or [], every=all_runs):
        config = _with_benchmarks(compose.compose([*runs.overrides_of(folder), *extra]), benchmarks, extra)
        if bench is None or not bench.serves(config):
            bench = runs.open_bench(config)
        record = runs.measure(bench, config, folder, ["eval", "--benchmarks", benchmarks, *extra])
        print(f"\n{record.run}  ({record.title}, seed {record.seed}, {record.config['profile']['name']})")
        for b in record.benchmarks:
            print(f"  {b.title:<28} T={b.temperature:g}  tau {tau(b.traces):6.3f}  ({b.prompts} prompts)")
        for t in sorted({b.temperature for b in record.benchmarks}):
            taus = [tau(b.traces) for b in record.benchmarks if b.temperature == t]
            print(f"  {'average':<28} T={t:g}  tau {sum(taus) / len(taus):6.3f}")
        audits = [b.audit for b in record.benchmarks]
        print(f"  block-mask accuracy {100 * accuracy(record.heldout):.1f} %  (held-out conversations, common mask)")
        same, asked = sum(a["identical"] for a in audits), sum(a["requests"] for a in audits)
        print(f"  audit: {same} of {asked} live outputs equal the target's own output token for token")
        print(f"  record: {folder / 'records' / record.id}.json")


app.registered_commands[-1].name = "eval"


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
    study.run(names, _overrides([w for w in words or [] if "=" in w]), _seeds(seeds), publish=publish)


@app.command(context_settings=OVERRIDES)
def target(overrides: Overrides = None) -> None:
    """Train the profile's small target on its own (train, eval and table do it when it is missing)."""
    from specauf_cli import compose, runs

    print(runs.open_bench(compose.compose(_overrides(overrides))).target.config.path)


@app.command()
def render() -> None:
    """Render every table under results/, and those quoted in README.md, from the committed records."""
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
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
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

    Idle OpenMP threads sleep instead of spinning: beside any other busy process, spinning made training up to 25 times
    slower on two cores. And no foreign progress bars or notices among ours.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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


def _with_benchmarks(config: "Config", names: str, overrides: Sequence[str]) -> "Config":
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
