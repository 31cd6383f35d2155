"""Times a few real training steps on this machine.

The target is built with random weights of its real sizes: a step takes equally long with them. What depends on how good
a drafter is (the rows that a pruned head computes) is corrected by counting.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import Config, SizesConfig
from specauf_cli.data import conversations, offline
from specauf_cli.data.chat import Chat, encode
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models.target import DTYPES, Target, create
from specauf_cli.objectives.terms import is_soft
from specauf_cli.planning.plan import SUPPORT, Lengths, Plan, estimated
from specauf_cli.runtime.machine import free_memory
from specauf_cli.runtime.products import autocast, prepare
from specauf_cli.session import load_data
from specauf_cli.training import pretrain
from specauf_cli.training.drafter import Order, Step
from specauf_cli.training.features import Features
from specauf_cli.types import Example

TOO_LONG = 20.0
"""Seconds of one step beyond which no step is tried: the estimate then comes from the speed of a matrix product."""


@dataclass(frozen=True)
class Material:
    """What the timing uses. ``examples`` is empty and ``chat`` None if data or tokenizer are not on this machine.

    ``untrained``: the target is one that is trained here, and has not been yet.
    """

    lengths: Lengths
    sizes: SizesConfig
    chat: Chat | None
    examples: Sequence[Example]
    untrained: bool = False


def material(config: Config) -> Material:
    """Data, tokenizer and sizes as far as they are on this machine: nothing is downloaded, no target is trained."""
    data, target = config.data, config.target
    known = sizes.of(target)
    if data.source == "hub":
        return Material(estimated(config, None), known, None, [])
    here = config.benchmark_root is not None or all(b.source == "offline" for b in config.benchmark.values())
    corpus, _ = load_data(config) if here else conversations.load(data)
    if target.path is not None and not is_local(target.path):
        return Material(estimated(config, corpus), known, None, [])
    untrained = False
    if target.path is None and target.pretrain is not None:
        folder = pretrain.place(target, Path(config.runs), data=corpus.sha256)
        untrained = not (folder / pretrain.MARKER).is_file()
        target = replace(target, path=str(folder))
    if untrained and target.pretrain is not None:  # its tokenizer takes seconds
        chat = Chat.build((m.content for c in corpus.conversations for m in c.messages), target.pretrain.vocab_size)
    else:
        chat = Chat.load(target)
    if target.pretrain is not None:
        known = replace(known, vocab_size=chat.vocab)
    corpus = replace(corpus, conversations=corpus.conversations[: data.regenerate])
    examples, _ = encode(chat, corpus, max_length=config.trainer.max_length)
    counts = [len(e.tokens) for e in examples]
    lengths = Lengths(len(counts), statistics.fmean(counts), max(counts), "counted")
    return Material(lengths, known, chat, examples, untrained)


def peak(device: str, precision: str) -> float:
    """Operations a second of a large matrix product here: the best of a few."""
    n = 8192 if device.startswith("cuda") else 1024
    dtype = DTYPES[precision]
    prepare(dtype)
    a, best = torch.randn(n, n, dtype=dtype, device=device), 0.0
    for _ in range(6):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        best = max(best, 2 * n**3 / (time.perf_counter() - begin))
    return best


def fits(plan: Plan, device: str) -> bool:
    """True when a training of these sizes fits into half of the memory that is free here."""
    return sum(plan.memory.values()) < free_memory(device) / 2


def seconds_per_step(plan: Plan, material: Material, device: str, *, batches: int = 6) -> float:
    """Mean seconds of an optimiser step, from real steps on batches of short and long sequences.

    Steps with and without the accuracy of every slot are timed separately and weighted by how often they occur.
    """
    config = replace(plan.config, trainer=replace(plan.config.trainer, features="online"))
    trainer = config.trainer
    target, examples = target_like(plan, material, device), material.examples or examples_like(plan)
    drafter = checkpoint.create(target, config.backbone)
    drafter.initialise(config.seed)
    # Online: nothing is written, and a batch that is asked for twice is computed twice.
    soft = is_soft(config.objective)
    features = Features(target, examples, trainer, Path(config.runs), with_last=soft, keep=0)
    step = Step(config, target, drafter, examples, features)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-6, fused=True)
    took: dict[bool, list[float]] = {True: [], False: []}
    rows = blocks = 0.0

    def timed(index: int) -> float:
        nonlocal rows, blocks
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        outcome = step(index)
        torch.nn.utils.clip_grad_norm_(step.parameters, trainer.clip or math.inf).item()
        optimizer.step()
        outcome.loss.item()
        seconds = time.perf_counter() - begin
        rows, blocks = rows + float(outcome.sums["support"]), blocks + float(outcome.sums["blocks"])
        return seconds

    every = min(trainer.accuracy_every, trainer.log_every) if step.head == "pruned" else 1
    chosen = _spread(step.order, batches, every)
    for index in chosen[: max(2, len(chosen) // 3)]:
        timed(index)  # kernels are compiled and memory is taken
    rows = blocks = 0.0
    for index in chosen:
        took[index % every == 0].append(timed(index))
    often = 1 / every
    mean = often * statistics.fmean(took[True]) + (1 - often) * statistics.fmean(took[False] or took[True])
    if step.head == "pruned":  # a new drafter is wrong at once; a trained one reaches further
        missing = max(0.0, SUPPORT - rows / max(1.0, blocks)) * blocks / len(chosen)
        mean += missing * 4 * plan.sizes.hidden_size * plan.sizes.vocab_size / (plan.per_step / mean)
    return mean


def _spread(order: Order, count: int, every: int) -> list[int]:
    """Steps of the first epoch whose batches are as wide as the quantiles of all, of both kinds (``index % every``)."""
    steps = range(order.per_epoch)
    width = {i: max(order.lengths[k] for k in order.batch(i)) for i in steps}
    chosen: list[int] = []
    for kind in {True, every == 1}:
        some = sorted((i for i in steps if (i % every == 0) == kind), key=lambda i: width[i])
        chosen += [some[(2 * k + 1) * len(some) // (2 * count)] for k in range(min(count, len(some)))]
    return chosen


def target_like(plan: Plan, material: Material, device: str) -> Target:
    """The target with random weights; a substitute tokenizer if its own is not on this machine."""
    config = plan.config
    chat = material.chat
    if chat is None:
        chat = Chat.build(
            (m.content for c in offline.conversations(200, seed=0).conversations for m in c.messages), 400
        )
        chat = chat.changed(vocab=plan.sizes.vocab_size)
    chat = chat.changed(mask_id=max(0, min(chat.mask_id, plan.sizes.vocab_size - 1)))
    dtype = DTYPES[config.target.dtype]
    prepare(dtype)
    model = sizes.random_target(plan.sizes, config.trainer.max_length, dtype=dtype, device=device)
    return Target(model, chat, replace(config.target, sizes=None), "random")


def examples_like(plan: Plan) -> list[Example]:
    """Conversations of the known mean length, all supervised."""
    count = 4 * plan.config.trainer.batch_size
    length = max(2, round(plan.lengths.mean))
    draws = torch.randint(5, 300, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(str(i), tuple(row), (True,) * length) for i, row in enumerate(draws)]


def pretraining_seconds(config: Config, material: Material, device: str) -> float:
    """Seconds until the small target is trained, from three of its steps; 0 if none is trained here or it exists
    already."""
    recipe = config.target.pretrain
    if not material.untrained or recipe is None or material.chat is None:
        return 0.0
    model = create(recipe, material.chat).to(device)
    if device == "cpu":
        model.set_attn_implementation("eager")  # as pretrain.train does
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(material.chat.vocab, (recipe.rows, recipe.row_length), device=device)
    took = []
    for _ in range(4):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device(device).type, recipe.precision):
            logits = model(input_ids=tokens, use_cache=False).logits.float()
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip).item()
        optimizer.step()
        took.append(time.perf_counter() - begin)
    return recipe.steps * statistics.median(took[1:])
