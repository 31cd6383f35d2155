"""What every setting may be: one list. Judged when a configuration is made, before anything is loaded or trained."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from specauf_cli.config.schema import BackboneConfig, Config, PretrainConfig, TrainerConfig
from specauf_cli.errors import InputError, nearest

MOST = 10**9
"""No count of anything here is meant to be larger."""


@dataclass(frozen=True)
class Number:
    """A finite number from ``low`` to ``high``; ``above``: larger than ``low`` itself."""

    low: float
    high: float = MOST
    above: bool = False

    def wrong(self, value: Any) -> str:
        """Why ``value`` cannot be, or ``''``."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a finite number"
        if isinstance(value, float) and not math.isfinite(value):  # a whole number may be too large to be asked that
            return "must be a finite number"
        if value < self.low or (self.above and value == self.low):
            return f"must be above {self.low:g}" if self.above else f"must be at least {self.low:g}"
        return f"must be at most {self.high:,.12g}" if value > self.high else ""


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def wrong(self, value: Any) -> str:
        """Why ``value`` cannot be, or ``''``."""
        return "" if value in self.words else f"is none of {', '.join(self.words)}.{nearest(str(value), self.words)}"


class Name:
    """A word that can be part of a file's name."""

    def wrong(self, value: Any) -> str:
        """Why ``value`` cannot be, or ``''``."""
        fits = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", value)
        return "" if fits else "becomes part of file names; use letters, digits and . _ + - (100 at most)"


class Given:
    """Any text but an empty one."""

    def wrong(self, value: Any) -> str:
        """Why ``value`` cannot be, or ``''``."""
        return "" if str(value).strip() and "\0" not in str(value) else "must not be empty"


COUNT, SIZE, SEED = Number(1), Number(1, 2**20), Number(0, 2**31 - 1)
RATE, SHARE, PRECISION = Number(0, 1e38, above=True), Number(0, 1), OneOf(("fp32", "bf16"))

RULES: dict[str, Number | OneOf | Name | Given] = {
    "seed": SEED,
    "runs": Given(),
    "benchmark_root": Given(),
    "threads": Number(1, 1024),
    "workers": Number(1, 1024),
    "target.name": Name(),
    "target.path": Given(),
    "target.dtype": PRECISION,
    "target.attention": OneOf(("auto", "sdpa", "flash_attention_2", "eager")),
    "target.device_map": OneOf(("auto", "balanced", "balanced_low_0", "sequential")),
    "target.sizes.hidden_size": SIZE,
    "target.sizes.intermediate_size": SIZE,
    "target.sizes.layers": Number(2, 1000),
    "target.sizes.heads": SIZE,
    "target.sizes.kv_heads": SIZE,
    "target.sizes.head_dim": Number(2, 2**20),
    "target.sizes.vocab_size": SIZE,
    "target.pretrain.vocab_size": Number(300, 2**20),  # 256 bytes, the special tokens and a few merges
    "target.pretrain.hidden_size": SIZE,
    "target.pretrain.layers": Number(2, 1000),  # one to tap and the last one, which is never tapped
    "target.pretrain.heads": SIZE,
    "target.pretrain.kv_heads": SIZE,
    "target.pretrain.head_dim": Number(2, 2**20),
    "target.pretrain.intermediate_size": SIZE,
    "target.pretrain.max_positions": Number(16),
    "target.pretrain.rope_theta": Number(0, 1e12, above=True),
    "target.pretrain.steps": COUNT,
    "target.pretrain.rows": SIZE,
    "target.pretrain.row_length": SIZE,
    "target.pretrain.lr": RATE,
    "target.pretrain.warmup": SHARE,
    "target.pretrain.weight_decay": Number(0, 100),
    "target.pretrain.clip": Number(0, above=True),
    "target.pretrain.precision": PRECISION,
    "target.pretrain.seed": SEED,
    "backbone.name": Name(),
    "backbone.layers": Number(1, 1000),
    "backbone.init_std": RATE,
    "backbone.attention": OneOf(("auto", "dense", "split", "flex")),
    "objective.name": Name(),
    "objective.final_reads": OneOf(("base", "final")),
    "objective.*.gamma": Number(0, above=True),
    "data.name": Name(),
    "data.source": OneOf(("offline", "jsonl", "hub")),
    "data.limit": COUNT,
    "data.regenerate": COUNT,
    "data.heldout": COUNT,
    "data.seed": SEED,
    "data.known.examples": COUNT,
    "data.known.tokens": COUNT,
    "benchmark.*.name": Name(),
    "benchmark.*.column": Name(),
    "benchmark.*.source": OneOf(("offline", "hub")),
    "benchmark.*.limit": COUNT,
    "benchmark.*.seed": SEED,
    "trainer.steps": Number(0),
    "trainer.epochs": COUNT,
    "trainer.batch_size": SIZE,
    "trainer.micro_batch": SIZE,
    "trainer.anchors": SIZE,
    "trainer.max_length": Number(2),
    "trainer.lr": RATE,
    "trainer.betas": Number(0, 0.999999),
    "trainer.weight_decay": Number(0, 100),
    "trainer.warmup": SHARE,
    "trainer.clip": Number(0, above=True),
    "trainer.precision": PRECISION,
    "trainer.normalize": OneOf(("batch", "block", "valid")),
    "trainer.labels": OneOf(("data", "target")),
    "trainer.lambda_start": SHARE,
    "trainer.lambda_ratio": RATE,
    "trainer.head": OneOf(("auto", "full", "chunked", "pruned")),
    "trainer.accuracy_every": COUNT,
    "trainer.features": OneOf(("online", "memory", "disk")),
    "trainer.log_every": COUNT,
    "trainer.save_every": COUNT,
    "trainer.save_minutes": Number(0, above=True),
    "trainer.keep": COUNT,
    "trainer.eval_every": COUNT,
    "trainer.eval_prompts": COUNT,
    "trainer.snapshot_every": COUNT,
    "evaluation.mode": OneOf(("replay", "decode")),
    "evaluation.prompts": COUNT,
    "evaluation.temperatures": Number(0, 100),
    "evaluation.seed": SEED,
    "evaluation.max_new_tokens": Number(2, 2**20),  # the first comes from the prompt's own pass, rounds begin behind it
    "evaluation.batch_size": SIZE,
    "evaluation.precision": PRECISION,
    "evaluation.audit": Number(0),
    "evaluation.heldout_anchors": SIZE,
    "tracking.sink": OneOf(("none", "wandb")),
    "tracking.project": Given(),
    "tracking.mode": OneOf(("online", "offline", "disabled")),
    "profile.name": Name(),
}


def check(config: Config) -> None:
    """Errors: InputError naming the first setting of ``config`` that cannot work, and what would."""
    machine = {k: getattr(config, k) for k in ("runs", "benchmark_root", "threads", "workers")} | {
        "tracking": asdict(config.tracking)
    }
    for key, value in _leaves(machine | config.resolved | {g: asdict(getattr(config, g)) for g in ("target", "data")}):
        rule = RULES.get(key) or RULES.get(re.sub(r"\.\w+\.", ".*.", key, count=1))
        reason = rule.wrong(value) if rule is not None and value is not None else ""
        if reason:
            raise InputError(f"{key}={value!r} {reason}")
    check_backbone(config.backbone)
    if config.trainer.steps == 0 and config.init is None:  # a drafter from elsewhere was trained for no step here
        raise InputError("trainer.steps=0 must be at least 1")
    _trainer(config.trainer)
    _evaluation(config)
    if config.target.path is None and config.target.pretrain is not None:
        _pretrain(config.target.pretrain, config.trainer)
    for key, benchmark in config.benchmark.items():
        if benchmark.name != key:
            raise InputError(f"benchmark.{key}.name={benchmark.name!r} must be {key!r}")


def check_backbone(backbone: BackboneConfig) -> None:
    """Errors: InputError for sizes that no drafter can have."""
    if not 2 <= backbone.block_size <= 1024:
        raise InputError(
            f"backbone.block_size={backbone.block_size} is too {'small' if backbone.block_size < 2 else 'large'}; "
            "a block is the anchor and at least one slot, so valid: 2..1024"
        )
    slots = backbone.block_size - backbone.drafter.first
    if not 1 <= backbone.proposals <= slots:
        raise InputError(
            f"backbone.proposals={backbone.proposals} is out of range; valid: 1..{slots} at block_size "
            f"{backbone.block_size}"
        )
    for knob, value in getattr(backbone.model, "keywords", {}).items():
        low, high = (0, slots) if knob == "pure_draft_prefix_len" else (1, 2**20)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"backbone.model.{knob}={value!r} is out of range; valid: {low}..{high}")


def _trainer(trainer: TrainerConfig) -> None:
    if (trainer.steps is None) == (trainer.epochs is None):
        raise InputError(
            f"set exactly one of trainer.steps ({trainer.steps}) and trainer.epochs ({trainer.epochs}); the other is "
            "null"
        )
    if trainer.eval_every is not None and trainer.eval_every % trainer.log_every:
        raise InputError(
            f"trainer.eval_every={trainer.eval_every} must be a multiple of trainer.log_every={trainer.log_every}, or "
            "null"
        )
    if trainer.batch_size % trainer.micro_batch:
        raise InputError(
            f"trainer.batch_size={trainer.batch_size} must be a multiple of trainer.micro_batch={trainer.micro_batch}"
        )


def _evaluation(config: Config) -> None:
    settings = config.evaluation
    if settings.drafts != "greedy":
        raise InputError(
            f"evaluation.drafts={settings.drafts!r}: only greedy drafts can be replayed (with sampled drafts the "
            "emitted text depends on the drafter, so no trajectory is shared), and the paper drafts greedily at every "
            "temperature"
        )
    given = list(settings.temperatures)
    if not given or any(0 < t < 0.01 for t in given) or len(set(given)) != len(given):
        raise InputError(f"evaluation.temperatures={given}: give one or more different ones, each 0 or 0.01..100")


def _pretrain(recipe: PretrainConfig, trainer: TrainerConfig) -> None:
    for wrong, text in (
        (recipe.heads % recipe.kv_heads, f"heads={recipe.heads} must be a multiple of kv_heads={recipe.kv_heads}"),
        (recipe.head_dim % 2, f"head_dim={recipe.head_dim} must be even, rotary embeddings turn pairs"),
        (
            recipe.row_length > recipe.max_positions,
            f"row_length={recipe.row_length} must be at most max_positions={recipe.max_positions}",
        ),
        (
            trainer.max_length > recipe.max_positions,
            f"max_positions={recipe.max_positions} must be at least trainer.max_length={trainer.max_length}",
        ),
    ):
        if wrong:
            raise InputError(f"target.pretrain.{text}")


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with its dotted key; the items of a list share the key of the list."""
    if isinstance(values, Mapping):
        for name, inner in values.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for inner in values:
            yield from _leaves(inner, key)
    else:
        yield key, values
