"""Which slots does each objective weigh? For the pictures of docs/objectives.md.

    specauf train objective=auf trainer.snapshot_every=16
    python benchmarks/weights.py --run RUN

One drafter, early in its training (5 % of the steps) and at the end, is asked about random blocks of the held-out
conversations. The weight of a slot is the derivative of the objective with respect to the slot's loss: what its terms
with their normalisers multiply the loss with, in batches as in training. Every objective sees the same blocks and the
same two drafters, so that the weights can be compared. Of several branches it is the base branch.
Writes benchmarks/weights.json, from which `python -m specauf_cli.reporting.gallery` draws.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.records import Measurement
from specauf_cli.config import catalogue
from specauf_cli.data.chat import encode
from specauf_cli.models import checkpoint
from specauf_cli.models.blocks import (
    before_labels,
    collate,
    labels_and_mask,
    previous_tokens,
    sample_anchors,
    valid_anchors,
)
from specauf_cli.models.dflash import DFlash
from specauf_cli.objectives.loss import Facts, block_facts, branch_losses, telemetry
from specauf_cli.objectives.terms import Objective, bind
from specauf_cli.session import Session, open_session
from specauf_cli.store import layout
from specauf_cli.store.files import write_json
from specauf_cli.store.trust import configs
from specauf_cli.types import BlockStats

EARLY = 0.05
"""The share of the training steps after which a drafter is early."""
DATA = frozenset({"gold_rank", "target_gold_logprob", "overlap"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="id of a finished DFlash run that kept drafters on the way")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--out", default="benchmarks/weights.json")
    options = parser.parse_args()
    (folder,) = layout.find(Path(options.runs), [options.run], every=False)
    measurement = Measurement(f"python benchmarks/weights.py --run {folder.name}")
    config, _ = configs(folder, [f"runs={options.runs}"], "all")
    session = open_session(config)
    steps = layout.snapshot_steps(folder)
    last = max(steps)
    chosen = {"early": min(steps, key=lambda step: abs(step - EARLY * last)), "late": last}
    entries = catalogue.entries()
    objectives = {entry.choice: bind(entry.config, config.trainer.normalize) for entry in entries}
    drafters: dict[str, dict[str, float]] = {}
    weights: dict[str, dict[str, list[float]]] = {name: {} for name in objectives}
    for when, step in chosen.items():
        drafter = checkpoint.load(layout.snapshot(folder, step), session.target, config.backbone, run=folder.name)
        batches = list(heldout_batches(session, drafter))
        drafters[when] = {"step": step, **summary([stats for stats, _ in batches])}
        for name, objective in objectives.items():
            by_slot = sum(
                weight_of_slots(objective, stats, sequences, step / last).sum(dim=0) for stats, sequences in batches
            )
            assert isinstance(by_slot, Tensor)
            weights[name][when] = [round(share, 6) for share in (by_slot / by_slot.sum()).tolist()]
    result = {
        "run": folder.name,
        "profile": config.profile.name,
        "steps": last,
        "drafters": drafters,
        "objectives": {
            entry.choice: {"terms": list(map(catalogue.term_text, entry.config.base)), **weights[entry.choice]}
            for entry in entries
        },
    }
    device = str(session.target.device)
    write_json(Path(options.out), measurement.record(device, torch.get_num_threads(), **result))


@torch.no_grad()
def heldout_batches(session: Session, drafter: DFlash) -> Iterator[tuple[BlockStats, int]]:
    """Statistics of the blocks of the held-out conversations in batches like those of training, and how many
    conversations a batch has. All slots that are trained count."""
    trainer, target = session.config.trainer, session.target
    examples, _ = encode(target.chat, session.heldout, max_length=trainer.max_length)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    for begin in range(0, len(order) - trainer.batch_size + 1, trainer.batch_size):
        batch = collate(examples, order[begin : begin + trainer.batch_size], target.chat.pad_id)
        generator = torch.Generator().manual_seed(begin)
        anchors, real = sample_anchors(valid_anchors(batch.supervised), trainer.anchors, generator)
        labels, mask = labels_and_mask(batch.tokens, batch.supervised, anchors, real, drafter.slots)
        features = target.features_and_last(batch.tokens)
        features, last = features[..., : -target.hidden_size], features[..., -target.hidden_size :]
        hidden = drafter.hidden(target, drafter.context(features), batch.tokens.gather(1, anchors), anchors)
        previous = previous_tokens(batch.tokens, anchors, drafter.slots)
        logits = drafter.logits(target, hidden.flatten(0, 1), previous.flatten(0, 1))["base"]
        target_logits = target.head(before_labels(last, anchors, drafter.slots).flatten(0, 1))
        facts = block_facts(logits, labels.flatten(0, 1), mask.flatten(0, 1), target_logits, {}, DATA)
        yield facts.stats, len(batch.index)


def weight_of_slots(objective: Objective, stats: BlockStats, sequences: int, progress: float) -> Tensor:
    """The weight ``[N, K]`` of every slot in the objective's loss of a batch, base branch."""
    slot_loss = torch.zeros_like(stats.gold_logprob, requires_grad=True)
    facts = {"base": Facts(stats, dict.fromkeys(objective.losses("base"), slot_loss))}
    loss = branch_losses(facts, objective, sequences=sequences, progress=progress)["base"]
    tiny = torch.finfo(torch.float32).tiny
    (weights,) = torch.autograd.grad(sum(pair.total / pair.weight.clamp(min=tiny) for pair in loss.pairs), slot_loss)
    return weights


def summary(batches: list[BlockStats]) -> dict[str, float]:
    """How good a drafter is on these blocks: mean accept length, and the share of first slots that are right."""
    sums = [telemetry(stats) for stats in batches]
    blocks = sum(int(s["blocks"]) for s in sums)
    first = sum(int(stats.correct[:, 0].sum()) for stats in batches)
    return {
        "blocks": blocks,
        "accept_length": round(1 + sum(int(s["accepted"]) for s in sums) / blocks, 4),
        "first_slot": round(first / blocks, 4),
    }


if __name__ == "__main__":
    main()
