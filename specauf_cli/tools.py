"""Commands around a training: what is checked and estimated before it, where its drafter goes after it."""

from typing import Annotated

import typer

from specauf_cli.arguments import OVERRIDES, Overrides, overrides_of

app = typer.Typer()


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
    from specauf_cli import calibration, compose
    from specauf_cli import plan as plans
    from specauf_cli.machine import use_machine

    config = compose.compose(overrides_of(overrides))
    found = calibration.material(config)
    device = "cuda" if gpu is not None else use_machine(config)
    made = plans.plan(config, found.sizes, found.lengths, on_gpu=device.startswith("cuda"))
    if gpu is not None:
        hours, (top, room) = plans.hours_on(made, gpu, devices, utilisation), plans.gpu(gpu)
        print("\n".join(plans.lines(made)))
        need = sum(made.memory.values())
        print(
            f"  time         {plans.duration(hours)} on {devices} x {gpu}: {top / 1e12:.0f} TFLOP/s bf16 peak x {utilisation:g} "
            "utilisation assumed; training only"
        )
        if need > room:
            print(
                f"  too large    {plans.size(need)} for {plans.size(room)}: lower trainer.micro_batch or trainer.anchors"
            )
        return
    print("\n".join(plans.lines(made)))
    speed = calibration.peak(device, config.trainer.precision)
    if made.per_step / speed < calibration.TOO_LONG and calibration.fits(made, device):
        seconds = calibration.seconds_per_step(made, found, device)
        how = f"measured: {seconds:.3g} s a step, {plans.number(made.per_step / seconds)}FLOP/s of a peak of {plans.number(speed)}"
    else:
        seconds = made.per_step / (speed * utilisation)
        how = f"not measured (too large for this machine): a matrix product's {plans.number(speed)}FLOP/s x {utilisation:g} assumed"
    before = calibration.pretraining_seconds(config, found, device)
    first = f" after {plans.duration(before / 3600)} for the target" if before else ""
    print(
        f"  time         {plans.duration(made.steps * seconds / 3600)}{first} on this machine's {device} ({how}); training only"
    )
