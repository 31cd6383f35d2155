"""Every setting, declared once: its type and range, one line of meaning, and what it counts for.

One class per group of ``conf/``, keys as in its yaml files. Validation, the run id, what two runs must share, what is
published, ``specauf train --help`` and ``docs/configuration.md`` all follow from here (``config/settings.py``).

Every setting is part of a run's identity and of its record unless it is marked:

    MEASURED      recorded, but not part of the run id: how a drafter is measured, or what something is called
    MACHINE       neither: where and how this machine runs it, or a fact that follows from other settings
    SHARED        must be equal in runs that are trained or measured together
    NAMES_CODE    may name the user's own code to run; a run folder from elsewhere cannot set it
    Since(value)  left out of identity and record while it has this value: the id of runs from before it existed is kept
    Formerly(...) a word that was renamed; the run id is made with the former one: the id of earlier runs is kept
    Place(word)   a file or folder of this machine; published as ``word``
"""

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.dataclasses import dataclass


class Mark(Enum):
    """What a setting counts for; see the head of this file."""

    MEASURED = "recorded, not in the run id"
    MACHINE = "this machine only"
    SHARED = "shared by runs that are trained or measured together"
    NAMES_CODE = "may name code"


@plain_dataclass(frozen=True)
class Place:
    """A file or folder of this machine, published as ``word``."""

    word: str


@plain_dataclass(frozen=True)
class Since:
    """The value that runs had before the setting existed."""

    value: Any


@plain_dataclass(frozen=True)
class Formerly:
    """What words of a setting were called before: ``{today's: former}``."""

    words: Mapping[str, str]


MEASURED, MACHINE, SHARED, NAMES_CODE = Mark.MEASURED, Mark.MACHINE, Mark.SHARED, Mark.NAMES_CODE

LARGEST = 10**9
"""No count of anything here is meant to be larger."""


def _text(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("must not be empty")
    return value


def _temperature(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError("must be 0 or at least 0.01")
    return value


def _greedy(value: str) -> str:
    if value != "greedy":
        raise ValueError(
            "cannot be replayed, only greedy drafts can (with sampled drafts the emitted text depends on the drafter, "
            "so no trajectory is shared), and the paper drafts greedily at every temperature"
        )
    return value


Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]
Count = Annotated[Int, Field(ge=1, le=LARGEST)]
Size = Annotated[Int, Field(ge=1, le=2**20)]
Layers = Annotated[Int, Field(ge=1, le=1000)]
Seed = Annotated[Int, Field(ge=0, le=2**31 - 1)]
Rate = Annotated[Float, Field(gt=0, le=1e38)]
Share = Annotated[Float, Field(ge=0, le=1)]
Positive = Annotated[Float, Field(gt=0, le=LARGEST)]
Processes = Annotated[Int, Field(ge=1, le=1024)]
Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
"""A word that can be part of a file's name."""
Precision = Literal["fp32", "bf16"]
Knob = Int | Float | str
Words = Annotated[tuple[str, ...], Strict(False)]

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Unknown keys are errors; the text below a field is its meaning; no number is infinite."""


Architecture = Literal["qwen3", "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "qwen3_moe"]
"""Types of models that are trained here; any type that transformers can load may be a target."""


@dataclass(frozen=True, config=CLOSED)
class PretrainConfig:
    """How a small target is trained from scratch: architecture, sizes and recipe of a causal LM."""

    vocab_size: Annotated[Int, Field(ge=300, le=2**20)]
    """entries of the tokenizer (256 bytes, the special tokens, merges); a small corpus may yield fewer"""
    hidden_size: Size
    """width of the hidden state"""
    layers: Annotated[Int, Field(ge=2, le=1000)]
    """decoder layers: at least one to tap, and the last one, which is never tapped"""
    heads: Size
    """attention heads, a multiple of ``kv_heads``"""
    kv_heads: Size
    """key and value heads"""
    head_dim: Annotated[Int, Field(ge=2, le=2**20)]
    """width of a head, even"""
    intermediate_size: Size
    """inner width of the MLP"""
    max_positions: Annotated[Int, Field(ge=16, le=LARGEST)]
    """longest context, tokens"""
    rope_theta: Annotated[Float, Field(gt=0, le=1e12)]
    """base of the rotary embedding"""
    steps: Count
    """optimiser steps"""
    rows: Size
    """packed rows per step"""
    row_length: Size
    """tokens per row"""
    lr: Rate
    """peak learning rate of AdamW"""
    warmup: Share
    """share of the steps in which the learning rate rises; then cosine"""
    weight_decay: Annotated[Float, Field(ge=0, le=100)]
    """of AdamW"""
    clip: Positive
    """gradient norm"""
    precision: Precision
    """of the products in training"""
    seed: Seed
    """of initial weights and order"""
    architecture: Annotated[Architecture, Since("qwen3")] = "qwen3"
    """type of the model, as transformers calls it"""
    more: Annotated[dict[str, Bool | Knob | Words | None], Since({})] = field(default_factory=dict)
    """further keys of the model's configuration, as transformers calls them, e.g. ``tie_word_embeddings``"""

    @model_validator(mode="after")
    def _fits(self) -> "PretrainConfig":
        where = "target.pretrain."
        if self.heads % self.kv_heads:
            raise ValueError(f"{where}heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"{where}head_dim={self.head_dim} must be even, rotary embeddings turn pairs")
        if self.row_length > self.max_positions:
            raise ValueError(f"{where}row_length={self.row_length} must be at most max_positions={self.max_positions}")
        return self


@dataclass(frozen=True, config=CLOSED)
class SizesConfig:
    """Sizes of a target as its public ``config.json`` has them: ``specauf plan`` counts with them, loading checks
    them."""

    hidden_size: Size
    """width of the hidden state"""
    intermediate_size: Size
    """inner width of the MLP"""
    layers: Layers
    """decoder layers"""
    heads: Size
    """attention heads"""
    kv_heads: Size
    """key and value heads"""
    head_dim: Annotated[Int, Field(ge=2, le=2**20)]
    """width of a head"""
    vocab_size: Size
    """rows of the embedding, padding included"""
    tied: Bool
    """the output head is the embedding"""
    gated: Bool = True
    """the MLP has a gate: three matrices, not two"""
    experts: Annotated[Int, Field(ge=0, le=2**16)] = 0
    """experts of a layer; 0: none, one MLP"""
    experts_per_token: Annotated[Int, Field(ge=0, le=2**16)] = 0
    """experts that a token passes"""
    expert_size: Annotated[Int, Field(ge=0, le=2**20)] = 0
    """inner width of an expert"""


@dataclass(frozen=True, config=CLOSED)
class TargetConfig:
    """``conf/target``: the frozen model that drafters imitate."""

    name: Name
    """part of run names; with ``target=hf``: ``ORG/NAME`` of the hub, of which ``NAME`` is kept"""
    title: Annotated[str, MEASURED]
    """as tables call it"""
    path: Annotated[Text | None, Place("DIR")]
    """hub id or folder; null: trained here as ``pretrain`` says"""
    revision: str | None
    """branch, tag or commit on the hub; null: the default branch"""
    taps: Annotated[tuple[Int, ...], Strict(False)] | Int | Literal["last"]
    """decoder layers that a drafter reads, from 0; or how many the public rule chooses; last: what the head reads"""
    mask_token: str | Int | None
    """token or id of the slots to draft; null: a free row of the embedding"""
    trust_remote_code: Annotated[Bool, NAMES_CODE]
    """run the code of the model's repository"""
    pretrain: PretrainConfig | None
    """how it is trained, where it is trained here"""
    dtype: Annotated[Precision, Since("fp32")] = "fp32"
    """of the frozen weights"""
    attention: Annotated[Literal["auto", "sdpa", "flash_attention_2", "eager"], MACHINE] = "auto"
    """implementation of attention"""
    device_map: Annotated[Literal["auto", "balanced", "balanced_low_0", "sequential"] | None, MACHINE] = None
    """spreads the target over several GPUs (needs the package accelerate); null: one device"""
    sizes: Annotated[SizesConfig | None, MACHINE] = None
    """known before it is loaded"""
    chat_template: Annotated[Text | None, Place("FILE"), Since(None)] = None
    """a file with the Jinja chat template; null: the tokenizer's own"""


@dataclass(frozen=True, config=CLOSED)
class BackboneConfig:
    """``conf/backbone``: the drafter."""

    name: Name
    """part of run names"""
    title: Annotated[str, MEASURED]
    """as tables call it"""
    kind: Annotated[Text, NAMES_CODE]
    """``dflash``, ``domino``, ``dspark``, ``medusa``, ``recurrent``, or ``package.module.Class`` of the user's own"""
    block_size: Annotated[Int, Field(ge=2, le=1024)]
    """B: tokens of a block, the anchor included"""
    layers: Layers
    """draft layers"""
    proposals: Int
    """draft tokens of a round, at most the slots of a block"""
    init_std: Rate
    """standard deviation of initial matrices"""
    attention: Literal["auto", "dense", "split", "flex"]
    """dense is the reference; flex needs a GPU; auto chooses by device, precision and number of blocks"""
    knobs: dict[str, Knob] = field(default_factory=dict)
    """the keyword-only arguments of its class"""
    like: str | None = None
    """a backbone with the same branches: its objectives and its part of a profile's recipe hold here too"""


Normalizer = Literal["credit", "block_credit", "valid", "blocks", "sequence"]
FORMER_NORMALIZERS = {"credit": "batch", "block_credit": "block"}


@dataclass(frozen=True, config=CLOSED)
class TermConfig:
    """One term of a branch: weight x sum m c l / normaliser, with the loss l and the credit c by name.

    In yaml the knobs of both stand beside their names: ``{loss: lk, scale: 1, slope: 3, credit: decay, gamma: 7}``.
    """

    credit: Annotated[Text, NAMES_CODE]
    """a function of ``objectives/credits.py``, or ``package.module.function`` of the user's own"""
    loss: Annotated[Text, NAMES_CODE] = "ce"
    """a function of ``objectives/losses.py``, or ``package.module.function`` of the user's own"""
    weight: Positive = 1.0
    """factor of the term"""
    normalize: Normalizer | None = None
    """what the term is divided by; null: ``trainer.normalize``"""
    knobs: dict[str, Knob] = field(default_factory=dict)
    """the keyword-only arguments of the loss and the credit"""


Terms = tuple[TermConfig, ...]


def _terms(value: Any) -> Any:
    """The terms of a branch as a list, whether yaml has one term or a list of them; knobs under a key of their own."""
    return tuple(map(_term, value)) if isinstance(value, list | tuple) else (_term(value),)


def _term(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if not value.get("credit"):
        raise ValueError("names no credit; write credit: NAME, see conf/objective/auf.yaml")
    own = ("credit", "loss", "weight", "normalize")
    return {
        **{k: v for k, v in value.items() if k in own},
        "knobs": {k: v for k, v in value.items() if k not in own},
    }


@dataclass(frozen=True, config=CLOSED)
class ObjectiveConfig:
    """``conf/objective``: terms for each branch of logits. DFlash has the branch ``base``, Domino ``final`` too."""

    name: Name
    """part of run names"""
    title: Annotated[str, MEASURED]
    """as tables call it"""
    backbones: Annotated[tuple[str, ...], Strict(False), MEASURED]
    """backbones it is for"""
    base: Annotated[Terms, Field(min_length=1), BeforeValidator(_terms)]
    """terms of the base branch: one, or a list of them"""
    final: Annotated[Terms | None, BeforeValidator(lambda value: None if value is None else _terms(value))] = None
    """terms of the final branch, where there is one"""
    final_reads: Literal["base", "final"] | None = None
    """the branch whose predictions the credits of ``final`` are computed from"""
    aliases: Annotated[dict[str, str], MEASURED] = field(default_factory=dict)
    """what this objective is called on another backbone"""

    @property
    def branches(self) -> dict[str, Terms]:
        """The terms of every branch that has any."""
        return {"base": self.base} | ({} if self.final is None else {"final": self.final})


SHARDS_TARGET, SHARDS_DRAFTER = ("target", "both"), ("drafter", "both")
"""Values of ``trainer.shard``."""


@dataclass(frozen=True, config=CLOSED)
class TrainerConfig:
    """``conf/trainer``: how a drafter is trained.

    With two branches the loss is lambda x base + (1 - lambda) x final.
    """

    steps: Annotated[Int, Field(ge=0, le=LARGEST)] | None
    """optimiser steps; exactly one of ``steps`` and ``epochs`` is set"""
    epochs: Count | None
    """passes over the training conversations"""
    batch_size: Size
    """sequences per optimiser step"""
    micro_batch: Size
    """sequences per forward pass; divides ``batch_size``"""
    anchors: Size
    """random anchors per sequence, a block each"""
    max_length: Annotated[Int, Field(ge=2, le=LARGEST), SHARED]
    """tokens at which a conversation is cut"""
    lr: Rate
    """peak learning rate of AdamW"""
    betas: Annotated[
        tuple[Annotated[Float, Field(ge=0, le=0.999999)], Annotated[Float, Field(ge=0, le=0.999999)]], Strict(False)
    ]
    """of AdamW"""
    weight_decay: Annotated[Float, Field(ge=0, le=100)]
    """of AdamW"""
    warmup: Share
    """share of the steps in which the learning rate rises; then cosine"""
    clip: Positive | None
    """gradient norm; null: not clipped"""
    precision: Annotated[Precision, SHARED]
    """of the products; bf16 is autocast, weights and optimiser stay fp32"""
    normalize: Annotated[Normalizer, Formerly(FORMER_NORMALIZERS)]
    """what a loss is divided by: all credit of the batch, the credit of each block, all valid slots, all blocks, or
    each sequence by its blocks"""
    labels: Literal["data", "target"]
    """the conversation's token, or the target's argmax"""
    lambda_start: Share
    """weight of the base branch at the first step, where there are two branches"""
    lambda_ratio: Rate
    """share of the steps over which it falls linearly to 0"""
    head: Literal["auto", "full", "chunked", "pruned"]
    """how many logits exist at once; pruned skips rows after the first wrong token (truncating credits, one branch)"""
    accuracy_every: Count
    """steps between common-mask accuracies where the head is pruned"""
    features: Annotated[Literal["online", "memory", "disk"], SHARED]
    """target features: computed for every batch, or once and kept"""
    log_every: Count
    """steps between lines of log.jsonl"""
    save_every: Count
    """steps between checkpoints"""
    save_minutes: Positive
    """minutes between checkpoints, if that comes first"""
    keep: Count
    """checkpoints that stay"""
    eval_every: Count | None
    """steps between measurements of tau while training (T = 0, a multiple of ``log_every``); the best drafter is
    kept"""
    eval_prompts: Count
    """prompts of each benchmark for them"""
    snapshot_every: Count | None
    """steps between drafters kept for ``specauf eval --every-checkpoint``; null: the last one only"""
    shard: Annotated[Literal["none", "target", "drafter", "both"], MACHINE, SHARED] = "none"
    """whose layers are spread over the ranks of torchrun (FSDP2), where they do not fit on one device"""

    @model_validator(mode="after")
    def _fits(self) -> "TrainerConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"set exactly one of trainer.steps ({self.steps}) and trainer.epochs ({self.epochs}); the other is null"
            )
        if self.eval_every is not None and self.eval_every % self.log_every:
            raise ValueError(
                f"trainer.eval_every={self.eval_every} must be a multiple of trainer.log_every={self.log_every}, or "
                "null"
            )
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"trainer.batch_size={self.batch_size} must be a multiple of trainer.micro_batch={self.micro_batch}"
            )
        return self


Temperature = Annotated[Float, Field(ge=0, le=100), AfterValidator(_temperature)]


Draw = Literal["inverse_cdf", "gumbel"]
"""Ways to draw the target's token above temperature 0."""


@dataclass(frozen=True, config=CLOSED)
class EvaluationConfig:
    """``conf/evaluation``: how a drafter is measured."""

    mode: Literal["replay", "decode"]
    """walk the target's cached trajectories (exact, fast), or the live loop for every request"""
    drafts: Annotated[str, AfterValidator(_greedy)]
    """greedy: one top-1 token per slot, at every temperature"""
    prompts: Count | None
    """at most this many prompts of each benchmark; null: the limit in its yaml"""
    temperatures: Annotated[tuple[Temperature, ...], Strict(False), Field(min_length=1)]
    """of the target's sampling, different ones; 0 is greedy"""
    seed: Seed
    """of held-out anchors and of the target's sampling"""
    max_new_tokens: Annotated[Int, Field(ge=2, le=2**20)]
    """longest answer; its first token comes from the prompt's pass, rounds begin after it"""
    batch_size: Size
    """requests per target pass"""
    precision: Precision
    """of target and drafter; in fp32 speculative output equals greedy output exactly"""
    audit: Annotated[Int, Field(ge=0, le=LARGEST)] | None
    """requests per benchmark that are also decoded live and compared token for token; null: all"""
    all_starts: Bool
    """also draft at every position of a trajectory: acceptance with less noise, never tau"""
    heldout_anchors: Size
    """blocks per held-out conversation for block-mask accuracy"""
    confidence: Annotated[Share, Since(0.0)] = 0.0
    """a drafter with a confidence head proposes no token that it gives less chance than this, nor any after it"""
    draw: Annotated[Draw, Since("inverse_cdf")] = "inverse_cdf"
    """how the target's token is drawn above temperature 0: gumbel is slower, and rounding hardly ever changes a draw"""

    @model_validator(mode="after")
    def _fits(self) -> "EvaluationConfig":
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"evaluation.temperatures={list(self.temperatures)}: a temperature is there twice")
        return self


@dataclass(frozen=True, config=CLOSED)
class KnownData:
    """What ``specauf plan`` counts with where the data are not at hand."""

    examples: Count
    """conversations"""
    tokens: Count
    """mean length of one, tokens"""


@dataclass(frozen=True, config=CLOSED)
class DataConfig:
    """``conf/data``: the training conversations."""

    name: Name
    """part of records"""
    source: Literal["offline", "jsonl", "hub"]
    """the procedural corpus, files at ``path``, or ``hub_id``"""
    path: Annotated[Text | None, MACHINE, Place("PATH")]
    """file or folder of conversations; their content is part of a run's identity, not where they are"""
    hub_id: str | None
    """dataset on the Hugging Face hub"""
    revision: str | None
    """branch, tag or commit there"""
    files: str | None
    """file there"""
    limit: Count | None
    """first n training conversations of a seeded permutation; null: all"""
    heldout: Count
    """conversations set aside by prompt for block-mask accuracy"""
    seed: Seed
    """of the permutation"""
    regenerate: Annotated[Count | None, Since(None)] = None
    """learn from the target's own greedy answers to the first n; null: from the original answers"""
    known: Annotated[KnownData | None, MACHINE] = None
    """size of the corpus, for ``specauf plan`` before it is read"""


@dataclass(frozen=True, config=CLOSED)
class BenchmarkConfig:
    """``conf/benchmark``: one benchmark, data only."""

    name: Name
    """its key"""
    title: str
    """as tables call it"""
    column: Name
    """the paper's column that it fills"""
    source: Literal["offline", "hub"]
    """``family`` of the procedural corpus, or ``hub_id``"""
    family: str | None
    """of the procedural corpus"""
    hub_id: str | None
    """dataset on the Hugging Face hub"""
    subset: str | None
    """its configuration there"""
    split: str | None
    """its split there"""
    revision: str | None
    """branch, tag or commit there"""
    turns: Annotated[tuple[str, ...], Strict(False)]
    """the user's turns: a field's name (a list gives one turn per item), or a pattern of ``{field}``s; a part in
    ``[...]`` is left out where a field in it is empty"""
    template: str
    """each turn is put into it at ``{turn}``"""
    file: str | None
    """its name under ``benchmark_root``: JSON Lines of ``{"id", "turns"}``"""
    limit: Count
    """first n prompts of a seeded permutation"""
    seed: Seed
    """of the permutation"""


@dataclass(frozen=True, config=CLOSED)
class TrackingConfig:
    """``conf/tracking``: where the log goes besides log.jsonl."""

    sink: Literal["none", "wandb"]
    """nowhere, or Weights & Biases"""
    project: Text | None
    """of Weights & Biases"""
    mode: Literal["online", "offline", "disabled"] | None
    """of Weights & Biases"""


@dataclass(frozen=True, config=CLOSED)
class ProfileConfig:
    """``conf/profile``: what a machine can do."""

    name: Name
    """part of run names"""
    text: Annotated[str, MEASURED]
    """printed under every table made with it"""


@dataclass(frozen=True, config=CLOSED)
class Config:
    """One resolved configuration. ``resolved`` is the same as plain nested values, without what this machine alone
    needs."""

    target: Annotated[TargetConfig, SHARED]
    backbone: BackboneConfig
    objective: ObjectiveConfig
    data: Annotated[DataConfig, SHARED]
    benchmark: Annotated[dict[str, BenchmarkConfig], MEASURED]
    trainer: TrainerConfig
    evaluation: Annotated[EvaluationConfig, MEASURED]
    tracking: Annotated[TrackingConfig, MACHINE]
    profile: ProfileConfig
    seed: Seed
    """initial weights, data order and anchors; the objective does not enter"""
    init: Annotated[Text | None, MACHINE, Place("RUN")]
    """a finished run (id or folder) to start from; the hash of its weights is part of a run's identity, not its name"""
    runs: Annotated[Text, MACHINE, SHARED, Place("RUNS")]
    """checkpoints, logs, records, caches"""
    device: Annotated[str, MACHINE, SHARED]
    """auto, cpu, cuda or cuda:N"""
    threads: Annotated[Processes | None, MACHINE, SHARED]
    """CPU threads; null: all"""
    workers: Annotated[Processes, MACHINE]
    """processes that train the jobs of a table side by side"""
    together: Annotated[Bool, MACHINE]
    """with one worker: train the drafters of a table and seed in one pass over the data"""
    data_root: Annotated[Text | None, MACHINE, Place("DIR")]
    """a folder with train/*.jsonl and benchmarks/*.jsonl"""
    benchmark_root: Annotated[Text | None, MACHINE, SHARED, Place("DIR")]
    """read benchmarks from this folder instead of the hub"""
    resolved: Annotated[dict[str, Any], MACHINE] = field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.trainer.steps == 0 and self.init is None:  # a drafter from elsewhere was trained for no step here
            raise ValueError("trainer.steps=0 must be at least 1")
        recipe, longest = self.target.pretrain, self.trainer.max_length
        if self.target.path is None and recipe is not None and longest > recipe.max_positions:
            raise ValueError(
                f"target.pretrain.max_positions={recipe.max_positions} must be at least trainer.max_length={longest}"
            )
        if self.target.path is None and recipe is not None and self.target.chat_template is not None:
            raise ValueError(
                f"target.chat_template={self.target.chat_template} is for a target that is loaded; "
                f"target={self.target.name} is trained here, with a template of its own"
            )
        for key, benchmark in self.benchmark.items():
            if benchmark.name != key:
                raise ValueError(f"benchmark.{key}.name={benchmark.name!r} must be {key!r}")
        return self
