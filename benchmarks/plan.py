"""What `specauf plan` estimates against what a training takes.

    python benchmarks/plan.py        some eight minutes on 2 cores; writes benchmarks/plan.json

Every cell, in a process of its own: the seconds of a step as the plan measures them on random weights, then a real
training of laptop sizes (its target trained for a few steps only: a step takes as long). The ratio is planned /
measured seconds; the goal is 0.7 to 1.3. Memory: planned, and by how much the peak of the process grew. Written after
every cell; with --only, beside the other cells of the record.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.families import FAMILIES
from benchmarks.records import Measurement
from specauf_cli.config.compose import compose
from specauf_cli.store.files import read_json, write_json
from specauf_cli.store.provenance import peak_memory_mib

CELLS = {
    "DFlash AUF": ["objective=auf"],
    "DFlash decay": ["objective=decay"],
    "DFlash decay, fp32": ["objective=decay", "trainer.precision=fp32"],
    "DFlash AUF, five layers": ["objective=auf", "backbone.layers=5"],
    "Domino B-AUF": ["objective=b_auf", "backbone=domino"],
    "DFlash AUF, accumulated": ["objective=auf", "trainer.micro_batch=4"],
    **{family: ["objective=auf", f"target={family}"] for family in FAMILIES},
}


def cell(overrides: list[str], steps: int) -> dict[str, float]:
    """Planned and measured seconds of a step, planned and measured memory (MiB)."""
    import torch

    from specauf_cli.planning import calibration
    from specauf_cli.planning.plan import make_plan
    from specauf_cli.runtime.machine import use_machine
    from specauf_cli.session import open_session
    from specauf_cli.store import layout

    with tempfile.TemporaryDirectory() as folder:
        small = [f"runs={folder}", "target.pretrain.steps=5", f"trainer.steps={steps}", "trainer.snapshot_every=null"]
        config = compose([*overrides, *small])
        device = use_machine(config)
        session = open_session(config)
        session.examples()
        material = calibration.material(config)
        plan = make_plan(config, material.sizes, material.lengths)
        planned = calibration.seconds_per_step(plan, material, device)
        before = peak_memory_mib()
        taken = layout.result_of(session.train(config, overrides))
        grown = taken["peak_memory_mib"] - before
        again = calibration.seconds_per_step(plan, material, device)
    measured = taken["seconds"] / steps
    return {
        "planned": round(planned, 4),
        "planned again, afterwards": round(again, 4),
        "measured": round(measured, 4),
        "ratio": round(planned / measured, 2),
        "planned memory": round(sum(plan.memory.values()) / 2**20, 1),
        "peak grew by": round(grown, 1),
        "threads": torch.get_num_threads(),
    }


def rows_of(path: Path) -> dict[str, Any]:
    """The cells of a record, each with its commit and date; older records note them once, for all."""
    if not path.is_file():
        return {}
    record = read_json(path)
    return {name: {"code": record["code"], "date": record["date"], **row} for name, row in record["rows"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", default="benchmarks/plan.json")
    parser.add_argument("--only", action="append", choices=CELLS, help="just this cell; may be repeated")
    parser.add_argument("--cell", help="one cell, in this process")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(CELLS[options.cell], options.steps)))
        return
    out, goal = Path(options.out), "planned / measured seconds of a step within 0.7 .. 1.3"
    for name in options.only or CELLS:
        measurement = Measurement(f"python benchmarks/plan.py --steps {options.steps}")
        found = records.cell("benchmarks.plan", ["--steps", str(options.steps), "--cell", name])
        about = measurement.record("cpu", found["threads"], goal=goal)
        row = {**found, "code": about["code"], "date": about["date"]}
        kept = rows_of(out) if options.only or name != next(iter(CELLS)) else {}
        write_json(out, {**about, "rows": {**kept, name: row}})
        print(name, row, flush=True)


if __name__ == "__main__":
    main()
