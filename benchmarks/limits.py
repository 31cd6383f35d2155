"""Where the time of a training step goes: work counted by hand, the share of this machine's peak, and a profile.

    python benchmarks/limits.py       two minutes on 2 cores; writes benchmarks/limits.md and .json
    python benchmarks/limits.py --gpu h200 profile=paper trainer.batch_size=4   one GPU, a Qwen3-8B drafter's sizes

Steps run on a target with random weights of the configured sizes, as `specauf plan` times them. Work is what `specauf
plan` counts: matrix products only. The peak is that of one large bf16 product on this machine, or with --gpu the data
sheet's; the share of it is what others call model FLOP utilisation (MFU). The target's own pass is part of the step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from specauf_cli.config.compose import compose
from specauf_cli.models import checkpoint
from specauf_cli.planning import calibration
from specauf_cli.planning.plan import gpu_of, make_plan
from specauf_cli.runtime.machine import use_machine
from specauf_cli.store.files import atomic, write_json
from specauf_cli.store.provenance import code_state, environment, now
from specauf_cli.training.drafter import Step
from specauf_cli.training.features import Features

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


def cell(overrides: Sequence[str], gpu: str | None, steps: int) -> dict[str, object]:
    """Work, seconds and profile of one configuration's step."""
    config = compose(overrides)
    device = use_machine(config)
    found = calibration.material(config)
    made = make_plan(config, found.sizes, found.lengths, on_gpu=device.startswith("cuda"))
    target = calibration.target_like(made, found, device)
    examples = found.examples or calibration.examples_like(made)
    drafter = checkpoint.create(target, config.backbone)
    drafter.initialise(config.seed)
    features = Features(target, examples, config.trainer, Path(config.runs), keep=0)
    step = Step(config, target, drafter, examples, features)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-6, fused=True)

    def one(index: int) -> float:
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        outcome = step(index)
        torch.nn.utils.clip_grad_norm_(step.parameters, config.trainer.clip)
        optimizer.step()
        outcome.loss.item()  # waits for a GPU
        return time.perf_counter() - begin

    for index in range(3):
        one(index)
    seconds = [one(index) for index in range(3, 3 + steps)]
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    with profile(activities=kinds) as profiled:
        for index in range(3, 3 + min(10, steps)):
            one(index)
    shares: dict[str, float] = {}
    for event in profiled.key_averages():
        took = event.self_device_time_total if device.startswith("cuda") else event.self_cpu_time_total
        shares[kind_of(event.key)] = shares.get(kind_of(event.key), 0.0) + took
    whole = sum(shares.values())
    peak = gpu_of(gpu)[0] if gpu else calibration.peak(device, config.trainer.precision)
    median = statistics.median(seconds)
    return {
        "head": step.head,
        "attention": step.attention,
        "work": {k: round(v / 1e9, 3) for k, v in made.work.items()},
        "seconds": round(median, 4),
        "peak": round(peak / 1e9, 1),
        "share of peak": round(made.per_step / median / peak, 3),
        "profile": {k: round(v / whole, 3) for k, v in sorted(shares.items(), key=lambda x: -x[1])},
        "threads": torch.get_num_threads(),
    }


def page(rows: dict[str, dict[str, object]], result: dict[str, object], goal: str) -> str:
    """The Markdown page of the measured cells."""
    kinds = list(dict.fromkeys(k for r in rows.values() for k in r["profile"]))  # type: ignore[attr-defined]
    lines = [
        "# The limits of a training step",
        "",
        f"`{result['command']}`, {str(result['date'])[:10]}. Work in GFLOP of matrix products, counted by hand "
        "(`specauf_cli/planning/plan.py`);",
        "peak: one large product on this machine. Record with machine and versions: [limits.json](limits.json).",
        "",
        "| step | head | target's pass | drafter | head and loss | seconds | GFLOP/s | peak | share of peak |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        work: dict[str, float] = row["work"]  # type: ignore[assignment]
        speed = sum(work.values()) / float(str(row["seconds"]))
        lines.append(
            f"| {name} | {row['head']} | {work['target features']:.2f} | {work['drafter']:.2f} | {work['head']:.2f} | "
            f"{row['seconds']} | {speed:.0f} | {row['peak']} | {float(str(row['share of peak'])):.0%} |"
        )
    lines += ["", "Where the time goes (own time of the operators, profiled apart from the timing):", ""]
    lines += ["| step | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
    for name, row in rows.items():
        shares: dict[str, float] = row["profile"]  # type: ignore[assignment]
        lines.append(f"| {name} | " + " | ".join(f"{shares.get(k, 0):.0%}" for k in kinds) + " |")
    return "\n".join([*lines, "", goal, ""])


CPU = """At these sizes the tensors are small (2,048 rows of width 128) and a step is very many short operators: more
than half of its time goes into what no product counts: norms, rotary positions, masks and casts between fp32 weights
and bf16 products. What would help, and why it is not done: compiling the step fuses them, but needs a C++ compiler on
the user's machine."""
GPU = "Goal on a GPU at a real drafter's sizes: at least 45 % of the peak."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--gpu", help="a card of specauf plan --gpu: its data sheet's peak")
    parser.add_argument("--out", default="benchmarks/limits")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    rows = {n: cell([*options.overrides, *o], options.gpu, options.steps) for n, o in CELLS.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, object] = {
        "command": " ".join(["python benchmarks/limits.py", *sys.argv[1:]]),
        "date": now(),
        "rows": rows,
        "environment": environment(device, torch.get_num_threads()),
        "code": code_state(),
    }
    write_json(Path(f"{options.out}.json"), result)
    text = page(rows, result, GPU if device == "cuda" else CPU)
    with atomic(Path(f"{options.out}.md")) as temporary:
        temporary.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
