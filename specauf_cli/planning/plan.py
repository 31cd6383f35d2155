"""What a training will take, before it is started: parameters, work, memory, disk, hours. Arithmetic only; nothing is
loaded.

Work is counted in floating-point operations of matrix products (a multiply and an add are two); a backward pass counts
twice its forward pass for trainable parts, once for frozen ones. Norms, softmax and the optimiser are left out: they
cost memory bandwidth, not products, and hide in the utilisation.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from specauf_cli.config import names
from specauf_cli.config.schema import Config, SizesConfig
from specauf_cli.errors import InputError, nearest
from specauf_cli.models import sizes as all_sizes
from specauf_cli.models.blocks import BUCKET
from specauf_cli.models.target import taps_of
from specauf_cli.objectives import head as heads
from specauf_cli.training.drafter import total_steps
from specauf_cli.training.features import Features
from specauf_cli.types import Corpus

GPUS: dict[str, tuple[float, float]] = {
    "b200": (2250e12, 180e9),  # NVIDIA DGX B200 data sheet: 4.5 PFLOP/s with sparsity, half of it dense; 180 GB
    "h200": (989e12, 141e9),  # NVIDIA H200 (SXM) data sheet: 1,979 TFLOP/s with sparsity, half of it dense; 141 GB
    "h100": (989e12, 80e9),  # NVIDIA H100 (SXM) data sheet: 1,979 TFLOP/s with sparsity, half of it dense; 80 GB
    "h100-pcie": (756e12, 80e9),  # NVIDIA H100 (PCIe) data sheet: 1,513 TFLOP/s with sparsity, half of it dense; 80 GB
    "a100": (312e12, 80e9),  # NVIDIA A100 80GB data sheet: 312 TFLOP/s dense; 80 GB
    "l40s": (362e12, 48e9),  # NVIDIA L40S data sheet: 733 TFLOP/s with sparsity, 362 dense; 48 GB
    "rtx4090": (165e12, 24e9),  # NVIDIA Ada architecture paper: 165.2 TFLOP/s dense with fp32 accumulation; 24 GB
}
"""bf16 peak of the tensor cores without sparsity (operations a second) and memory (bytes) of one card."""

SUPPORT = 3.0
"""Rows of a block that a truncating credit reaches, mean over a training: assumed; tau is of that size."""


@dataclass(frozen=True)
class Lengths:
    """How many examples there are and how long: ``mean`` tokens (``longest`` at most); ``source`` says how it is
    known."""

    examples: int
    mean: float
    longest: int
    source: str


@dataclass(frozen=True)
class Plan:
    """What is counted. Work in operations a step; in bytes by part, memory on one process's device and disk under
    ``runs/``.

    ``features``: bytes that the features of all examples would take, stored or not.
    """

    config: Config
    sizes: SizesConfig
    lengths: Lengths
    steps: int
    head: str
    drafter: dict[str, int]
    target: int
    work: dict[str, float]
    heads: dict[str, tuple[float, float]]
    features: float
    memory: dict[str, float] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)

    @property
    def per_step(self) -> float:
        """Operations of one optimiser step."""
        return sum(self.work.values())


def plan(config: Config, sizes: SizesConfig, lengths: Lengths, *, on_gpu: bool = False) -> Plan:
    """Counts everything for a training of ``config``. Errors: InputError for settings that cannot work."""
    trainer, attention, device = config.trainer, _attention(config, on_gpu), "cuda" if on_gpu else "cpu"
    taps = taps_of(config.target.taps, sizes.layers)
    if lengths.examples < trainer.batch_size:
        raise InputError(f"{lengths.examples} examples are fewer than trainer.batch_size={trainer.batch_size}")
    steps = total_steps(trainer, lengths.examples)
    features = (
        lengths.examples * lengths.mean * len(taps) * sizes.hidden_size * (2 if trainer.precision == "bf16" else 4)
    )
    drafter = all_sizes.drafter_parameters(sizes, config.backbone, len(taps))
    kind = names.backbone(config.backbone)
    branches, plain = len(kind.branches), kind.row_wise()
    slots = config.backbone.block_size - kind.first
    logits = trainer.micro_batch * trainer.anchors * slots * sizes.vocab_size
    head = heads.choose(trainer.head, config.objective, plain, logits, device)
    modes = {}
    for mode in ("full", "chunked", "pruned"):
        try:
            chosen = heads.choose(mode, config.objective, plain, logits, device)
            modes[chosen] = _head(config, sizes, mode, branches, slots, device)
        except InputError:
            continue  # a credit that reaches past the first wrong token cannot be pruned
    made = Plan(
        config,
        sizes,
        lengths,
        steps,
        head,
        drafter,
        all_sizes.target_parameters(sizes),
        _work(config, sizes, lengths, taps, attention) | {"head": modes[head][0]},
        modes,
        features,
    )
    made.disk.update(_disk(made))
    made.memory.update(_memory(made, len(taps), branches, attention, device))
    return made


def estimated(config: Config, corpus: Corpus | None) -> Lengths:
    """Lengths where the tokenizer is not at hand: four characters a token, as English has; without ``corpus``, as its
    yaml states.

    Errors: InputError where it states nothing.
    """
    data, longest = config.data, config.trainer.max_length
    if corpus is not None:
        counted = [
            min(longest, sum(len(m.content) for m in c.messages) // 4) for c in corpus.conversations[: data.regenerate]
        ]
        return Lengths(len(counted), statistics.fmean(counted), longest, "four characters a token assumed")
    if data.known is None:
        raise InputError(
            f"data={data.name} is on the hub and its yaml does not say how large it is; give data.known.examples and "
            "data.known.tokens (their mean length), or a local copy: data=jsonl data.path=FILE_OR_FOLDER"
        )
    examples = min(n for n in (data.known.examples, data.limit, data.regenerate) if n is not None)
    return Lengths(examples, min(data.known.tokens, longest), longest, f"as conf/data/{data.name}.yaml states")


def _width(lengths: Lengths) -> float:
    """Mean columns of a batch: sequences of like length are padded to a multiple of ``BUCKET``."""
    return lengths.mean + BUCKET / 2


def _work(
    config: Config, sizes: SizesConfig, lengths: Lengths, taps: Sequence[int], attention: str
) -> dict[str, float]:
    """Operations of one step in front of the head."""
    trainer, backbone, width = config.trainer, config.backbone, _width(lengths)
    tokens, layer = trainer.batch_size * width, all_sizes.layer_parameters(sizes)
    rows = trainer.batch_size * trainer.anchors * backbone.block_size
    across, hidden = sizes.heads * sizes.head_dim, sizes.hidden_size
    depth = taps[-1] + 1 if trainer.labels == "data" else sizes.layers
    features = depth * tokens * (2 * layer + 2 * across * width)  # causal: half of the scores
    if trainer.labels == "target":
        features += 2 * tokens * hidden * sizes.vocab_size + tokens * (taps[-1] + 1) * 2 * layer
    seen = width + (trainer.anchors if attention == "dense" else 1) * backbone.block_size
    context = 4 * tokens * len(taps) * hidden**2  # no gradient leaves fc
    context += 3 * backbone.layers * tokens * 4 * hidden * sizes.kv_heads * sizes.head_dim
    blocks = 3 * backbone.layers * rows * (2 * layer + 4 * across * seen)
    return {"target features": features, "drafter": context + blocks}


def _attention(config: Config, on_gpu: bool) -> str:
    """Which attention a training takes (``DFlash`` decides the same way)."""
    asked = config.backbone.attention
    low = config.trainer.precision == "bf16"
    return asked if asked != "auto" else "flex" if on_gpu else "split" if low else "dense"


def _head(config: Config, sizes: SizesConfig, mode: str, branches: int, slots: int, device: str) -> tuple[float, float]:
    """Operations of one step in head and loss, and bytes of logits and of what is kept for the backward pass."""
    trainer, one = config.trainer, 2 * sizes.hidden_size * sizes.vocab_size
    blocks = trainer.batch_size * trainer.anchors
    rows, at_once = blocks * slots, trainer.micro_batch * trainer.anchors * slots
    low = 2 if trainer.precision == "bf16" else 4
    if mode == "pruned":
        work = blocks * SUPPORT * 2 * one + rows * one / min(trainer.accuracy_every, trainer.log_every)
    else:
        work = rows * 2 * one
    if branches > 1:
        knobs = config.backbone.knobs
        inner, gru = float(knobs["emb_dim"]), float(knobs["gru_hidden_dim"])
        forward = 2 * inner * (sizes.hidden_size + gru + sizes.vocab_size) + 6 * gru * (sizes.hidden_size + gru)
        work += rows * 3 * forward + (rows * (one + forward) if mode == "chunked" else 0)
    every = branches * at_once * sizes.vocab_size
    logits = every if mode == "full" else min(every, heads.AT_ONCE[device] / 4)
    kept = 0 if mode == "full" else at_once * sizes.hidden_size * 4
    return work, logits * (low + 4 + 4) + kept


def _memory(made: Plan, taps: int, branches: int, attention: str, device: str) -> dict[str, float]:
    """Bytes on the device of one process while it trains."""
    config, sizes = made.config, made.sizes
    trainer, backbone = config.trainer, config.backbone
    low = 2 if trainer.precision == "bf16" else 4
    count, layer = sum(made.drafter.values()), sizes.hidden_size
    across, inner = sizes.heads * sizes.head_dim, sizes.intermediate_size
    width, rows = made.lengths.longest, trainer.micro_batch * trainer.anchors * backbone.block_size
    scattered = (
        trainer.batch_size > trainer.micro_batch
    )  # gradients of each branch stay apart until the last micro-batch
    a_row = layer * (24 + 4 * low) + across * (12 + 3 * low) + sizes.kv_heads * sizes.head_dim * 2 * (10 + low)
    a_row += 4 * inner * low
    if attention == "dense":
        a_row += (width + trainer.anchors * backbone.block_size) * (1 + low)  # the mask
    elif attention == "split":
        a_row += sizes.heads * (width + backbone.block_size) * (4 + 3 * low)  # scores and weights
    a_batch = trainer.micro_batch * width * taps * layer * low
    read = min(1.0, made.steps * trainer.batch_size / made.lengths.examples)
    kept = min(Features.KEEP, made.features * read) if trainer.features == "online" else 0.0
    if trainer.features == "memory" and device == "cpu":  # a GPU's are kept in the machine's own memory
        kept = made.features
    return {
        "target": made.target * (2.0 if config.target.dtype == "bf16" else 4.0),
        "drafter, gradients, optimiser": count * (16.0 + (4.0 * branches if scattered else 0) + (2 if low == 2 else 0)),
        "activations": backbone.layers * rows * float(a_row),
        "features": 2.0 * a_batch + kept,
        "head and logits": made.heads[made.head][1],
    }


def _disk(made: Plan) -> dict[str, float]:
    """Bytes under ``runs/``."""
    trainer, count = made.config.trainer, sum(made.drafter.values())
    snapshots = made.steps // trainer.snapshot_every if trainer.snapshot_every else 0
    settings, chosen = made.config.evaluation, made.config.benchmark.values()
    prompts = sum(min(b.limit, settings.prompts or b.limit) for b in chosen)
    return {
        "checkpoints": (trainer.keep + 1) * 12.0 * count,
        "drafter": 4.0 * count,
        "snapshots": 4.0 * count * snapshots,
        "trajectories": 4.0 * prompts * settings.max_new_tokens * len(settings.temperatures) * 2,
        "features": made.features * (trainer.features == "disk"),
    }


def gpu(name: str) -> tuple[float, float]:
    """Peak and memory of a named card. Errors: InputError naming those that are known."""
    if name.lower() not in GPUS:
        raise InputError(f"unknown --gpu {name!r}; valid: {', '.join(GPUS)}.{nearest(name, GPUS)}")
    return GPUS[name.lower()]


def check_utilisation(share: float) -> None:
    """Errors: InputError for a share of the peak that cannot be reached."""
    if not 0 < share <= 1:
        raise InputError(f"--utilisation {share} must be above 0 and at most 1")


def hours_on(made: Plan, name: str, devices: int, utilisation: float) -> float:
    """Hours of training on ``devices`` named cards: work / (peak x assumed utilisation). Errors: InputError for what
    cannot be."""
    trainer = made.config.trainer
    check_utilisation(utilisation)
    micros = trainer.batch_size // trainer.micro_batch
    if devices < 1 or micros % devices:
        raise InputError(
            f"--devices {devices} cannot share {micros} micro-batches: trainer.batch_size={trainer.batch_size} must be "
            f"a multiple of devices x trainer.micro_batch={trainer.micro_batch}"
        )
    return made.steps * made.per_step / (gpu(name)[0] * utilisation * devices) / 3600


def lines(made: Plan) -> list[str]:
    """The plan but its time, to be printed."""
    config, trainer, lengths = made.config, made.config.trainer, made.lengths
    count, steps = sum(made.drafter.values()), made.steps
    parts = ", ".join(f"{name} {number(n)}" for name, n in made.drafter.items() if n > count / 200)
    origin = (
        f"{trainer.epochs} epochs"
        if trainer.steps is None
        else f"{steps * trainer.batch_size / lengths.examples:.1f} epochs"
    )
    tokens, taps = trainer.batch_size * lengths.mean, taps_of(config.target.taps, made.sizes.layers)
    own = (
        "; of the original answers: those of the target, made first, are not counted" if config.data.regenerate else ""
    )
    found = [
        f"{config.profile.name}: {config.backbone.title} {config.objective.title} for {config.target.title}, data "
        f"{config.data.name}",
        f"  parameters   drafter {number(count)} trainable ({parts}); target {number(made.target)} frozen in "
        f"{config.target.dtype}, layers {', '.join(map(str, taps))} tapped",
        f"  data         {lengths.examples:,} examples, {lengths.mean:,.0f} tokens each on average "
        f"({lengths.source}{own})",
        f"  steps        {steps:,} ({origin}), {trainer.batch_size} sequences each: {number(tokens)} tokens and "
        f"{trainer.batch_size * trainer.anchors:,} blocks a step, {number(tokens * steps)} tokens in all",
        f"  work         {number(made.per_step)}FLOP a step ({share(made.work)}), {number(made.per_step * steps)}FLOP "
        "in all",
    ]
    for mode, (work, memory) in made.heads.items():
        chosen = ", this run's" if mode == made.head else ""
        assumed = f", {SUPPORT:g} rows a block assumed" if mode == "pruned" else ""
        found.append(f"  head {mode:<8}{number(work)}FLOP a step, {size(memory)} of logits{chosen}{assumed}")
    return [
        *found,
        f"  memory       {size(sum(made.memory.values()))} on each device ({listed(made.memory)})",
        f"  disk         {size(sum(made.disk.values()))} ({listed(made.disk)}); features are "
        f"{'not stored' if trainer.features == 'online' else f'kept in {trainer.features}'}: all of them are "
        f"{size(made.features)}",
    ]


def share(parts: dict[str, float]) -> str:
    """``parts`` in per cent of their sum."""
    total = sum(parts.values())
    return ", ".join(f"{k} {v / total:.0%}" for k, v in parts.items())


def listed(parts: dict[str, float]) -> str:
    """Every part that takes any bytes, with them."""
    return ", ".join(f"{k} {size(v)}" for k, v in parts.items() if v)


def number(value: float) -> str:
    """A large count with its prefix and the space that its unit needs: 1.05 G, 512 k."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def size(value: float) -> str:
    """Bytes as GB, MB or TB."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e6:.3g} MB"


def duration(hours: float) -> str:
    """Hours as a person says them."""
    if hours * 60 < 2:
        return f"{hours * 3600:.0f} s"
    return (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
    )
