"""What tells runs apart: the settings in which they differ, in a few words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specauf_cli.config.identity import upgraded

NAMED = ("name", "title", "backbones", "aliases", "credit", "kind")
"""Keys that are implied by the name of a choice."""
MOST = 3


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each resolved config the training settings in which they differ, as ``gamma 1.65, trainer.steps 500``.

    A knob of the objective has its short name, other settings their dotted key; a setting that only some have does not
    count as different. Of more than three the rest is counted. Empty where nothing differs.
    """
    flat = [_flat(upgraded(c)) for c in configs]
    keys = dict.fromkeys(k for f in flat for k in f)
    differ = [k for k in keys if len({f[k] for f in flat if k in f}) > 1]
    found = []
    for settings in flat:
        own = [f"{k} {settings[k]}" for k in differ if k in settings]
        rest = [f"and {len(own) - MOST} more"] if len(own) > MOST else []
        found.append(", ".join([*own[:MOST], *rest]))
    return found


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings by the name under which they are shown, as text."""
    found = {}
    for group in ("objective", "backbone", "trainer", "data", "target"):
        part = config.get(group) or {}
        if group == "objective":
            found.update(_knobs(part))
            found.update({"final reads": _text(part["final_reads"])} if part.get("final_reads") else {})
        else:
            found.update({f"{group}.{k}": _text(v) for k, v in part.items() if k not in NAMED and k != "knobs"})
    return found


def _knobs(objective: Mapping[str, Any]) -> dict[str, str]:
    """Knobs of the branches: one value where all branches share it, else one for each."""
    branches = {b: objective[b] for b in ("base", "final") if isinstance(objective.get(b), Mapping)}
    found = {}
    for knob in dict.fromkeys(k for part in branches.values() for k in part if k not in NAMED):
        values = {b: _text(part[knob]) for b, part in branches.items() if knob in part}
        each = ", ".join(f"{v} ({b})" for b, v in values.items())
        found[knob] = next(iter(values.values())) if len(set(values.values())) == 1 else each
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
