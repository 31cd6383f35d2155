"""Where the time of a training step goes: work counted by hand, the share of this machine's peak, and a profile.

    python benchmarks/limits.py       two minutes on 2 cores; writes benchmarks/limits.md and .json

Steps run on a target with random weights of the configured sizes, as `specauf plan` times them, every cell in a process
of its own. Work is what `specauf plan` counts: matrix products only; of a pruned head those of the rows that the timed
steps computed, not of those that the plan assumes. The peak is that of one large product on this machine, the fastest
that the cells timed, or a known GPU's by its data sheet; the share of it is what others call model FLOP utilisation
(MFU). The target's own pass is part of the step. `make gpu` measures the same cells at the paper's sizes. On a
processor without products of bf16 numbers the steps are in fp32, and so is the peak.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import records
from benchmarks.records import Measurement
from specauf_cli.config import names
from specauf_cli.config.compose import compose
from specauf_cli.config.schema import Config
from specauf_cli.models import checkpoint
from specauf_cli.planning import calibration
from specauf_cli.planning.plan import GPUS, SUPPORT, Plan, gpu_of, make_plan
from specauf_cli.runtime.machine import use_machine
from specauf_cli.runtime.products import has_bf16_products
from specauf_cli.store.files import write_json, write_text
from specauf_cli.store.provenance import peak_memory_mib
from specauf_cli.training.drafter import Step
from specauf_cli.training.features import Features

WARMUP = 3
"""Steps before the clock: kernels are compiled and memory is taken."""
CELLS = {
    "DFlash full-CE": ["objective=full_ce"],
    "DFlash AUF": ["objective=auf"],
    "Domino B-AUF": ["objective=b_auf", "backbone=domino"],
}
KINDS = {
    "matrix products": (
        "mm",
        "bmm",
        "addmm",
        "matmul",
        "linear",
        "flex_attention",
        "scaled_dot_product",
        "gru",
        "lstm",
        "mkldnn",
    ),
    "softmax and cross-entropy": ("softmax", "nll_loss", "argmax", "gather", "cross_entropy"),
    "copies and casts": ("copy_", "_to_copy", "cat", "stack", "contiguous", "clone", "index", "pad", "fill_", "zero_"),
    "optimiser": ("_fused_adamw", "_foreach", "adamw"),
}


def kind_of(op: str) -> str:
    """The kind of work an operator of the profile does; what is none of ``KINDS`` is elementwise."""
    name = op.removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "elementwise, norms, masks")


def peak_of(device: str, precision: str) -> tuple[float, str]:
    """Operations a second that count as the whole of ``device``, and where they are from."""
    if device.startswith("cuda") and precision == "bf16":
        name = card(torch.cuda.get_device_name(device))
        if name is not None:
            return gpu_of(name)[0], f"data sheet of {name}"
    return calibration.peak(device, precision), "a large product here"


def card(device_name: str) -> str | None:
    """The card of `specauf plan --gpu` that a GPU calls itself, as in ``NVIDIA H100 80GB HBM3``; None: not known."""
    words = device_name.lower().replace("-", " ").split()
    variants = {f"{a}-{b}" for a in words for b in words} | {f"{a}{b}" for a in words for b in words} | set(words)
    return max((name for name in GPUS if name in variants), key=len, default=None)


def counted(plan: Plan, support: float) -> dict[str, float]:
    """The plan's work of a step, with ``support`` rows a step where a pruned head computes only those.

    Without the accuracy of every slot, which the timed steps do not compute.
    """
    if plan.head != "pruned":
        return plan.work
    trainer, backbone = plan.config.trainer, plan.config.backbone
    row, blocks = 2 * plan.sizes.hidden_size * plan.sizes.vocab_size, trainer.batch_size * trainer.anchors
    slots = backbone.block_size - names.backbone(backbone).first
    every = min(trainer.accuracy_every, trainer.log_every)
    assumed = blocks * SUPPORT * 2 * row + blocks * slots * row / every
    return {**plan.work, "head": plan.work["head"] - assumed + support * 2 * row}


def cell(overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Work, seconds and profile of one configuration's step."""
    config = compose(overrides)
    return measured(config, calibration.material(config), steps)


def measured(config: Config, material: calibration.Material, steps: int) -> dict[str, Any]:
    """Work, seconds and profile of a step with this material."""
    device = use_machine(config)
    on_gpu = device.startswith("cuda")
    plan = make_plan(config, material.sizes, material.lengths, on_gpu=on_gpu)
    target = calibration.target_like(plan, material, device)
    examples = material.examples or calibration.examples_like(plan)
    drafter = checkpoint.create(target, config.backbone)
    drafter.initialise(config.seed)
    features = Features(target, examples, config.trainer, Path(config.runs), keep=0)
    step = Step(config, target, drafter, examples, features)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-6, fused=True)
    support: list[float] = []

    def one(index: int) -> float:
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        outcome = step(index)
        torch.nn.utils.clip_grad_norm_(step.parameters, config.trainer.clip)
        optimizer.step()
        outcome.loss.item()  # waits for a GPU
        seconds = time.perf_counter() - begin
        support.append(float(outcome.sums["support"]))
        return seconds

    every = min(config.trainer.accuracy_every, config.trainer.log_every) if step.head == "pruned" else 0
    chosen = [i for i in range(2 * (steps + WARMUP) + 2) if not every or (i % every and i + 1 != step.steps)]
    for index in chosen[:WARMUP]:
        one(index)
    support.clear()
    seconds = [one(index) for index in chosen[WARMUP : WARMUP + steps]]
    rows = statistics.fmean(support)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiled:
        for index in chosen[WARMUP : WARMUP + min(3 if on_gpu else 10, steps)]:
            one(index)
    shares: dict[str, float] = {}
    for event in profiled.key_averages():
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        shares[kind_of(event.key)] = shares.get(kind_of(event.key), 0.0) + took
    whole = sum(shares.values())
    peak, source = peak_of(device, config.trainer.precision)
    work, median = counted(plan, rows), statistics.median(seconds)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else peak_memory_mib() / 1024
    return {
        "head": step.head,
        "attention": step.attention,
        "precision": config.trainer.precision,
        "work": {k: round(v / 1e9, 3) for k, v in work.items()},
        "seconds": round(median, 4),
        "slowest": round(max(seconds), 4),
        "steps": steps,
        "rows of the head": round(rows),
        "peak": round(peak / 1e9, 1),
        "peak from": source,
        "share of peak": round(sum(work.values()) / median / peak, 3),
        "memory, GiB": round(memory, 2),
        "profile": {k: round(v / whole, 3) for k, v in sorted(shares.items(), key=lambda x: -x[1])},
        "threads": torch.get_num_threads(),
    }


def page(result: dict[str, Any]) -> str:
    """The Markdown page of the measured cells."""
    rows: dict[str, dict[str, Any]] = result["rows"]
    kinds = list(dict.fromkeys(k for r in rows.values() for k in r["profile"]))
    lines = [
        "# The limits of a training step",
        "",
        f"`{result['command']}`, {result['date'][:10]}. Work in GFLOP of matrix products, counted by hand "
        "(`specauf_cli/planning/plan.py`);",
        "peak: one large product on this machine, the fastest of one for each step; share: of that peak. Record with "
        "machine and versions: [limits.json](limits.json).",
        "",
        "| step | head | precision | target's pass | drafter | head and loss | seconds | GFLOP/s | peak | share |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        work = row["work"]
        speed = sum(work.values()) / row["seconds"]
        lines.append(
            f"| {name} | {row['head']} | {row['precision']} | {work['target features']:.2f} | {work['drafter']:.2f} | "
            f"{work['head']:.2f} | {row['seconds']} | {speed:.0f} | {row['peak']} | {row['share of peak']:.0%} |"
        )
    lines += ["", "Where the time goes (own time of the operators, profiled apart from the timing):", ""]
    lines += ["| step | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row['profile'].get(k, 0):.0%}" for k in kinds) + " |")
    return "\n".join([*lines, "", SMALL_TENSORS, ""])


SMALL_TENSORS = """At these sizes the tensors are small (2,048 rows of width 128) and a step is very many short
operators: a large part of its time goes into what no product counts: norms, rotary positions, masks and, in bf16, casts
of fp32 weights for the products."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", default="benchmarks/limits", help="without its suffix")
    parser.add_argument("--cell", action="store_true", help="the step of these settings, in this process")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options.overrides, options.steps)))
        return
    precision = [] if has_bf16_products() else ["trainer.precision=fp32"]
    given = [*precision, *options.overrides]
    measurement, rows = Measurement(" ".join(["python benchmarks/limits.py", *given])), {}
    for name, overrides in CELLS.items():
        words = ["--cell", "--steps", str(options.steps), "device=cpu", *given, *overrides]
        rows[name] = records.cell("benchmarks.limits", words)
        print(name, rows[name], flush=True)
    peak = max(row["peak"] for row in rows.values())  # every cell timed a product; the fastest is nearest to the peak
    for row in rows.values():
        row["share of peak"] = round(row["share of peak"] * row["peak"] / peak, 3)
        row["peak"] = peak
    result = measurement.record("cpu", next(iter(rows.values()))["threads"], rows=rows)
    write_json(Path(f"{options.out}.json"), result)
    write_text(Path(f"{options.out}.md"), page(result))
    print(page(result))


if __name__ == "__main__":
    main()
