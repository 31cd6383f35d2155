"""Training one drafter: batches, anchors, blocks, credit, loss."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specauf_cli.config.schema import SHARDS_DRAFTER, Config, TrainerConfig
from specauf_cli.data.spool import lengths
from specauf_cli.errors import InputError
from specauf_cli.models import checkpoint
from specauf_cli.models.blocks import (
    Batch,
    before_labels,
    collate,
    labels_and_mask,
    previous_tokens,
    sample_anchors,
    valid_anchors,
)
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives import head
from specauf_cli.objectives.loss import BranchLoss, Pair, branch_losses
from specauf_cli.objectives.terms import bind
from specauf_cli.runtime import ranks, sharding
from specauf_cli.runtime.products import autocast
from specauf_cli.store import layout
from specauf_cli.store.files import read_log
from specauf_cli.training.features import Features
from specauf_cli.training.loop import Outcome, Running, Training, run
from specauf_cli.training.tracking import OFF, sink
from specauf_cli.types import Example

WINDOW = 16
"""Batches whose examples are sorted by length together."""


class Order:
    """Which examples form which step's batch: a seeded permutation per epoch, neighbours in length batched together.

    Sorting by length happens inside windows of ``WINDOW`` batches, and the order of all batches is shuffled again, so a
    batch holds similar lengths and yet every epoch is a fresh random order. Only the seed and the lengths matter.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.per_epoch = len(lengths) // batch_size
        if self.per_epoch < 1:
            raise InputError(
                f"{len(lengths)} training examples are fewer than trainer.batch_size={batch_size}; lower it or give "
                "more data"
            )
        self._epoch, self._order, self._turns = -1, torch.empty(0), torch.empty(0)

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of one optimiser step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.lengths), generator=generator)
            self._epoch, self._order = epoch, order[: self.per_epoch * self.batch_size]
            self._turns = torch.randperm(self.per_epoch, generator=generator)
        window, place = divmod(int(self._turns[position]), WINDOW)
        members = self._order[window * WINDOW * self.batch_size :][: WINDOW * self.batch_size].tolist()
        return sorted(members, key=lambda i: self.lengths[i])[place * self.batch_size :][: self.batch_size]


def total_steps(trainer: TrainerConfig, examples: int) -> int:
    """Optimiser steps of a run: ``steps``, or so many passes over the examples."""
    return trainer.steps if trainer.steps is not None else (trainer.epochs or 0) * (examples // trainer.batch_size)


class Step:
    """One optimiser step's forward and backward passes, as the training loop calls it.

    Anchors of the whole batch are drawn before it is cut into micro-batches, from a generator keyed by (seed, step):
    they depend neither on the objective nor on the accumulation.
    """

    def __init__(
        self, config: Config, target: Target, drafter: DFlash, examples: Sequence[Example], features: Features
    ) -> None:
        self.config, self.target, self.drafter = config, target, drafter
        self.examples, self.features = examples, features
        self.order = Order(lengths(examples), config.trainer.batch_size, config.seed)
        self.parameters = [p for p in drafter.parameters() if p.requires_grad]
        self.steps = total_steps(config.trainer, len(examples))
        micros = config.trainer.batch_size // config.trainer.micro_batch
        if micros % ranks.WORLD:
            raise InputError(
                f"{ranks.WORLD} ranks cannot share {micros} micro-batches: "
                f"trainer.batch_size={config.trainer.batch_size} must be a multiple of {ranks.WORLD} x "
                f"trainer.micro_batch={config.trainer.micro_batch}"
            )
        logits = config.trainer.micro_batch * config.trainer.anchors * drafter.slots * target.chat.vocab
        with autocast(target.device.type, config.trainer.precision):
            self.attention = drafter.attention(self.parameters[0], config.trainer.anchors)
        if self.attention == "flex" and target.device.type == "cpu":
            raise InputError("backbone.attention=flex trains on a GPU only; use auto, split or dense")
        self.head = head.choose(config.trainer.head, config.objective, drafter.row_wise(), logits, target.device.type)
        self.objective = bind(config.objective, config.trainer.normalize)
        assert features.with_last or not self.objective.soft, "soft labels need features with the last hidden state"
        features.begin(config.seed)

    def __call__(self, step: int) -> Outcome:
        """Leaves the gradient of batch ``step``'s loss in the drafter's parameters."""
        trainer, device = self.config.trainer, self.target.device
        batch = collate(self.examples, self.order.batch(step), self.target.chat.pad_id)
        generator = torch.Generator().manual_seed((self.config.seed << 32) + step + 1)
        anchors, real = sample_anchors(valid_anchors(batch.supervised), trainer.anchors, generator)
        if step + 1 < self.steps:
            self.features.ahead(self.order.batch(step + 1))
        shares, parts = self.shares(step), list[dict[str, BranchLoss]]()
        gradients: dict[tuple[str, int], list[Tensor]] = {}
        micros = range(0, len(batch.index), trainer.micro_batch)
        for begin in micros[ranks.RANK :: ranks.WORLD]:
            part = slice(begin, begin + trainer.micro_batch)
            micro = Batch(batch.index[part], batch.tokens[part].to(device), batch.supervised[part].to(device))
            losses = self._micro(step, micro, anchors[part].to(device), real[part].to(device))
            if len(micros) == 1:  # the denominators are known before the one backward pass
                torch.autograd.backward(_mean([losses], shares))
                for parameter in self.parameters:  # one that no loss reads, as micro-batches would have it
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
            else:
                self._accumulate(losses, gradients)
            parts.append({k: _detached(loss) for k, loss in losses.items()})
        if ranks.WORLD > 1:
            parts = [_of_all_ranks(parts)]
            gradients = {k: sharding.add(g) for k, g in gradients.items()}
        if gradients:
            for i, parameter in enumerate(self.parameters):
                parameter.grad = sum(
                    (shares[k] / _weight(parts, k, n) * g[i] for (k, n), g in gradients.items()),
                    torch.zeros_like(parameter),
                )
        return Outcome(_mean(parts, shares), self._sums(parts), batch.tokens.numel())

    def shares(self, step: int) -> dict[str, float]:
        """How much each branch counts: lambda for ``base``, the rest for ``final``; one branch counts alone."""
        if len(self.drafter.branches) == 1:
            return {"base": 1.0}
        trainer = self.config.trainer
        done = step / (trainer.lambda_ratio * self.steps)
        share = trainer.lambda_start * max(0.0, 1.0 - done)
        return {"base": share, "final": 1.0 - share}

    def _micro(
        self, step: int, batch: Batch, anchors: Int[Tensor, "B A"], real: Bool[Tensor, "B A"]
    ) -> dict[str, BranchLoss]:
        trainer, slots = self.config.trainer, self.drafter.slots
        features, last = self.features.of(batch)
        source = batch.tokens if trainer.labels == "data" else self.target.greedy_labels(batch.tokens)
        labels, mask = labels_and_mask(source, batch.supervised, anchors, real, slots)
        last = last if self.objective.soft else None  # it may be there for another drafter
        with autocast(self.target.device.type, trainer.precision):
            hidden = self.drafter.hidden(
                self.target, self.drafter.context(features), batch.tokens.gather(1, anchors), anchors
            )
            blocks = head.Blocks(
                hidden.flatten(0, 1),
                previous_tokens(batch.tokens, anchors, slots).flatten(0, 1),
                labels.flatten(0, 1),
                mask.flatten(0, 1),
                before_labels(last, anchors, slots).flatten(0, 1) if last is not None else None,
            )
            logits_of, vocabulary = partial(self.drafter.logits, self.target), self.target.chat.vocab
            facts = head.facts(
                self.head,
                logits_of,
                blocks,
                vocabulary,
                self.objective,
                row_wise=self.drafter.row_wise(),
                target_head=None if last is None else self.target.head,
                confidence_of=self.drafter.confidence if self.objective.confident else None,
            )
            losses = branch_losses(facts, self.objective, sequences=len(batch.index), progress=step / self.steps)
            if self.head == "pruned":
                sums = losses["base"].sums
                sums |= {"seen": torch.zeros_like(sums["valid"]), "correct": torch.zeros_like(sums["valid"])}
                if (
                    step % min(trainer.accuracy_every, trainer.log_every) == 0 or step + 1 == self.steps
                ):  # in every line
                    sums |= {"seen": sums["valid"], "correct": head.hits(logits_of, blocks, vocabulary)}
        return losses

    def _accumulate(self, losses: Mapping[str, BranchLoss], gradients: dict[tuple[str, int], list[Tensor]]) -> None:
        """Adds the gradient of each pair of each branch apart: its denominator is known only when every micro-batch has
        been seen."""
        pairs = {(name, n): pair for name, loss in losses.items() for n, pair in enumerate(loss.pairs)}
        for place, pair in pairs.items():
            gradient = self._gradient(pair.total, last=place == next(reversed(pairs)))
            known = gradients.get(place)
            gradients[place] = gradient if known is None else [a + b for a, b in zip(known, gradient, strict=True)]

    def _gradient(self, total: Tensor, *, last: bool) -> list[Tensor]:
        """Of every parameter; ``last``: nothing else of this pass will be differentiated."""
        if not any(map(sharding.is_sharded, self.parameters)):
            return list(torch.autograd.grad(total, self.parameters, retain_graph=not last, materialize_grads=True))
        total.backward(retain_graph=not last)  # type: ignore[no-untyped-call]  # sharded layers act in backward passes
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found

    def _sums(self, parts: Sequence[Mapping[str, BranchLoss]]) -> dict[str, Tensor]:
        """Sums for the log: the drafting branch's under plain names, another's as ``base_...``; losses per branch if
        several."""
        sums: dict[str, Tensor] = {}
        for name in self.drafter.branches:
            prefix = "" if name == self.drafter.branches[-1] else f"{name}_"
            for part in parts:
                for key, value in part[name].sums.items():
                    sums[prefix + key] = sums[prefix + key] + value if prefix + key in sums else value
            if len(self.drafter.branches) > 1:
                sums[f"{name}_loss"] = _mean(parts, {name: 1.0})
        return sums


def _detached(loss: BranchLoss) -> BranchLoss:
    return replace(loss, pairs=tuple(Pair(pair.total.detach(), pair.weight) for pair in loss.pairs))


def _of_all_ranks(parts: Sequence[Mapping[str, BranchLoss]]) -> dict[str, BranchLoss]:
    """What the micro-batches of every rank add up to, as one part."""
    result = {}
    for name, first in parts[0].items():
        keys = list(first.sums)
        rows = [
            torch.stack([*(x for pair in p[name].pairs for x in pair), *(p[name].sums[k] for k in keys)]).double()
            for p in parts
        ]
        numbers = iter(ranks.add([torch.stack(rows).sum(dim=0)])[0].unbind())
        pairs = tuple(Pair(next(numbers).float(), next(numbers).float()) for _ in first.pairs)
        result[name] = BranchLoss(pairs, dict(zip(keys, numbers, strict=True)))
    return result


def _weight(parts: Sequence[Mapping[str, BranchLoss]], branch: str, pair: int) -> Float[Tensor, ""]:
    return torch.stack([p[branch].pairs[pair].weight for p in parts]).sum().clamp(min=torch.finfo(torch.float32).tiny)


def _mean(parts: Sequence[Mapping[str, BranchLoss]], shares: Mapping[str, float]) -> Float[Tensor, ""]:
    """The loss of a batch: per branch and pair the totals over the weights, both summed over the micro-batches and
    divided once."""
    means = [
        share * (torch.stack([p[name].pairs[n].total for p in parts]).sum() / _weight(parts, name, n))
        for name, share in shares.items()
        for n in range(len(parts[0][name].pairs))
    ]
    return torch.stack(means).sum()


def summary(sums: Mapping[str, float]) -> dict[str, float]:
    """Named means of a log window: common-mask accuracy, active ratio, support accuracy, training accept length.

    Of the branch that drafts; those of the base branch beside it, and both losses, where there are two.
    """
    means: dict[str, float] = {}
    for prefix in ("", "base_"):
        if prefix + "valid" not in sums:
            continue
        valid, support, blocks = (max(1.0, sums[prefix + k]) for k in ("valid", "support", "blocks"))
        means |= {
            f"{prefix}accuracy": sums[prefix + "correct"] / max(1.0, sums[prefix + "seen"]),
            f"{prefix}active_ratio": sums[prefix + "support"] / valid,
            f"{prefix}support_accuracy": sums[prefix + "support_correct"] / support,
            f"{prefix}accept_length": 1 + sums[prefix + "accepted"] / blocks,
        }
    return means | {k: sums[k] / sums["steps"] for k in ("base_loss", "final_loss") if k in sums}


@dataclass(frozen=True)
class Task:
    """One drafter to train into ``folder`` under the name ``identity``.

    ``probe`` measures it every ``trainer.eval_every`` steps, for the log. ``start``: the folder of the drafter whose
    weights it begins with (None: random ones, by the seed).
    """

    config: Config
    folder: Path
    identity: str
    probe: Callable[[DFlash], dict[str, float]] = lambda _: {}
    start: Path | None = None


def train(target: Target, examples: Sequence[Example], features: Features, tasks: Sequence[Task]) -> list[Running]:
    """Trains the drafters of ``tasks`` (resuming what is there), a step of each in turn, and saves those that got to
    the end.

    Drafters of one seed meet the same batches, anchors and features; each ends exactly as it would have alone.
    """
    with ExitStack() as stack:
        trainings = [_training(target, examples, features, task, stack) for task in tasks]
        ended = run(trainings)
    for task, running in zip(tasks, ended, strict=True):
        if running.failure is None:
            drafter = cast(DFlash, running.training.module)
            checkpoint.save(drafter, target, layout.drafter_of(task.folder), run=task.identity)
    return ended


def _training(
    target: Target, examples: Sequence[Example], features: Features, task: Task, stack: ExitStack
) -> Training:
    config, trainer = task.config, task.config.trainer
    drafter = checkpoint.create(target, config.backbone)
    drafter.initialise(config.seed)
    if task.start is not None:
        drafter.load_state_dict(checkpoint.load(task.start, target, config.backbone).state_dict())
    if trainer.shard in SHARDS_DRAFTER:
        drafter.shard(str(target.device))

    def kept(done: int) -> Path:
        return layout.snapshot(task.folder, done)

    def asked_for(done: int) -> bool:
        return trainer.snapshot_every is not None and done % trainer.snapshot_every == 0

    def snapshot(done: int) -> None:
        if asked_for(done):
            checkpoint.save(drafter, target, kept(done), run=task.identity)

    def measure(done: int) -> dict[str, float]:
        if trainer.eval_every is None or done % trainer.eval_every:
            return {}
        measured = task.probe(drafter)
        if not measured:
            return measured
        lines = [x for x in read_log(layout.log_of(task.folder)) if "tau" in x]
        best = max(lines, key=lambda x: x["tau"], default=None)
        if best is None or measured["tau"] > best["tau"]:  # the drafter with the best tau so far is kept, and only it
            checkpoint.save(drafter, target, kept(done), run=task.identity)
            if best is not None and not asked_for(int(best["step"])):
                shutil.rmtree(kept(int(best["step"])), ignore_errors=True)
        return measured

    step = Step(config, target, drafter, examples, features)
    print(f"{task.identity}: head {step.head}, attention {step.attention}", file=sys.stderr)
    log = stack.enter_context(sink(config.tracking if ranks.FIRST else OFF, task.folder, config.resolved))
    return Training(
        name=f"{config.backbone.title} {config.objective.title} seed {config.seed}",
        folder=task.folder,
        module=drafter,
        step=step,
        summary=summary,
        identity=task.identity,
        steps=total_steps(trainer, len(examples)),
        lr=trainer.lr,
        betas=trainer.betas,
        weight_decay=trainer.weight_decay,
        warmup=trainer.warmup,
        clip=trainer.clip,
        log_every=trainer.log_every,
        save_every=trainer.save_every,
        save_minutes=trainer.save_minutes,
        keep=trainer.keep,
        measure=measure,
        snapshot=snapshot,
        sink=log,
        shared=True,
    )
