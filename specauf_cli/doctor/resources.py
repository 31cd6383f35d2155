"""Checks of settings and machine: whether settings fit together, files exist, and disk and memory suffice."""

import shutil
from pathlib import Path

from specauf_cli.doctor.subject import FAIL, OK, WARN, Finding, LeftOut, Subject
from specauf_cli.planning.text import size
from specauf_cli.runtime import machine


def settings(subject: Subject) -> Finding:
    """The settings compose and fit each other, and the files they name exist."""
    config, trainer = subject.config, subject.config.trainer
    if config.target.path is None and config.target.pretrain is None:
        return Finding(
            FAIL, f"target {config.target.name!r} has neither a path nor a recipe", "target.path=HUB_ID_OR_FOLDER"
        )
    for key, path in (
        ("target.path", config.target.path if config.target.path and Path(config.target.path).is_absolute() else None),
        ("data.path", config.data.path if config.data.source == "jsonl" else None),
        ("benchmark_root", config.benchmark_root),
    ):
        if path is not None and not Path(path).exists():
            return Finding(FAIL, f"{key}={path}: there is no such file or folder", f"{key}=A_PLACE_THAT_EXISTS")
    if Path(config.runs).exists() and not Path(config.runs).is_dir():
        return Finding(FAIL, f"runs={config.runs} is a file; runs need a folder", "runs=FOLDER")
    if config.data.source == "jsonl" and not config.data.path:
        return Finding(FAIL, f"data={config.data.name} names no file", "data.path=FILE_OR_FOLDER")
    try:
        subject.plan()
    except LeftOut as error:
        if error.part == "plan":  # data and target have lines of their own
            return Finding(FAIL, error.reason, "other values of the settings it names")
    length = f"{trainer.steps} steps" if trainer.steps is not None else f"{trainer.epochs} epochs"
    batch = f"{trainer.batch_size} sequences x {trainer.anchors} anchors, B = {config.backbone.block_size}"
    fetched = [*([f"target {config.target.path}"] if subject.fetches_target() else []), *subject.downloads()]
    hub = f"from the hub: {', '.join(fetched)}" if fetched else "nothing is downloaded"
    name = f"{config.backbone.name}, {config.objective.name}, {config.target.name}, profile {config.profile.name}"
    return Finding(OK, f"{name}: {length} of {batch}; {hub}")


def disk_and_memory(subject: Subject) -> Finding:
    """Free disk under ``runs`` and free memory, against the needs of a training as ``specauf plan`` counts them."""
    config, plan = subject.config, subject.plan()
    place = Path(config.runs).absolute()
    place = next(p for p in (place, *place.parents) if p.exists())
    device = machine.use_machine(config)
    free, memory = shutil.disk_usage(place).free, machine.free_memory(device)
    disk = plan.disk | ({"target": 2.0 * plan.target} if subject.fetches_target() else {})
    needed, taken = sum(disk.values()), sum(plan.memory.values())
    text = f"disk: about {size(needed)} needed, {size(free)} free; memory: about {size(taken)} needed "
    text += f"on this machine's {device} ({_largest(plan.memory)}), {size(memory)} free"
    if free < disk["drafter"] + disk["checkpoints"]:
        return Finding(FAIL, text, "free some disk, or name another one: runs=FOLDER")
    if free < needed:
        return Finding(
            WARN, f"{text}; most of it: {_largest(disk)}", "runs=FOLDER on a larger disk, or keep fewer snapshots"
        )
    if memory < taken:
        fix = "lower trainer.micro_batch, trainer.anchors or trainer.max_length"
        fix += "" if config.trainer.features == "online" else ", or choose trainer.features=online"
        return Finding(WARN, text, fix + ("; for a GPU, specauf plan --gpu NAME counts" if device == "cpu" else ""))
    return Finding(OK, text)


def _largest(parts: dict[str, float]) -> str:
    name = max(parts, key=lambda n: parts[n])
    return f"{name} {size(parts[name])}"


def target(subject: Subject) -> Finding:
    """The target loads."""
    known = subject.target()
    kind = (
        "random weights, since it is not trained yet" if subject.untrained else f"fingerprint {known.fingerprint[:16]}"
    )
    sizes = f"{known.depth} layers of width {known.hidden_size}, {known.chat.vocab:,} tokens"
    if subject.config.trainer.max_length > known.context_length:
        return Finding(
            FAIL,
            f"trainer.max_length={subject.config.trainer.max_length} is beyond the target's {known.context_length} "
            "positions",
            f"trainer.max_length={known.context_length}",
        )
    return Finding(OK, f"{known.config.title}: {sizes}, {str(known.model.dtype).removeprefix('torch.')}, {kind}")
