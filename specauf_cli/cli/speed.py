"""What a round costs and what it brings: speed; the measured acceptance for other tools: acceptance."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Benchmarks, Overrides, RunName, RunOption
from specauf_cli.config.overrides import overrides_of, runs_folder, runs_folder_only
from specauf_cli.errors import InputError

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def speed(
    overrides: Overrides = None,
    run: RunOption = None,
    benchmarks: Benchmarks = "all",
    prompts: Annotated[int, typer.Option(help="Prompts per benchmark that are timed.")] = 8,
    repeats: Annotated[int, typer.Option(help="Times that every request is decoded by every method.")] = 2,
    repetitions: Annotated[int, typer.Option(help="Times that every single round is timed alone.")] = 30,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes of rounds timed alone, as in 1,8.")] = "1",
    proposals: Annotated[
        str | None, typer.Option(help="Numbers of draft tokens to time, as in 3,7,15. Default: powers of two.")
    ] = None,
    lookup: Annotated[str, typer.Option(help="Longest and shortest n-gram of prompt lookup.")] = "5,2",
    ratio: Annotated[float | None, typer.Option(help="R of another machine: the page adds the speed-up there.")] = None,
    gpu: Annotated[str | None, typer.Option(help="A named GPU (with --target): an upper bound.")] = None,
    target: Annotated[str | None, typer.Option(help="A target of conf/target, as qwen3_8b (with --gpu).")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Time nothing: write the page of this record again, with other projections.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the summary.")] = False,
) -> None:
    """Time drafters beside plain decoding and prompt lookup: tokens/s, the cost ratio R of a round, tau / R, the best
    P."""
    words = overrides_of(overrides)
    sizes, grams = _counts(batch_sizes, "--batch-sizes"), _counts(lookup, "--lookup")
    if len(grams) != 2:
        raise InputError(f"--lookup {lookup}: give the longest and the shortest n-gram, as in 5,2")
    counts = None if proposals is None else _counts(proposals, "--proposals")
    from specauf_cli.reporting.speed import summary
    from specauf_cli.store import layout
    from specauf_cli.store.speed import SPEED
    from specauf_cli.study.speed import Elsewhere, SpeedOptions, measure_speed, write_page, write_record

    options = SpeedOptions(prompts, repeats, repetitions, sizes, counts, (grams[0], grams[1]))
    elsewhere = Elsewhere(ratio, gpu, target)
    if record is not None:
        if run or words:
            raise InputError(f"--record {record} is written again as it is; leave --run and settings out")
        timed, record_path = SPEED.load(record), record
    else:
        folders = layout.find(Path(runs_folder(words)), run or [], every=False)
        timed = measure_speed(folders, options, words, benchmarks)
        record_path = write_record(timed, folders[0])
    page_path = write_page(timed, record_path, elsewhere)
    print(json.dumps(SPEED.plain(timed)) if as_json else "\n".join(summary(timed)))
    print(f"  record: {record_path}\n  page: {page_path}", file=sys.stderr if as_json else sys.stdout)


def _counts(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas. Errors: InputError."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r}: give whole numbers separated by commas, as in 1,8") from error


@app.command(context_settings=OVERRIDES)
def acceptance(
    overrides: Overrides = None,
    run: RunName = None,
    temperature: Annotated[float, typer.Option(help="One that the run was measured at.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: speculation_profile.json in the run's export folder.")
    ] = None,
) -> None:
    """Write the measured acceptance of a drafter as speculation_profile.json, and print what SGLang and vLLM take."""
    from specauf_cli.interchange.acceptance import simulation_lines, speculation_profile
    from specauf_cli.store import layout
    from specauf_cli.store.files import write_json

    local = Path(runs_folder_only(overrides_of(overrides)))
    (folder,) = layout.find(local, [run] if run is not None else [], every=False)
    profile = speculation_profile(layout.all_measured(folder)[-1], temperature)
    path = layout.export_of(folder, "speculation_profile.json") if out is None else out
    write_json(path, profile)
    print("\n".join([str(path), *simulation_lines(profile)]))
