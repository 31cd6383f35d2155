"""Checks of the machine and of the settings: do they hold together, are the files there, will disk and memory do."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from specauf_cli.checks.subject import FAIL, OK, WARN, Finding, LeftOut, Subject, reason_of
from specauf_cli.models import target as targets
from specauf_cli.objectives import head as heads
from specauf_cli.records import read_json
from specauf_cli.schema import InputError
from specauf_cli.settings import Config
from specauf_cli.training.drafter import total_steps
from specauf_cli.training.features import Features

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """What the size of a target and of its drafters follows from."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    positions: int

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads) + 3 * self.hidden * self.inner

    @property
    def target(self) -> int:
        """Parameters of the target."""
        return self.layers * self.layer + self.vocab * self.hidden * (1 if self.tied else 2)

    def drafter(self, config: Config) -> int:
        """Parameters of a drafter: its layers, ``fc``, and Domino's correction."""
        found = (
            config.backbone.layers * self.layer + len(targets.taps_of(config.target.taps, self.layers)) * self.hidden**2
        )
        knobs = getattr(config.backbone.model, "keywords", {})
        state, rank = int(knobs.get("gru_hidden_dim", 0)), int(knobs.get("emb_dim", 0))
        return found + 3 * state * (self.hidden + state) + rank * (self.hidden + state + self.vocab)


def sizes_of(config: Config) -> Sizes | None:
    """Sizes without opening the target: from its recipe, its folder, or the hub's cache. None: not known yet."""
    recipe = config.target.pretrain
    if config.target.path is None:
        if recipe is None:
            return None
        return Sizes(
            recipe.vocab_size, recipe.hidden_size, recipe.intermediate_size, recipe.layers, recipe.heads, recipe.kv_heads,
            recipe.head_dim, True, recipe.max_positions,
        )  # fmt: skip
    folder = local_folder(config)
    if folder is None:
        return None
    raw: dict[str, Any] = read_json(folder / "config.json")
    raw = raw.get("text_config", raw)
    heads_, hidden = raw["num_attention_heads"], raw["hidden_size"]
    return Sizes(
        raw["vocab_size"], hidden, raw["intermediate_size"], raw["num_hidden_layers"], heads_,
        raw.get("num_key_value_heads", heads_), raw.get("head_dim") or hidden // heads_,
        bool(raw.get("tie_word_embeddings", False)), raw.get("max_position_embeddings", 2**20),
    )  # fmt: skip


def local_folder(config: Config) -> Path | None:
    """Where the target's ``config.json`` lies: its folder, or the hub's cache on this machine. Nothing is downloaded."""
    place = config.target.path or ""
    if (Path(place) / "config.json").is_file():
        return Path(place)
    try:
        cached = try_to_load_from_cache(place, "config.json", revision=config.target.revision)
    except ValueError:  # not the shape of a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def needs(config: Config, sizes: Sizes, conversations: int | None) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on disk and in memory that a training of ``config`` takes, by what takes them. A rough estimate.

    Disk: drafter and snapshots in fp32, two checkpoints with both moments, a target that has to be made or fetched.
    Memory: target and drafter with gradient and moments in fp32, logits, target features, activations of the drafter.
    """
    trainer, drafter = config.trainer, sizes.drafter(config)
    steps = total_steps(trainer, conversations or 0)
    disk = {"drafter": 4.0 * drafter, "two checkpoints": 24.0 * drafter}
    if trainer.snapshot_every:
        disk["snapshots"] = 4.0 * drafter * (steps // trainer.snapshot_every)
    if config.target.path is None:
        disk["target"] = 16.0 * sizes.target
    elif local_folder(config) is None:
        disk["target"] = 2.0 * sizes.target
    low = trainer.precision == "bf16"
    blocks = trainer.micro_batch * trainer.anchors
    slots = config.backbone.block_size - config.backbone.drafter.first
    logits = blocks * slots * sizes.vocab
    head = heads.choose(trainer.head, config.objective, len(config.backbone.drafter.branches), logits)
    width = len(targets.taps_of(config.target.taps, sizes.layers)) * sizes.hidden * (2 if low else 4)
    rows = blocks * config.backbone.block_size
    per_row = 16 * sizes.hidden + 6 * sizes.inner + 2 * sizes.heads * (trainer.max_length + config.backbone.block_size)
    memory = {
        "target": 4.0 * sizes.target,
        "drafter and optimiser": 16.0 * drafter,
        "logits": 12.0 * logits if head == "full" else 3.0 * heads.AT_ONCE,
        "features": 2.0 * trainer.batch_size * trainer.max_length * width,
        "activations": (2.0 if low else 4.0) * rows * per_row * config.backbone.layers,
    }
    kept = (conversations or 0) * trainer.max_length * width
    memory["kept features"] = float(kept if trainer.features == "memory" else min(kept, Features.KEEP))
    return disk, memory


def free_memory(device: str) -> int | None:
    """Bytes of memory that are free on the device; None where the system does not say."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return int(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    for line in info.read_text("utf-8").splitlines() if info.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def room(subject: Subject) -> Finding:
    """Free disk under ``runs`` and free memory against a rough estimate of what a training takes."""
    config = subject.config
    place = Path(config.runs).absolute()
    place = next(p for p in (place, *place.parents) if p.exists())
    disk_free, memory_free = shutil.disk_usage(place).free, free_memory(config.device)
    try:
        conversations: int | None = len(subject.data()[0].conversations)
    except LeftOut:
        conversations = config.data.limit
    sizes = sizes_of(config)
    if sizes is None:
        return Finding(
            OK, f"{_gib(disk_free)} of disk are free; how much is needed is known once the config.json of {config.target.path} is here"
        )  # fmt: skip
    try:
        disk, memory = needs(config, sizes, conversations)
    except InputError as error:  # taps that cannot be: the settings have a line of their own
        raise LeftOut("settings", f"{reason_of(error)}, see settings") from error
    certain = disk["drafter"] + disk["two checkpoints"]
    text = f"disk: about {_gib(sum(disk.values()))} needed, {_gib(disk_free)} free"
    if memory_free is not None:
        text += f"; memory: about {_gib(sum(memory.values()))} needed ({_largest(memory)}), {_gib(memory_free)} free"
    if disk_free < certain:
        return Finding(FAIL, text, "free some disk, or name another one: runs=FOLDER")
    if disk_free < sum(disk.values()):
        return Finding(
            WARN, f"{text}; most of it: {_largest(disk)}", "runs=FOLDER on a larger disk, or keep fewer snapshots"
        )
    if memory_free is not None and memory_free < sum(memory.values()):
        return Finding(
            WARN, text, "lower trainer.micro_batch, trainer.anchors or trainer.max_length, or choose trainer.features=online"
        )  # fmt: skip
    return Finding(OK, text)


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def _largest(parts: dict[str, float]) -> str:
    name = max(parts, key=lambda n: parts[n])
    return f"{name} {_gib(parts[name])}"


def settings(subject: Subject) -> Finding:
    """The settings compose, fit each other, and the files they name are there."""
    config, trainer = subject.config, subject.config.trainer
    sizes = sizes_of(config)
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
    if config.data.source == "jsonl" and not config.data.path:
        return Finding(FAIL, f"data={config.data.name} names no file", "data.path=FILE_OR_FOLDER")
    if sizes is not None:
        try:
            targets.taps_of(config.target.taps, sizes.layers)
        except InputError as error:
            return Finding(FAIL, reason_of(error), "choose taps by round(1 + i (L-4)/(n-1)), i = 0 .. n-1")
        if trainer.max_length > sizes.positions:
            return Finding(
                FAIL, f"trainer.max_length={trainer.max_length} is beyond the target's {sizes.positions} positions",
                f"trainer.max_length={sizes.positions}",
            )  # fmt: skip
    length = f"{trainer.steps} steps" if trainer.steps is not None else f"{trainer.epochs} epochs"
    batch = f"{trainer.batch_size} sequences x {trainer.anchors} anchors, B = {config.backbone.block_size}"
    if config.benchmark_root is None and config.data.source == "offline" and config.target.path is None:
        hub = "nothing is downloaded"
    else:
        fetched = [
            *([f"target {config.target.path}"] if config.target.path and local_folder(config) is None else []),
            *subject.downloads(),
        ]
        hub = f"from the hub: {', '.join(fetched)}" if fetched else "nothing is downloaded"
    name = f"{config.backbone.name}, {config.objective.name}, {config.target.name}, profile {config.profile.name}"
    return Finding(OK, f"{name}: {length} of {batch}; {hub}")


def target(subject: Subject) -> Finding:
    """The target can be opened."""
    found = subject.target()
    kind = "random weights, for it is not trained yet" if subject.untrained else f"fingerprint {found.fingerprint[:16]}"
    sizes = f"{found.model.config.num_hidden_layers} layers of width {found.hidden_size}, {found.chat.vocab:,} tokens"
    if subject.config.trainer.max_length > found.context_length:
        return Finding(
            FAIL, f"trainer.max_length={subject.config.trainer.max_length} is beyond the target's {found.context_length} positions",
            f"trainer.max_length={found.context_length}",
        )  # fmt: skip
    return Finding(OK, f"{found.config.title}: {sizes}, {str(found.model.dtype).removeprefix('torch.')}, {kind}")
