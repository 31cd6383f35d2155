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
from specauf_cli.config.schema import SHARDS_DRAFTER, SHARDS_TARGET, Config, SizesConfig
from specauf_cli.errors import InputError, nearest
from specauf_cli.models.blocks import BUCKET
from specauf_cli.models.sizes import draft_sizes, drafter_parameters, layer_parameters, target_parameters
from specauf_cli.models.target import taps_of
from specauf_cli.objectives.head import AT_ONCE, choose
from specauf_cli.objectives.terms import bind, is_soft
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


def make_plan(config: Config, sizes: SizesConfig, lengths: Lengths, *, on_gpu: bool = False, devices: int = 1) -> Plan:
    """Counts everything for a training of ``config``; memory as one of ``devices`` needs it. Errors: InputError for
    settings that cannot work."""
    trainer, attention, device = config.trainer, _attention(config, on_gpu), "cuda" if on_gpu else "cpu"
    taps = taps_of(config.target.taps, sizes.layers)
    if lengths.examples < trainer.batch_size:
        raise InputError(f"{lengths.examples} examples are fewer than trainer.batch_size={trainer.batch_size}")
    steps = total_steps(trainer, lengths.examples)
    states = len(taps) + is_soft(config.objective)  # soft labels need the last hidden state too
    features = lengths.examples * lengths.mean * states * sizes.hidden_size * (2 if trainer.precision == "bf16" else 4)
    drafter = drafter_parameters(sizes, config.backbone, len(taps))
    kind = names.backbone(config.backbone)
    branches, plain = len(kind.branches), kind.row_wise()
    slots = config.backbone.block_size - kind.first
    logits = trainer.micro_batch * trainer.anchors * slots * sizes.vocab_size
    head = choose(trainer.head, config.objective, plain, logits, device)
    modes = {}
    for mode in ("full", "chunked", "pruned"):
        try:
            chosen = choose(mode, config.objective, plain, logits, device)
            modes[chosen] = _head(config, sizes, mode, branches, slots, device)
        except InputError:
            continue  # a credit that reaches past the first wrong token cannot be pruned
    plan = Plan(
        config,
        sizes,
        lengths,
        steps,
        head,
        drafter,
        target_parameters(sizes),
        _work(config, sizes, lengths, taps, attention) | {"head": modes[head][0]},
        modes,
        features,
    )
    plan.disk.update(_disk(plan))
    plan.memory.update(_memory(plan, states, branches, attention, device, devices))
    return plan


def estimated(config: Config, corpus: Corpus | None) -> Lengths:
    """Lengths where the tokenizer is not at hand: four characters a token, as in English; without ``corpus``, as its
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
    """Operations of one step before the head."""
    trainer, backbone, width = config.trainer, config.backbone, _width(lengths)
    tokens, layer = trainer.batch_size * width, layer_parameters(sizes, active=True)
    draft = layer_parameters(draft_sizes(sizes, backbone))
    rows = trainer.batch_size * trainer.anchors * backbone.block_size
    across, hidden = sizes.heads * sizes.head_dim, sizes.hidden_size
    every_layer = trainer.labels == "target" or is_soft(config.objective)
    depth = sizes.layers if every_layer else taps[-1] + 1
    features = depth * tokens * (2 * layer + 2 * across * width)  # causal: half of the scores
    if trainer.labels == "target":
        features += 2 * tokens * hidden * sizes.vocab_size + tokens * (taps[-1] + 1) * 2 * layer
    seen = width + (trainer.anchors if attention == "dense" else 1) * backbone.block_size
    layers = _draft_layers(config)
    context = 4 * tokens * len(taps) * hidden**2  # no gradient leaves fc
    context += 3 * layers * tokens * 4 * hidden * sizes.kv_heads * sizes.head_dim
    blocks = 3 * layers * rows * (2 * draft + 4 * across * seen)
    return {"target features": features, "drafter": context + blocks}


def _draft_layers(config: Config) -> int:
    """Draft layers of the backbone."""
    return config.backbone.layers if names.backbone(config.backbone).layered else 0


def _attention(config: Config, on_gpu: bool) -> str:
    """Which attention a training takes (``DFlash`` decides the same way)."""
    asked = config.backbone.attention
    low = config.trainer.precision == "bf16"
    return asked if asked != "auto" else "flex" if on_gpu else "split" if low else "dense"


def _head(config: Config, sizes: SizesConfig, mode: str, branches: int, slots: int, device: str) -> tuple[float, float]:
    """Operations of one step in head and loss, and bytes of logits and of what is kept for the backward pass."""
    trainer, row = config.trainer, 2 * sizes.hidden_size * sizes.vocab_size
    blocks = trainer.batch_size * trainer.anchors
    rows, at_once = blocks * slots, trainer.micro_batch * trainer.anchors * slots
    low = 2 if trainer.precision == "bf16" else 4
    objective = bind(config.objective, trainer.normalize)
    if mode == "pruned":
        work = blocks * SUPPORT * 2 * row + rows * row / min(trainer.accuracy_every, trainer.log_every)
    else:  # one product for the logits and one for the gradient of each loss, one for the target's logits
        gradients = len(objective.losses("base")) if mode == "chunked" and branches == 1 else 1
        work = rows * (1 + gradients + objective.soft) * row
    kind = names.backbone(config.backbone)
    forward = kind.extra_work(sizes.hidden_size, sizes.vocab_size, config.backbone.knobs)
    work += rows * 3 * forward
    if mode == "chunked" and not kind.row_wise():  # computed again in the backward pass
        work += rows * (row + forward)
    every = branches * at_once * sizes.vocab_size
    logits = every if mode == "full" else min(every, AT_ONCE[device] / 4 / (1 + objective.soft))
    kept = 0 if mode == "full" else at_once * sizes.hidden_size * 4 * len(objective.losses("base"))
    # Softmax and gradient of the cross-entropy; of soft labels the target's logits and four tensors more at most.
    a_logit = low + 4 + 4 + (low + 4 * 4 if objective.soft else 0)
    return work, logits * a_logit + kept


def _memory(plan: Plan, states: int, branches: int, attention: str, device: str, devices: int) -> dict[str, float]:
    """Bytes on the device of one process while it trains."""
    config, sizes = plan.config, plan.sizes
    trainer, backbone = config.trainer, config.backbone
    low = 2 if trainer.precision == "bf16" else 4
    count, layer = sum(plan.drafter.values()), sizes.hidden_size
    across, inner = sizes.heads * sizes.head_dim, sizes.intermediate_size
    width, rows = plan.lengths.longest, trainer.micro_batch * trainer.anchors * backbone.block_size
    scattered = (
        trainer.batch_size > trainer.micro_batch
    )  # gradients of each branch stay apart until the last micro-batch
    a_row = layer * (24 + 4 * low) + across * (12 + 3 * low) + sizes.kv_heads * sizes.head_dim * 2 * (10 + low)
    a_row += 4 * inner * low
    if attention == "dense":
        a_row += (width + trainer.anchors * backbone.block_size) * (1 + low)  # the mask
    elif attention == "split":
        a_row += sizes.heads * (width + backbone.block_size) * (4 + 3 * low)  # scores and weights
    a_batch = trainer.micro_batch * width * states * layer * low
    read = min(1.0, plan.steps * trainer.batch_size / plan.lengths.examples)
    shards_target, shards_drafter = trainer.shard in SHARDS_TARGET, trainer.shard in SHARDS_DRAFTER
    kept = min(Features.KEEP, plan.features * read) if trainer.features == "online" and not shards_target else 0.0
    if trainer.features == "memory" and device == "cpu":  # features of a GPU are kept in the machine's own memory
        kept = plan.features
    target = _held(plan.target, layer_parameters(sizes), sizes.layers, devices if shards_target else 1)
    keys_and_values = 2 * layer * sizes.kv_heads * sizes.head_dim  # stay whole: the context is read before a layer
    draft = layer_parameters(draft_sizes(sizes, backbone)) - keys_and_values
    drafter = _held(count, draft, _draft_layers(config), devices if shards_drafter else 1)
    return {
        "target": target * (2.0 if config.target.dtype == "bf16" else 4.0),
        "drafter, gradients, optimiser": drafter
        * (16.0 + (4.0 * branches if scattered else 0) + (2 if low == 2 else 0)),
        "activations": _draft_layers(config) * rows * float(a_row),
        "features": 2.0 * a_batch + kept,
        "head and logits": plan.heads[plan.head][1],
    }


def _held(parameters: int, layer: int, layers: int, devices: int) -> float:
    """Weights that one device keeps of a model with ``layers`` layers of ``layer`` weights, which are spread over
    ``devices``: its part of each, one of them whole while it computes, and all that is in no layer."""
    if devices == 1:
        return parameters
    return parameters - layers * layer + layers * layer / devices + layer


def _disk(plan: Plan) -> dict[str, float]:
    """Bytes under ``runs/``."""
    trainer, count = plan.config.trainer, sum(plan.drafter.values())
    snapshots = plan.steps // trainer.snapshot_every if trainer.snapshot_every else 0
    settings, chosen = plan.config.evaluation, plan.config.benchmark.values()
    prompts = sum(min(b.limit, settings.prompts or b.limit) for b in chosen)
    return {
        "checkpoints": (trainer.keep + 1) * 12.0 * count,
        "drafter": 4.0 * count,
        "snapshots": 4.0 * count * snapshots,
        "trajectories": 4.0 * prompts * settings.max_new_tokens * len(settings.temperatures) * 2,
        "features": plan.features * (trainer.features == "disk"),
    }


def gpu_of(name: str) -> tuple[float, float]:
    """Peak and memory of a named card. Errors: InputError naming those that are known."""
    if name.lower() not in GPUS:
        raise InputError(f"unknown --gpu {name!r}; valid: {', '.join(GPUS)}.{nearest(name, GPUS)}")
    return GPUS[name.lower()]


def check_utilisation(share: float) -> None:
    """Errors: InputError for a share of the peak that cannot be reached."""
    if not 0 < share <= 1:
        raise InputError(f"--utilisation {share} must be above 0 and at most 1")


def hours_on(plan: Plan, name: str, devices: int, utilisation: float) -> float:
    """Hours of training on ``devices`` named cards: work / (peak x assumed utilisation). Errors: InputError for what
    cannot be."""
    trainer = plan.config.trainer
    check_utilisation(utilisation)
    micros = trainer.batch_size // trainer.micro_batch
    if devices < 1 or micros % devices:
        raise InputError(
            f"--devices {devices} cannot share {micros} micro-batches: trainer.batch_size={trainer.batch_size} must be "
            f"a multiple of devices x trainer.micro_batch={trainer.micro_batch}"
        )
    return plan.steps * plan.per_step / (gpu_of(name)[0] * utilisation * devices) / 3600
