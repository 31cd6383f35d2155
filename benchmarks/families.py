"""What holds for a target of each family that is trained here: exactness, the doctor, the public formats.

    python -m benchmarks.families                  ten minutes a family on 2 cores, half of it training what is missing
    python -m benchmarks.families --only tiny_llama

Of a DFlash AUF drafter of the laptop profile: every answer decoded live in fp32 at T = 0 and T = 1 (drawn by Gumbel
noise) is the target's own, and has the rounds of the replay; the doctor's verdicts on the run; both public layouts,
exported in fp32 and imported, give the same tensors. Written to benchmarks/families.json after every family;
benchmarks/family_table.py shows it.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.records import Measurement
from specauf_cli.store.files import read_json, write_json

FAMILIES = ("tiny_llama", "tiny_mistral", "tiny_gemma", "tiny_olmo2", "tiny_neox", "tiny_qwen3_moe")
LAYOUTS = ("hf", "vllm")
RECORD = Path("benchmarks/families.json")


def cell(family: str, runs: str, more: list[str]) -> dict[str, Any]:
    """All of one family; its target and drafter are trained if they are missing."""
    import torch
    from safetensors.torch import load_file

    from specauf_cli.config.compose import compose
    from specauf_cli.doctor.examination import FAIL, WARN, Subject, examine
    from specauf_cli.interchange.export import export_drafter
    from specauf_cli.interchange.imports import adopt
    from specauf_cli.session import open_session
    from specauf_cli.store import layout

    words = ["profile=laptop", f"target={family}", "backbone=dflash", "objective=auf", *more]
    config = compose([*words, f"runs={runs}"])
    session = open_session(config)
    run = session.train(config, words)
    audited = [f"runs={runs}", "evaluation.audit=null", "evaluation.temperatures=[0.0,1.0]", "evaluation.draw=gumbel"]
    record = session.measure(compose([*words, *audited]), run, [*words, *audited])
    exact = {}
    for temperature in (0.0, 1.0):
        audits = [b.audit for b in record.benchmarks if b.temperature == temperature]
        exact[f"{temperature:g}"] = {
            "requests": sum(a.requests for a in audits),
            "outputs": sum(a.identical for a in audits),
            "rounds": sum(a.same_rounds for a in audits),
        }
    findings = dict(examine(Subject(config, run)))
    same = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in LAYOUTS:
            export = export_drafter(run, Path(folder) / name, layout=name, dtype="fp32")
            known = ["profile=laptop", f"target={family}", f"target.path={session.target.config.path}"]
            imported = adopt(str(export), [*known, f"runs={folder}/{name}-runs"])
            ours, theirs = (load_file(layout.weights_of(place)) for place in (run, imported))
            same[name] = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return {
        "run": run.name,
        "parameters": session.target.model.num_parameters(),
        "exact": exact,
        "doctor": dict(Counter(finding.verdict for finding in findings.values())),
        "findings": {name: f.found for name, f in findings.items() if f.verdict in (WARN, FAIL)},
        "imported": same,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAMILIES, help="just this one; may be repeated")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--cell", choices=FAMILIES, help="one family, in this process")
    parser.add_argument("settings", nargs="*", help="more settings of the training")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options.cell, options.runs, options.settings)))
        return
    for family in options.only or FAMILIES:
        command = ["python", "-m", "benchmarks.families", "--only", family, *options.settings]
        measurement = Measurement(shlex.join(command))
        found = records.cell("benchmarks.families", ["--cell", family, "--runs", options.runs, *options.settings])
        about = measurement.record("cpu", found.pop("threads"))
        row = {**found, "command": about["command"], "code": about["code"], "date": about["date"]}
        kept = read_json(options.out)["rows"] if options.out.is_file() else {}
        write_json(options.out, {**about, "rows": {**kept, family: row}})
        print(family, json.dumps(row["exact"]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
