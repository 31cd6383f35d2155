"""The runs of the smoke table for the tests of one file: other files train and measure more in the shared folder."""

import json
import shutil
from pathlib import Path


def written(path: Path) -> str:
    """When a record was written."""
    return str(json.loads(path.read_text())["written"])


def first_runs(source: Path, place: Path) -> Path:
    """A copy of ``source``'s runs in ``place``: the first measured of every backbone and objective, with its first
    record."""
    shutil.copytree(source / "runs", place / "runs")
    started: dict[Path, str] = {}
    for about in (place / "runs").glob("*/run.json"):
        records = sorted(about.parent.glob("records/*.json"), key=written)
        started[about.parent] = json.loads(about.read_text())["started"] if records else "~"
        for later in records[1:]:
            later.unlink()
    kept: set[str] = set()
    for run in sorted(started, key=lambda run: started[run]):
        name = run.name.rpartition("-")[0]
        if name in kept or started[run] == "~":
            shutil.rmtree(run)
        kept.add(name)
    return place
