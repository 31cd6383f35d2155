"""A training step by head and vocabulary: tokens per second and the memory that logits take.

    python benchmarks/step.py        a quarter of an hour on 2 cores; writes benchmarks/step.json

One step: a DFlash drafter (2 layers, width 128, B = 16) drafts 128 blocks over given target features, then head, loss,
backward and AdamW. The labels are the drafter's own argmax with probability 0.6, so AUF's support is as long as that of
a drafter in the middle of its training (alpha = 0.6), whatever the vocabulary. Every cell runs in a process of its own;
memory is the peak beyond that of the same step without head and loss. Ratios compare heads for the same objective and
vocabulary. ``naive`` is the full head with the loss in plain tensor operations, as one would write it first.
Precision: bf16 autocast, or fp32 where the processor has no products of bf16 numbers, unless ``--precision`` names one.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.records import Measurement
from specauf_cli.config.compose import compose
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives import head as heads
from specauf_cli.objectives.loss import branch_losses
from specauf_cli.objectives.terms import bind
from specauf_cli.runtime.products import autocast, has_bf16_products
from specauf_cli.store.files import write_json
from specauf_cli.store.provenance import peak_memory_mib

VOCABULARIES = (2_000, 16_000, 32_000, 152_000)
CELLS = (
    ("full_ce", "full"),
    ("full_ce", "chunked"),
    ("decay", "full"),
    ("decay", "chunked"),
    ("auf_decay", "full"),
    ("auf_decay", "pruned"),
    ("auf", "full"),
    ("auf", "chunked"),
    ("auf", "pruned"),
    ("auf", "pruned, accuracy of every slot"),
    ("kl", "naive"),
    ("kl", "full"),
    ("kl", "chunked"),
    ("dspark", "full"),
    ("dspark", "chunked"),
)
SEQUENCES, ANCHORS, LENGTH, WIDTH, ALPHA = 16, 8, 256, 128, 0.6
SPIN = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
"""How long idle threads spin, as the command line sets it."""


def naive_kl(logits: torch.Tensor, _labels: torch.Tensor, target_logits: torch.Tensor, _sure: object) -> torch.Tensor:
    """KL(p‖q) by plain tensor operations, differentiated by autograd; called as ``Term.loss`` is."""
    log_q, log_p = (torch.log_softmax(x.float(), dim=-1) for x in (logits, target_logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


class Head(Target):
    """What a drafter needs of a target: embedding and frozen head of a vocabulary. It has no model."""

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(vocabulary, WIDTH, generator=generator) * 0.05
        self.vocabulary = vocabulary

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight[tokens]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.to(hidden.dtype).T


def drafter_of(vocabulary: int) -> DFlash:
    from transformers import Qwen3Config

    sizes = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
    )
    made = DFlash(sizes, compose(["profile=laptop"]).backbone, 3, 1)
    made.initialise(0)
    return made


def cell(objective: str, head: str, vocabulary: int, repeat: int, precision: str) -> dict[str, float]:
    """Median seconds of a step, of the same step without head and loss, and the memory between the two in MiB."""
    config = compose(["profile=laptop", f"objective={objective}"])
    objective_terms = bind(config.objective, "credit")
    if head == "naive":
        (term,) = objective_terms.terms["base"]
        objective_terms = replace(objective_terms, terms={"base": (replace(term, loss=naive_kl),)})
    way = "full" if head == "naive" else head.split(",")[0]
    target, drafter = Head(vocabulary), drafter_of(vocabulary)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(SEQUENCES, LENGTH, 3 * WIDTH, generator=generator)
    anchors = torch.randint(8, LENGTH - 20, (SEQUENCES, ANCHORS), generator=generator)
    tokens = torch.randint(2, vocabulary, (SEQUENCES, ANCHORS), generator=generator)
    logits_of = partial(drafter.logits, target)
    mask = torch.ones(SEQUENCES * ANCHORS, drafter.slots, dtype=torch.bool)
    previous = torch.zeros_like(mask, dtype=torch.long)
    soft = objective_terms.soft
    target_hidden = torch.randn(*mask.shape, WIDTH, generator=generator).bfloat16() if soft else None
    computed = partial(autocast, "cpu", precision)

    def trunk() -> torch.Tensor:
        hidden = drafter.hidden(target, drafter.context(features), tokens, anchors)
        return hidden.flatten(0, 1)

    def step(labels: torch.Tensor | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        with computed():
            hidden = trunk()
            if labels is None:
                loss = hidden.float().square().mean()
            else:
                blocks = heads.Blocks(hidden, previous, labels, mask, target_hidden)
                found = heads.facts(
                    way, logits_of, blocks, vocabulary, objective_terms, target_head=target.head if soft else None
                )
                ((total, weight),) = branch_losses(found, objective_terms)["base"].pairs
                loss = total / weight
                if "," in head:  # what every `trainer.accuracy_every`-th step does for the log
                    heads.hits(logits_of, blocks._replace(hidden=hidden.detach()), vocabulary)
        torch.autograd.backward(loss)
        optimizer.step()

    def timed(labels: torch.Tensor | None) -> float:
        begin = time.perf_counter()
        step(labels)
        return time.perf_counter() - begin

    without = statistics.median(timed(None) for _ in range(repeat))
    before = peak_memory_mib()
    seconds = []
    for _ in range(repeat + 1):
        with torch.no_grad(), computed():  # outside the clock: labels for the support we want
            own = torch.cat([target.head(h).argmax(dim=-1) for h in trunk().split(1)])
        right = torch.rand(mask.shape, generator=generator) < ALPHA
        labels = torch.where(right, own, (own + 1) % vocabulary)
        seconds.append(timed(labels))
        del own
    return {
        "seconds": round(statistics.median(seconds[1:]), 4),
        "without head": round(without, 4),
        "memory": round(peak_memory_mib() - before, 1),
    }


def command(options: argparse.Namespace) -> str:
    return (
        f"python benchmarks/step.py --vocabularies {options.vocabularies} --repeat {options.repeat} "
        f"--precision {options.precision}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--vocabularies", default=",".join(map(str, VOCABULARIES)))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if has_bf16_products() else "fp32")
    parser.add_argument("--out", default="benchmarks/step.json")
    parser.add_argument("--cell", nargs=3, metavar=("OBJECTIVE", "HEAD", "V"), help="one cell, in this process")
    options = parser.parse_args()
    if options.cell:
        objective, head, vocabulary = options.cell
        print(json.dumps(cell(objective, head, int(vocabulary), options.repeat, options.precision)))
        return
    measurement, rows = Measurement(command(options)), []
    vocabularies = [int(v) for v in options.vocabularies.split(",")]
    given = ["--repeat", str(options.repeat), "--precision", options.precision]
    for vocabulary in vocabularies:
        for objective, head in CELLS:
            words = [*given, "--cell", objective, head, str(vocabulary)]
            found = records.cell("benchmarks.step", words, env=SPIN)
            row = {"vocabulary": vocabulary, "objective": objective, "head": head, **found}
            row["tokens per second"] = round(SEQUENCES * LENGTH / row["seconds"])
            rows.append(row)
            print(row, flush=True)
    by = {(r["vocabulary"], r["objective"], r["head"]): r for r in rows}
    ratios = {
        f"AUF, V = {v}": {
            "full / pruned, seconds of a step (goal 1.2 from 32,000 on)": round(
                by[v, "auf", "full"]["seconds"] / by[v, "auf", "pruned"]["seconds"], 2
            ),
            "pruned / full, memory of logits (goal 0.33)": round(
                by[v, "auf", "pruned"]["memory"] / max(0.1, by[v, "auf", "full"]["memory"]), 2
            ),
            "extra cost of the accuracy of every slot, share of a pruned step": round(
                by[v, "auf", "pruned, accuracy of every slot"]["seconds"] / by[v, "auf", "pruned"]["seconds"] - 1, 2
            ),
        }
        for v in vocabularies
    }
    for v in vocabularies:
        naive, full, chunked = (by[v, "kl", head] for head in ("naive", "full", "chunked"))
        ratios[f"soft labels (KL), V = {v}"] = {
            "naive / chunked, seconds of a step (goal 1 from 32,000 on)": round(
                naive["seconds"] / chunked["seconds"], 2
            ),
            "full / chunked, seconds of a step": round(full["seconds"] / chunked["seconds"], 2),
            "chunked / naive, memory of logits (goal 0.33 from 32,000 on)": round(
                chunked["memory"] / max(0.1, naive["memory"]), 2
            ),
        }
    shape = {"blocks": SEQUENCES * ANCHORS, "alpha": ALPHA, "precision": options.precision}
    result = measurement.record("cpu", torch.get_num_threads(), **shape, rows=rows, ratios=ratios)
    write_json(Path(options.out), result)
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
