"""What ``specauf plan`` prints: the plan, then its hours on named GPUs or on this machine."""

from collections.abc import Iterator

from specauf_cli.config.schema import Config
from specauf_cli.planning import calibration
from specauf_cli.planning.plan import Plan, check_utilisation, gpu_of, hours_on, make_plan
from specauf_cli.planning.text import duration, lines, number, size
from specauf_cli.runtime.machine import use_machine


def estimate(config: Config, *, gpu: str | None, devices: int, utilisation: float) -> Iterator[str]:
    """The lines of the plan of a training, the time last: on ``devices`` cards named ``gpu``, None: on this machine.

    ``utilisation`` is the share of the peak that is assumed where nothing is measured. Errors: InputError for settings,
    a card or a share that cannot be.
    """
    check_utilisation(utilisation)
    material = calibration.material(config)
    device = "cuda" if gpu is not None else use_machine(config)
    plan = make_plan(config, material.sizes, material.lengths, on_gpu=device.startswith("cuda"), devices=devices)
    if gpu is not None:
        time = _on_named(plan, gpu, devices, utilisation)  # an unknown card is reported before the plan
        yield from lines(plan)
        yield from time
    else:
        yield from lines(plan)
        yield _on_this(plan, material, device, utilisation)


def _on_named(plan: Plan, name: str, devices: int, utilisation: float) -> list[str]:
    """Hours on named cards, and a line when the training does not fit into one."""
    hours, (peak, capacity) = hours_on(plan, name, devices, utilisation), gpu_of(name)
    time = (
        f"  time         {duration(hours)} on {devices} x {name}: {peak / 1e12:.0f} TFLOP/s bf16 peak x "
        f"{utilisation:g} utilisation assumed; training only"
    )
    needed = sum(plan.memory.values())
    if needed <= capacity:
        return [time]
    may_shard = devices > 1 and plan.config.trainer.shard == "none"
    shard = ", or shard layers over the cards: trainer.shard=both" if may_shard else ""
    return [
        time,
        f"  too large    {size(needed)} for {size(capacity)}: lower trainer.micro_batch or trainer.anchors{shard}",
    ]


def _on_this(plan: Plan, material: calibration.Material, device: str, utilisation: float) -> str:
    """Time on this machine, from a few real steps where they fit, else from the speed of a matrix product."""
    speed = calibration.peak(device, plan.config.trainer.precision)
    if plan.per_step / speed < calibration.TOO_LONG and calibration.fits(plan, device):
        seconds = calibration.seconds_per_step(plan, material, device)
        how = f"measured: {seconds:.3g} s a step, {number(plan.per_step / seconds)}FLOP/s of a peak of {number(speed)}"
    else:
        seconds = plan.per_step / (speed * utilisation)
        how = (
            f"not measured (too large for this machine): a matrix product's {number(speed)}FLOP/s x "
            f"{utilisation:g} assumed"
        )
    before = calibration.pretraining_seconds(plan.config, material, device)
    first = f" after {duration(before / 3600)} for the target" if before else ""
    return (
        f"  time         {duration(plan.steps * seconds / 3600)}{first} on this machine's {device} ({how}); "
        "training only"
    )
