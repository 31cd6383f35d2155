"""What a configuration's target is called, and how configurations were written before names replaced import paths."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specauf_cli.config.schema import FORMER_NORMALIZERS
from specauf_cli.errors import InputError


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
    )  # a target that is loaded is not trained here, even if a profile says how
    short = str(path if name is None else name).rstrip("/").rsplit("/", 1)[-1]
    if name is None or "/" in str(name):
        name = re.sub(r"[^A-Za-z0-9._+-]", "-", short).lstrip("._+-") or "target"
    return {**target, "name": name, "path": path, "title": short if title is None else title, "pretrain": pretrain}


def is_local(path: Any) -> bool:
    """True for a folder or file of this machine, False for an id of the hub (or no text at all)."""
    return isinstance(path, str) and (path.startswith(("/", ".", "~")) or (bool(path) and Path(path).exists()))


def upgraded(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration in today's form. Until version 0.1 credits and backbones were named by import paths:

    ``base: {_target_: specauf_cli.objectives.credits.decay, _partial_: true, gamma: 7}`` is ``{credit: decay, gamma:
    7}`` now, and ``model: {_target_: specauf_cli.models.dflash.DFlash, ...}`` is ``kind: dflash`` with ``knobs``. The
    normalisers ``batch`` and ``block`` are called ``credit`` and ``block_credit`` now.
    """
    new = dict(resolved)
    objective, backbone = dict(resolved.get("objective") or {}), dict(resolved.get("backbone") or {})
    for branch in ("base", "final"):
        if isinstance(objective.get(branch), Mapping) and "_target_" in objective[branch]:
            path, knobs = _named_code(objective[branch], "specauf_cli.objectives.credits.")
            objective[branch] = {"credit": path, **knobs}
    if isinstance(backbone.get("model"), Mapping) and "_target_" in backbone["model"]:
        path, knobs = _named_code(backbone.pop("model"), "specauf_cli.models.")
        shipped = {"dflash.DFlash": "dflash", "domino.Domino": "domino"}
        backbone |= {"kind": shipped.get(path, path), **({"knobs": knobs} if knobs else {})}
    for today, former in FORMER_NORMALIZERS.items():
        if (new.get("trainer") or {}).get("normalize") == former:
            new["trainer"] = {**new["trainer"], "normalize": today}
    return {**new, "objective": objective, "backbone": backbone}


def _named_code(old: Mapping[str, Any], home: str) -> tuple[str, dict[str, Any]]:
    """What ``_target_`` named, without its shipped home, and the other keys."""
    return str(old["_target_"]).removeprefix(home), {k: v for k, v in old.items() if k not in ("_target_", "_partial_")}
