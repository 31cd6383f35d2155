"""What of a configuration decides a run's weights, and so its id: not the machine, nor where a folder lies on it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specauf_cli.errors import InputError

MACHINE = (
    "runs",
    "device",
    "threads",
    "workers",
    "together",
    "tracking",
    "data_root",
    "benchmark_root",
    "experiment",
    "init",
)
"""Keys that say where and how to run, not what: they never enter a run's identity or a record."""

UNSAID = {
    "data": ("path", "known"),
    "target": ("attention", "device_map", "sizes"),
}
"""The same inside groups: places, ways to run, and facts that follow from the rest."""


def named(target: Mapping[str, Any]) -> dict[str, Any]:
    """``target`` with the name, path and title that ``target=hf`` leaves open: ``target.name=ORG/NAME`` is a path too.

    Names become part of file names, so a name keeps the last part of a path only. Errors: InputError when both are
    open, or name two repositories.
    """
    name, path, title = (target.get(k) for k in ("name", "path", "title"))
    if name is None and path is None:
        raise InputError(
            "target=hf needs a model of the Hugging Face hub, target.name=ORG/NAME, or a folder, target.path=DIR"
        )
    if path is not None and "/" in str(name) and name != path and not is_local(str(path)):
        raise InputError(f"target.name={name}, but this target is {path}; give target=hf target.name={name}")
    if path is None and (target.get("pretrain") is None or "/" in str(name)):
        path = name
    pretrain = (
        target.get("pretrain") if path is None else None
    )  # what is loaded is not trained here, whatever a profile says
    short = str(path if name is None else name).rstrip("/").rsplit("/", 1)[-1]
    if name is None or "/" in str(name):
        name = re.sub(r"[^A-Za-z0-9._+-]", "-", short).lstrip("._+-") or "target"
    return {**target, "name": name, "path": path, "title": short if title is None else title, "pretrain": pretrain}


def is_local(path: str) -> bool:
    """True for a folder of this machine, False for what is an id of the hub."""
    return path.startswith(("/", ".", "~")) or (bool(path) and Path(path).is_dir())


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain nested values of a configuration, without what says where and how this machine runs it.

    A folder is not named: its content is in the target's fingerprint. What every run once was (a target in fp32,
    original answers) is left out, so that ids from then are ids now.
    """
    found = {k: v for k, v in values.items() if k not in MACHINE}
    for group, keys in UNSAID.items():
        found[group] = {k: v for k, v in values[group].items() if k not in keys}
    if found["target"].get("dtype") == "fp32":
        del found["target"]["dtype"]
    if found["data"].get("regenerate") is None:
        found["data"].pop("regenerate", None)
    if is_local(found["target"].get("path") or ""):
        found["target"]["path"] = "DIR"
    return found
