"""How the cost of a training step grows with its settings, over two ranks, and what that means for eight GPUs.

    python benchmarks/scale.py       a quarter of an hour on 2 cores; writes benchmarks/scale.md and .json

A step of the laptop profile (target with random weights, sequences of 256 tokens, V = 2,048), decay and AUF, with one
setting changed at a time; every cell in a process of its own. Ranks: a short training by torchrun with one and with two
processes of one thread each. The last section is arithmetic by `specauf plan`, and says what it rests on.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import limits, records
from benchmarks.records import Measurement
from specauf_cli.config.compose import compose
from specauf_cli.errors import InputError
from specauf_cli.models import sizes
from specauf_cli.planning.calibration import Material, material
from specauf_cli.planning.estimate import estimate
from specauf_cli.planning.plan import GPUS, SUPPORT, Lengths, Plan, make_plan
from specauf_cli.store import layout
from specauf_cli.store.files import write_json, write_text

LENGTH, VOCABULARY = 256, 2_048
BASE = {"sequences": 16, "anchors": 8, "vocabulary": VOCABULARY, "block size": 16}
GROWTH = {
    "sequences": (4, 8, 16, 32),
    "anchors": (2, 4, 8, 16, 32),
    "vocabulary": (2_048, 8_192, 32_768),
    "block size": (4, 8, 16, 32),
}
OBJECTIVES = ("decay", "auf")
RANKS = (1, 2)
SHORT = ["profile=laptop", "objective=auf", "device=cpu", "target.pretrain.steps=5", "trainer.snapshot_every=null"]
CARD, CARDS, UTILISATION = "h100", 8, 0.4
NVLINK = 450e9
"""Bytes a second that an H100 sends to the others (NVIDIA H100 SXM data sheet: 900 GB/s, both directions)."""


def cell(setting: dict[str, int], objective: str, steps: int) -> dict[str, Any]:
    """Seconds and work of a step with these settings, see ``limits.measured``."""
    batch, block = setting["sequences"], setting["block size"]
    config = compose(
        [
            "profile=laptop",
            f"objective={objective}",
            "device=cpu",
            f"trainer.batch_size={batch}",
            f"trainer.micro_batch={batch}",
            f"trainer.anchors={setting['anchors']}",
            f"trainer.max_length={LENGTH}",
            f"backbone.block_size={block}",
            f"backbone.proposals={block - 1}",
        ]
    )
    known = replace(sizes.of(config.target), vocab_size=setting["vocabulary"])
    lengths = Lengths(1_000 * batch, LENGTH, LENGTH, "given")
    return limits.measured(config, Material(lengths, known, None, []), steps)


def settings(names: Sequence[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """What grows, and all settings of the cell; the one that is common to all comes with each."""
    for name in names:
        for value in GROWTH[name]:
            yield name, {**BASE, name: value}


def seconds_over(ranks: int, steps: int) -> float:
    """Seconds of a step of a short training over this many processes of one thread each. Errors: InputError when it
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        words = [*SHORT, "threads=1", "trainer.micro_batch=8", f"trainer.steps={steps}", f"runs={folder}"]
        ran = records.run([*start, "-m", "specauf_cli", "train", *words], env={"OMP_NUM_THREADS": "1"})
        if ran.code != 0:
            raise InputError(f"a training over {ranks} ranks: {ran.reason}")
        taken = layout.result_of(Path(ran.out.split()[-1]))
    return float(taken["seconds"]) / steps


def table(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Seconds by the value of one setting, each also as a multiple of the common cell's."""
    by = {(row["setting"][name], row["objective"]): row for row in rows if row["grows"] == name}
    head = [name, *(f"{o}, {what}" for o in OBJECTIVES for what in ("seconds", "times", "GFLOP"))]
    text = ["| " + " | ".join(head) + " |", "|" + "--:|" * len(head)]
    for value in GROWTH[name]:
        cells = [f"{value:,}"]
        for objective in OBJECTIVES:
            row, base = by[value, objective], by[BASE[name], objective]
            seconds = row["seconds"]
            cells += [f"{seconds:.3f}", f"{seconds / base['seconds']:.2f}", f"{sum(row['work'].values()):.1f}"]
        text.append("| " + " | ".join(cells) + " |")
    return text


def arithmetic(plan: Plan) -> list[str]:
    """What the plan says of a large target on several cards, and what that rests on."""
    peak, _ = GPUS[CARD]
    seconds = plan.per_step / (peak * UTILISATION * CARDS)
    gradients = 4 * sum(plan.drafter.values())
    exchange = 2 * (CARDS - 1) / CARDS * gradients / NVLINK
    return [
        f"`specauf plan profile=paper objective=auf --gpu {CARD} --devices {CARDS}`:",
        "",
        "```text",
        *estimate(plan.config, gpu=CARD, devices=CARDS, utilisation=UTILISATION),
        "```",
        "",
        "It rests on:",
        "",
        f"- the peak of the card's data sheet ({peak / 1e12:.0f} TFLOP/s in bf16) and an assumed {UTILISATION:.0%} of "
        "it. No step has been timed on a GPU;",
        "- work counted by hand (matrix products only). How well that predicts seconds on a CPU is in "
        "[plan.json](plan.json);",
        "- ranks that do not wait for each other. A rank computes the target's pass of its own micro-batches, so that "
        f"is shared too; gradients are exchanged once a step: {gradients / 1e9:.1f} GB, {1000 * exchange:.0f} ms at "
        f"{NVLINK / 1e9:.0f} GB/s, {exchange / seconds:.0%} of a step of {seconds:.2f} s if nothing of it overlaps;",
        f"- {plan.lengths.mean:,.0f} tokens a conversation ({plan.lengths.source}), and for the pruned head a support "
        f"of {SUPPORT:g} slots a block.",
    ]


def page(result: dict[str, Any], plan: Plan) -> str:
    """The Markdown page of the record."""
    machine = result["environment"]
    text = [
        "# How the cost of a step grows",
        "",
        f"`{result['command']}`, {result['date'][:10]}, {machine['cpu']}, {machine['threads']} threads. Record: "
        "[scale.json](scale.json).",
        "",
        f"A step of the laptop profile: {BASE['sequences']} sequences of {LENGTH} tokens, {BASE['anchors']} anchors "
        f"each, V = {VOCABULARY:,}, B = {BASE['block size']}; one setting changed at a time. Medians; *times* is "
        "relative to that step, *GFLOP* are the matrix products, the target's pass included. The drafter is untrained, "
        "so AUF's pruned head computes about one slot of every block; that of a trained one computes about tau.",
    ]
    for name in dict.fromkeys(row["grows"] for row in result["rows"]):
        text += ["", f"## {name.capitalize()}", "", *table(result["rows"], name)]
    text += ["", "## Ranks", "", "| ranks, one thread each | seconds a step | speedup |", "|--:|--:|--:|"]
    first = result["ranks"][str(RANKS[0])]
    for ranks, seconds in result["ranks"].items():
        text.append(f"| {ranks} | {seconds:.3f} | {first / seconds:.2f} |")
    text += ["", f"## Qwen3-8B on {CARDS} GPUs", "", *arithmetic(plan)]
    return "\n".join([*text, ""])


def paper() -> Plan:
    """The plan of the paper's profile on several cards."""
    config = compose(["profile=paper", "objective=auf"])
    known = material(config)
    return make_plan(config, known.sizes, known.lengths, on_gpu=True, devices=CARDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a cell")
    parser.add_argument("--out", default="benchmarks/scale", help="without its suffix")
    parser.add_argument("--only", action="append", choices=GROWTH, help="just what grows with this; may be repeated")
    parser.add_argument("--cell", nargs=2, metavar=("SETTINGS", "OBJECTIVE"), help="one cell, in this process")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(json.loads(options.cell[0]), options.cell[1], options.steps)))
        return
    measurement, rows, known = Measurement("python benchmarks/scale.py"), list[dict[str, Any]](), dict[str, Any]()
    for name, setting in settings(options.only or list(GROWTH)):
        for objective in OBJECTIVES:
            words = ["--steps", str(options.steps), "--cell", json.dumps(setting), objective]
            key = json.dumps(words)
            if key not in known:  # the step that all have in common is measured once
                known[key] = records.cell("benchmarks.scale", words)
            rows.append({"grows": name, "setting": setting, "objective": objective, **known[key]})
            print(name, setting[name], objective, rows[-1]["seconds"], flush=True)
    ranks = {str(n): round(seconds_over(n, 3 * options.steps), 4) for n in RANKS}
    result = measurement.record("cpu", rows[0]["threads"], rows=rows, ranks=ranks)
    write_json(Path(f"{options.out}.json"), result)
    write_text(Path(f"{options.out}.md"), page(result, paper()))
    print(Path(f"{options.out}.md"))


if __name__ == "__main__":
    main()
