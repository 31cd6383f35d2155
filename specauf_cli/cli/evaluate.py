"""The commands that measure: eval (here, or by a running server), compare, audit."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Benchmarks, Definition, Overrides, RunOption, no_options
from specauf_cli.config.overrides import overrides_of, runs_folder, runs_folder_only, setting
from specauf_cli.errors import InputError

app = typer.Typer()

CONCURRENCY, TIMEOUT, RETRIES = 8, 600.0, 5
"""Defaults of the options for a server."""


@dataclass(frozen=True)
class HereOptions:
    """Options of an evaluation on this machine; none of them applies to a server."""

    all_runs: bool
    mode: str | None
    all_starts: bool
    cross_check: int | None
    definition: str
    every_checkpoint: bool

    @property
    def overrides(self) -> list[str]:
        """Those that are settings, as overrides."""
        words = [f"evaluation.mode={self.mode}"] if self.mode is not None else []
        words += [f"evaluation.audit={self.cross_check}"] if self.cross_check is not None else []
        return words + (["evaluation.all_starts=true"] if self.all_starts else [])

    @property
    def given(self) -> list[str]:
        """Those that differ from their defaults, by name."""
        differs = {
            "--all-runs": self.all_runs,
            "--mode": bool(self.mode),
            "--all-starts": self.all_starts,
            "--cross-check": self.cross_check is not None,
            "--definition": self.definition != "engine",
            "--every-checkpoint": self.every_checkpoint,
        }
        return [name for name, is_given in differs.items() if is_given]


@app.command("eval", context_settings=OVERRIDES)
def evaluate(
    overrides: Overrides = None,
    run: RunOption = None,
    all_runs: Annotated[bool, typer.Option("--all-runs", help="Every finished run.")] = False,
    benchmarks: Benchmarks = "all",
    mode: Annotated[
        str | None, typer.Option(help="replay (default) or decode: the live loop for every request.")
    ] = None,
    all_starts: Annotated[
        bool, typer.Option("--all-starts", help="Also draft at every position: acceptance with less noise.")
    ] = False,
    cross_check: Annotated[
        int | None, typer.Option(help="Requests per benchmark to decode live and compare with the replay.")
    ] = None,
    definition: Definition = "engine",
    every_checkpoint: Annotated[
        bool,
        typer.Option(
            "--every-checkpoint",
            help="Also measure the drafters kept during training (trainer.snapshot_every, and the best of "
            "trainer.eval_every).",
        ),
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="sglang or vllm: measure on a running server, by its own counts.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="The server, e.g. http://127.0.0.1:30000")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests sent to a server at once.")] = CONCURRENCY,
    timeout: Annotated[float, typer.Option(help="Seconds a server may take for one request.")] = TIMEOUT,
    retries: Annotated[int, typer.Option(help="Retries of a request that a server fails to answer.")] = RETRIES,
    served_model: Annotated[str | None, typer.Option(help="The name by which the server knows the target.")] = None,
    served_drafter: Annotated[str | None, typer.Option(help="The name by which the server knows the drafter.")] = None,
) -> None:
    """Measure finished drafters: tau per benchmark and block-mask accuracy; with --backend, on a running server."""
    here = HereOptions(all_runs, mode, all_starts, cross_check, definition, every_checkpoint)
    named = (backend, base_url, served_model, served_drafter)
    if all(name is None for name in named) and (concurrency, timeout, retries) == (CONCURRENCY, TIMEOUT, RETRIES):
        _evaluate_here(here, run or [], benchmarks, overrides_of(overrides))
        return
    if backend is None or base_url is None:
        raise InputError(f"--backend {backend or 'sglang|vllm'} --base-url {base_url or 'URL'}: a server needs both")
    if here.given:
        raise InputError(
            f"{', '.join(here.given)}: not with --backend; a server decodes live and counts by its own definition"
        )
    from specauf_cli.engines.evaluate import evaluate_by_server
    from specauf_cli.engines.options import ServerOptions

    options = ServerOptions(backend, base_url, concurrency, timeout, retries, served_model, served_drafter)
    evaluate_by_server(options, run or [], benchmarks, overrides_of(overrides))


def _evaluate_here(options: HereOptions, runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> None:
    """Measures runs one after another. A run that cannot be measured is reported, and the others continue."""
    from specauf_cli.reporting import summary
    from specauf_cli.session import Session, open_session
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs
    from specauf_cli.types import check_definition

    check_definition(options.definition)
    if options.all_runs and runs:
        raise InputError("--all-runs measures every finished run; leave --run out, or leave --all-runs out")
    extra = [*overrides, *options.overrides]
    words = ["eval", "--benchmarks", benchmarks, *extra]
    folders = layout.find(Path(runs_folder(extra)), runs, every=options.all_runs)
    session: Session | None = None
    failed: list[str] = []
    for folder in folders:
        try:
            as_trained, config = configs(folder, extra, benchmarks)
            if session is None or not session.serves(as_trained):
                session = open_session(as_trained, precision=config.evaluation.precision)
            for step in layout.snapshot_steps(folder) if options.every_checkpoint else []:
                early = session.measure(config, folder, [*words, "--every-checkpoint"], step=step)
                print(f"  step {step:>6}  {summary.averages(early, options.definition)}")
            record = session.measure(config, folder, words)
        except InputError as error:
            if len(folders) == 1:
                raise
            failed.append(folder.name)
            print(f"specauf: {folder.name}: {error}", file=sys.stderr)
            continue
        print("\n".join(summary.of_record(record, options.definition, all_starts=options.all_starts)))
        print(f"  record: {layout.record_path(folder, record.id)}")
    if failed:
        raise InputError(f"{len(failed)} of {len(folders)} runs were not measured: {', '.join(failed)}")


@app.command(context_settings=OVERRIDES)
def compare(
    words: Annotated[list[str], typer.Argument(metavar="A B [C]... [runs=FOLDER]", callback=no_options)],
    definition: Definition = "engine",
) -> None:
    """Compare measured runs, or records (FILE.json), with the first one, paired by prompt: differences of tau with 95 %
    intervals."""
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
    records = [layout.measured_of(local, name) for name in names]
    print("\n".join(summary.comparison(records, definition)))


@app.command(context_settings=OVERRIDES)
def audit(overrides: Overrides = None, run: RunOption = None, benchmarks: Benchmarks = "all") -> None:
    """Check losslessness: fp32 output must equal the target's own, token for token; bf16 is reported as regret."""
    from specauf_cli.session import open_session
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs

    extra = overrides_of(overrides)
    fixed = next(iter(setting(extra, ["evaluation.precision", "evaluation.mode"])), None)
    if fixed:
        raise InputError(f"{fixed!r}: an audit decodes live, in fp32 and in bf16; leave it out")
    broken = 0
    for folder in layout.find(Path(runs_folder(extra)), run or [], every=False):
        as_trained, config = configs(folder, extra, benchmarks)
        broken += open_session(as_trained, precision="fp32").audit(config, folder)
    if broken:
        raise InputError(f"{broken} fp32 outputs differ from the target's own: this decoding is not lossless")
    print("lossless: every fp32 output is the target's own, token for token")
