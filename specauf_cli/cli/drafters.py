"""Commands around a training: what is checked and estimated before it, where its drafter goes after it."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from specauf_cli.cli.arguments import OVERRIDES, Overrides, RunName
from specauf_cli.config.overrides import overrides_of, runs_folder, runs_folder_only, runs_words
from specauf_cli.errors import InputError, nearest

app = typer.Typer()


@app.command(context_settings=OVERRIDES)
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    overrides: Overrides = None,
    run: RunName = None,
    layout: Annotated[
        str, typer.Option("--format", help="hf (SGLang, SpecForge and other public loaders) or vllm (speculators).")
    ] = "hf",
    dtype: Annotated[
        str, typer.Option(help="fp32, bit for bit what was trained, or bf16, as public ones are.")
    ] = "fp32",
    verifier: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the target that --format vllm names. Default: the run's own."),
    ] = None,
) -> None:
    """Write a finished drafter with its model card for public loaders: config.json, model.safetensors, README.md."""
    for option, value, valid in (("--format", layout, ("hf", "vllm")), ("--dtype", dtype, ("fp32", "bf16"))):
        if value not in valid:
            raise InputError(f"{option} {value!r} is none of {', '.join(valid)}.{nearest(value, valid)}")
    if verifier is not None and layout != "vllm":
        raise InputError(f"--verifier {verifier}: only --format vllm names its target; leave it out")
    from specauf_cli.interchange.export import export_drafter
    from specauf_cli.store.layout import find

    local = Path(runs_folder_only(overrides_of(overrides)))
    (folder,) = find(local, [run] if run is not None else [], every=False)
    print(export_drafter(folder, out.expanduser(), layout=layout, dtype=dtype, verifier=verifier))


@app.command("import", context_settings=OVERRIDES)
def import_(
    source: Annotated[str, typer.Argument(metavar="PATH_OR_HUB_ID", help="A folder with config.json, or ORG/NAME.")],
    overrides: Overrides = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub's repository.")] = None,
) -> None:
    """Take a public DFlash or Domino checkpoint in as a finished run: measure it with eval, go on training it with
    init=RUN."""
    if "=" in source and not Path(source).exists():
        raise InputError(f"{source!r} is no checkpoint; specauf import PATH_OR_HUB_ID [KEY=VALUE]...")
    words = overrides_of(overrides)
    from specauf_cli.interchange.imports import adopt, fine_tune_command

    folder = adopt(source, words, revision=revision)
    print(f"measure it: {shlex.join(['specauf', 'eval', '--run', folder.name, *runs_words(words)])}", file=sys.stderr)
    print(f"fine-tune it: {fine_tune_command(folder)}", file=sys.stderr)
    print(folder)


@app.command(context_settings=OVERRIDES)
def doctor(
    overrides: Overrides = None,
    run: Annotated[
        str | None, typer.Option(help="A finished run (id or folder): its own settings and drafter are checked.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only what needs no target and no download.")] = False,
) -> None:
    """Check target, data and drafter for what breaks drafters: a line and a fix each; exit code 1 when a check
    failed."""
    from specauf_cli.config import compose
    from specauf_cli.doctor import examination as clinic
    from specauf_cli.store import layout
    from specauf_cli.store.trust import configs

    extra, folder, asked = overrides_of(overrides), None, None
    if run is not None:
        (folder,) = layout.find(Path(runs_folder(extra)), [run], every=False)
        config, asked = configs(folder, extra, "all")
    else:
        config = compose.compose(extra)
    if not clinic.run(config, folder, dry=dry_run, asked=asked):
        raise typer.Exit(1)


@app.command(context_settings=OVERRIDES)
def plan(
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="Hours on a named GPU (h200, h100, a100, ...) instead of this machine.")
    ] = None,
    devices: Annotated[int, typer.Option(help="GPUs that share the training (with --gpu).")] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak that is reached: assumed where nothing is measured.")
    ] = 0.4,
) -> None:
    """What a training will take: parameters, work, memory, disk, hours. Nothing is trained or downloaded."""
    from specauf_cli.config import compose
    from specauf_cli.planning import calibration
    from specauf_cli.planning import plan as plans
    from specauf_cli.runtime.machine import use_machine

    if gpu is None and devices != 1:
        raise InputError(f"--devices {devices}: only with --gpu; this machine is timed as it is")
    config = compose.compose(overrides_of(overrides))
    plans.check_utilisation(utilisation)
    found = calibration.material(config)
    device = "cuda" if gpu is not None else use_machine(config)
    made = plans.plan(config, found.sizes, found.lengths, on_gpu=device.startswith("cuda"))
    if gpu is not None:
        hours, (top, room) = plans.hours_on(made, gpu, devices, utilisation), plans.gpu(gpu)
        print("\n".join(plans.lines(made)))
        need = sum(made.memory.values())
        print(
            f"  time         {plans.duration(hours)} on {devices} x {gpu}: {top / 1e12:.0f} TFLOP/s bf16 peak x "
            f"{utilisation:g} utilisation assumed; training only"
        )
        if need > room:
            print(
                f"  too large    {plans.size(need)} for {plans.size(room)}: lower trainer.micro_batch or "
                "trainer.anchors"
            )
        return
    print("\n".join(plans.lines(made)))
    speed = calibration.peak(device, config.trainer.precision)
    if made.per_step / speed < calibration.TOO_LONG and calibration.fits(made, device):
        seconds = calibration.seconds_per_step(made, found, device)
        how = (
            f"measured: {seconds:.3g} s a step, {plans.number(made.per_step / seconds)}FLOP/s of a peak of "
            f"{plans.number(speed)}"
        )
    else:
        seconds = made.per_step / (speed * utilisation)
        how = (
            f"not measured (too large for this machine): a matrix product's {plans.number(speed)}FLOP/s x "
            f"{utilisation:g} assumed"
        )
    before = calibration.pretraining_seconds(config, found, device)
    first = f" after {plans.duration(before / 3600)} for the target" if before else ""
    print(
        f"  time         {plans.duration(made.steps * seconds / 3600)}{first} on this machine's {device} ({how}); "
        "training only"
    )
