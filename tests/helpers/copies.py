"""The runs of the smoke table for the tests of one file: other files train and measure more in the shared folder."""

import json
import shutil
from pathlib import Path


def first_runs(source: Path, place: Path) -> Path:
    """``place`` with a copy of ``source``'s runs: of every backbone and objective the one that was finished first."""
    shutil.copytree(source / "runs", place / "runs")
    started: dict[Path, str] = {}
    for about in (place / "runs").glob("*/run.json"):
        finished = (about.parent / "finished.json").is_file()
        started[about.parent] = json.loads(about.read_text())["started"] if finished else "~"
    kept: set[str] = set()
    for run in sorted(started, key=lambda run: started[run]):
        name = run.name.rpartition("-")[0]
        if name in kept or started[run] == "~":
            shutil.rmtree(run)
        kept.add(name)
    return place
