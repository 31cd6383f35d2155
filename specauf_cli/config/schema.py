"""The configuration as frozen dataclasses: one class per group of ``conf/``, keys as in its yaml files; and what tables
show."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Credit


@dataclass(frozen=True)
class PretrainConfig:
    """How a small target is trained from scratch (``conf/target``): sizes of a Qwen3 causal LM and its recipe.

    ``steps`` optimiser steps of ``rows`` packed rows of ``row_length`` + 1 tokens.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rope_theta: float
    steps: int
    rows: int
    row_length: int
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    precision: str
    seed: int


@dataclass(frozen=True)
class SizesConfig:
    """Sizes of a target as its public ``config.json`` has them, so that ``specauf plan`` can count without it.

    ``vocab_size`` counts rows of the embedding (padding included); ``tied``: the head is the embedding. The target that
    is loaded must have them.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool


@dataclass(frozen=True)
class TargetConfig:
    """``conf/target``: ``path`` is a hub id or folder (None: trained here as ``pretrain`` says).

    ``taps`` are decoder layers from 0, or how many of them the public rule chooses. ``mask_token`` is a token, an id,
    or None: a free row of the embedding. ``dtype`` (``fp32``, ``bf16``) is that of the frozen weights; ``attention``
    and ``device_map`` say how this machine runs them.
    """

    name: str
    title: str
    path: str | None
    revision: str | None
    taps: tuple[int, ...] | int
    mask_token: str | int | None
    trust_remote_code: bool
    pretrain: PretrainConfig | None
    dtype: str = "fp32"
    attention: str = "auto"
    device_map: str | None = None
    sizes: SizesConfig | None = None


@dataclass(frozen=True)
class BackboneConfig:
    """``conf/backbone``: the drafter. ``block_size`` B counts the anchor; ``proposals`` bounds what one round drafts.

    ``model`` is its class; keyword-only arguments of the class are its knobs and equal the keys of the yaml. ``like``
    names a backbone with the same branches: objectives and a profile's recipe for that one are for this one too.
    """

    name: str
    title: str
    model: Callable[..., Any]
    block_size: int
    layers: int
    proposals: int
    init_std: float
    attention: str
    like: str | None = None

    @property
    def drafter(self) -> Any:
        """The drafter's class, without its knobs."""
        return getattr(self.model, "func", self.model)


@dataclass(frozen=True)
class ObjectiveConfig:
    """``conf/objective``: a name and one credit per branch of logits. DFlash has the branch ``base``, Domino ``final``
    too.

    ``backbones`` it fits. The credit of ``final`` is computed from the predictions of the branch ``final_reads``
    (``base``: it ends where the base branch fails). ``aliases`` names what stands for this objective on another
    backbone.
    """

    name: str
    title: str
    backbones: tuple[str, ...]
    base: Credit
    final: Credit | None = None
    final_reads: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerConfig:
    """``conf/trainer``: exactly one of ``steps`` and ``epochs`` is set; ``batch_size`` sequences make one optimiser
    step.

    ``micro_batch`` sequences go through the drafter at a time; ``normalize`` is ``batch``, ``block`` or ``valid``;
    ``labels`` is ``data`` (the conversation's token) or ``target`` (the target's argmax). With two branches the loss is
    lambda x base + (1 - lambda) x final; lambda falls linearly from ``lambda_start`` to 0 over ``lambda_ratio`` of the
    steps. Checkpoints are written every ``save_every`` steps and every ``save_minutes`` minutes; the last ``keep``
    stay. Every ``eval_every`` steps tau is measured at T = 0 on ``eval_prompts`` prompts of each benchmark (None:
    never), and the drafter with the best one stays. Every ``snapshot_every`` steps the drafter itself is kept, to be
    measured later (None: only at the end).
    """

    steps: int | None
    epochs: int | None
    batch_size: int
    micro_batch: int
    anchors: int
    max_length: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: float
    clip: float
    precision: str
    normalize: str
    labels: str
    lambda_start: float
    lambda_ratio: float
    head: str
    accuracy_every: int
    features: str
    log_every: int
    save_every: int
    save_minutes: float
    keep: int
    eval_every: int | None
    eval_prompts: int
    snapshot_every: int | None


@dataclass(frozen=True)
class EvaluationConfig:
    """``conf/evaluation``: how a drafter is measured.

    ``mode`` is ``replay`` or ``decode``; ``drafts`` is ``greedy``, the only kind for which both are lossless here;
    ``prompts`` lowers every benchmark's own limit (None: as it is); ``audit`` requests per benchmark are also decoded
    live and compared with the target's output and the replay's rounds (None: all); ``all_starts`` also drafts at every
    position of a trajectory (acceptance with little noise, never tau); ``heldout_anchors`` blocks per held-out
    conversation give block-mask accuracy.
    """

    mode: str
    drafts: str
    prompts: int | None
    temperatures: tuple[float, ...]
    seed: int
    max_new_tokens: int
    batch_size: int
    precision: str
    audit: int | None
    all_starts: bool
    heldout_anchors: int


@dataclass(frozen=True)
class KnownData:
    """What is known of a corpus before it is read: ``examples`` and their mean length in ``tokens``."""

    examples: int
    tokens: int


@dataclass(frozen=True)
class DataConfig:
    """``conf/data``: where the training conversations come from.

    ``source`` is ``offline`` (the procedural corpus), ``jsonl`` (``path``: a file or folder) or ``hub`` (``hub_id``).
    ``limit`` keeps the first n training conversations of a seeded permutation (None: all); ``heldout`` conversations
    are set aside by prompt for block-mask accuracy. ``regenerate``: drafters learn from the target's own greedy answers
    to the first n training conversations, instead of the original ones (None: they do not). ``known`` is what ``specauf
    plan`` counts with where the data are not at hand.
    """

    name: str
    source: str
    path: str | None
    hub_id: str | None
    revision: str | None
    files: str | None
    limit: int | None
    heldout: int
    seed: int
    regenerate: int | None = None
    known: KnownData | None = None


@dataclass(frozen=True)
class BenchmarkConfig:
    """``conf/benchmark``: one benchmark, data only.

    ``column`` is the paper's column it fills (``gsm8k`` ... ``alpaca``). ``source`` is ``offline`` (``family`` of the
    procedural corpus) or ``hub`` (``hub_id``, ``subset``, ``split``, ``revision``). ``turns`` says how a
    hub row gives the user's turns, in order: a field's name (a field holding a list gives one turn per item), or a
    pattern of ``{field}``s that gives one turn, in which a part in ``[...]`` is left out where a field in it is empty.
    Each turn is put into ``template`` at ``{turn}``. ``file`` is its name under ``benchmark_root``: JSON Lines
    ``{"id", "turns"}`` of raw turns. ``limit`` keeps the first n prompts of a permutation seeded by ``seed``.
    """

    name: str
    title: str
    column: str
    source: str
    family: str | None
    hub_id: str | None
    subset: str | None
    split: str | None
    revision: str | None
    turns: tuple[str, ...]
    template: str
    file: str | None
    limit: int
    seed: int


@dataclass(frozen=True)
class TrackingConfig:
    """``conf/tracking``: ``sink`` is ``none`` or ``wandb`` (``project``; ``mode`` is ``online``, ``offline`` or
    ``disabled``)."""

    sink: str
    project: str | None
    mode: str | None


@dataclass(frozen=True)
class ProfileConfig:
    """``conf/profile``: what a machine can do. ``text`` is printed under every table made with it."""

    name: str
    text: str


@dataclass(frozen=True)
class Config:
    """One resolved configuration. ``resolved`` is the same as plain nested values, machine settings left out.

    ``init``: the run whose drafter training starts from (None: random weights); what counts for a run's identity is the
    hash of its weights, not its name.
    """

    target: TargetConfig
    backbone: BackboneConfig
    objective: ObjectiveConfig
    data: DataConfig
    benchmark: dict[str, BenchmarkConfig]
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    profile: ProfileConfig
    seed: int
    runs: str
    device: str
    threads: int | None
    workers: int
    together: bool
    init: str | None
    benchmark_root: str | None
    resolved: dict[str, Any]


def typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind``, recursively. Dataclasses must match key for key; a field with a default may be left
    out."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or origin is Callable:  # functions and classes were checked when they were made
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in (a for a in arguments if a is not type(None)):
            try:
                return typed(option, value, where)
            except InputError:
                if option is arguments[-1] or len([a for a in arguments if a is not type(None)]) == 1:
                    raise
        raise _wrong(where, value, kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise _wrong(where, value, kind)
        hints = typing.get_type_hints(kind, localns={"Tensor": Any})
        names = [f.name for f in dataclasses.fields(kind)]
        cast_kind = typing.cast(Callable[..., Any], kind)
        prefix = f"{where}." if where else ""
        for key in value:
            if key not in names:
                raise InputError(f"unknown setting {prefix}{key}.{nearest(str(key), names)}")
        for f in dataclasses.fields(kind):
            if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise InputError(f"{prefix}{f.name} is missing")
        return cast_kind(**{n: typed(hints[n], value[n], prefix + n) for n in names if n in value})
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, kind)
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise _wrong(where, value, kind)
        return tuple(typed(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, kind)
        if not all(isinstance(k, str) for k in value):
            raise InputError(
                f"{where}: its keys must be text; put quotes around {next(k for k in value if not isinstance(k, str))}"
            )
        return {k: typed(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 10**300 else math.inf if value > 0 else -math.inf
    if isinstance(kind, type) and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise _wrong(where, value, kind)
    return value


def _wrong(where: str, value: Any, kind: Any) -> InputError:
    name = getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)
    return InputError(f"{where}={value!r} is not valid; expected {name}")
