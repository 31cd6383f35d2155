"""Every setting for a reader: ``specauf train --help`` and ``docs/configuration.md``, both from the schema."""

import json
import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from specauf_cli.config import compose
from specauf_cli.config.groups import groups
from specauf_cli.config.settings import Setting, settings

PROFILES = ("laptop", "smoke", "cpu_real", "h200", "single_gpu", "paper")
"""The order of the columns; a profile of the user's own is not in the document."""

MISSING = object()
"""What a profile does not have: the sizes of a target that it does not train."""

COUNTS = {
    "run": "the run: another value is another run, with an id of its own",
    "record": "the record: written down, the run stays the same",
    "machine": "this machine: neither",
}


def train_help() -> str:
    """What ``specauf train --help`` prints: the command, its groups and every setting."""
    lines = [
        "specauf train [OPTION]... [KEY=VALUE]...",
        "",
        "Train one drafter; with -m one for every combination of comma-separated values.",
        "",
        "  -m, --multirun  a sweep: specauf train -m objective=full_ce,auf seed=0,1",
        "  --together      all drafters of a sweep in one pass over data and target",
        "  --eval          measure each when it is trained",
        "  --force         train a finished one again; the old one is kept in runs/aside/",
        "  --cfg job       print the composed configuration",
        "",
        "Groups (group=choice):",
    ]
    for group, choices in groups().items():
        lines += textwrap.wrap(f"{group}: {', '.join(choices)}", 100, initial_indent="  ", subsequent_indent="    ")
    lines += ["", "Settings (key=value); docs/configuration.md has their values in each profile:"]
    for setting in settings():
        meaning = f" · {setting.meaning.replace('``', '')}" if setting.meaning else ""
        text = f"{setting.key}: {setting.valid}{meaning}"
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def document() -> str:
    """``docs/configuration.md``: every setting with its meaning, what is valid, and its value in each profile."""
    values = {p: compose.plain_values([f"profile={p}", "data_root=DIR"]) for p in PROFILES}
    domino = {p: compose.plain_values([f"profile={p}", "data_root=DIR", "backbone=domino"]) for p in PROFILES}
    text = [
        "# Configuration",
        "",
        "Every setting, from `specauf_cli/config/schema.py`; a test keeps this page in step "
        "(`python -m specauf_cli.config.reference` writes it). Values are those of "
        f"`specauf train profile=NAME`; where profiles differ, each is named. {'; '.join(_counts())}.",
        "",
        "Choose with `group=choice`, change with `group.key=value`:",
        "",
        *(f"- `{group}`: {', '.join(f'`{c}`' for c in choices)}" for group, choices in groups().items()),
        "",
    ]
    order = list(dict.fromkeys(map(_group, settings())))
    for group, members in groupby(sorted(settings(), key=lambda s: order.index(_group(s))), key=_group):
        text += [f"## {group}", "", "| setting | meaning | valid | value | counts for |", "|---|---|---|---|---|"]
        for setting in members:
            source = domino if setting.key.startswith(("backbone.knobs", "objective.final")) else values
            shown = _value(setting, source)
            row = [f"`{setting.key}`", _cell(setting.meaning), _cell(setting.valid), shown, setting.counts]
            text.append(f"| {' | '.join(row)} |")
        text.append("")
    return "\n".join(text)


def _counts() -> list[str]:
    return [f"**{word}** counts for {meaning}" for word, meaning in COUNTS.items()]


def _group(setting: Setting) -> str:
    parts = setting.key.split(".")
    if len(parts) == 1:
        return "general"
    return ".".join(parts[:2]) if parts[1] in ("pretrain", "sizes") else parts[0]


def _value(setting: Setting, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Its value, once where all profiles agree, else by profile; empty where it is named by the user (``*``)."""
    if "*" in setting.key.split("."):
        return ""
    shown = {profile: _shown(_at(content, setting.key)) for profile, content in values.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{', '.join(profiles)} {value}" for value, profiles in _inverted(shown).items())


def _inverted(shown: Mapping[str, str]) -> dict[str, list[str]]:
    """The profiles of every value."""
    profiles: dict[str, list[str]] = {}
    for profile, value in shown.items():
        profiles.setdefault(value, []).append(profile)
    return profiles


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return MISSING
        values = values[part]
    return values


def _shown(value: Any) -> str:
    if value is MISSING:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value)
    return _cell(f"`{text}`" if len(text) <= 40 else f"`{text[:37]}...`")


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    from pathlib import Path

    Path("docs/configuration.md").write_text(document(), "utf-8")
