"""Where the yaml files are, the shipped ones and the user's own, and which choices they offer."""

import os
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from specauf_cli.errors import InputError, nearest


def folder(name: str) -> Path:
    """``conf`` or ``experiments``: inside the package when installed from a wheel, else at the top of the checkout."""
    here = Path(__file__).resolve().parent.parent
    inside = here / name
    return inside if inside.is_dir() else here.parent / name


OWN = "SPECAUF_CONF"
"""Environment variable: a folder of the user's own yaml files, laid out as ``conf/``. Every command and worker sees
it."""


NAMED = ("objective", "backbone")
"""Groups whose choices name runs."""


def own_folder() -> Path | None:
    """The user's folder that ``SPECAUF_CONF`` names. Errors: InputError when there is none, or a file in it has a
    shipped one's name, or an objective or backbone in it another name than its file."""
    if not os.environ.get(OWN):
        return None
    own = Path(os.environ[OWN]).expanduser().resolve()
    if not own.is_dir():
        raise InputError(f"{OWN}={own}: there is no such folder; it holds your own yaml files, as objective/NAME.yaml")
    for path in sorted(own.glob("*/*.yaml")):
        if (folder("conf") / path.relative_to(own)).is_file() and own != folder("conf"):
            raise InputError(
                f"{path}: there is a shipped {path.parent.name} of this name, which it would not replace; rename it"
            )
        name = re.search(r"^name:[ \t]*['\"]?([\w.-]+)", path.read_text("utf-8", "replace"), re.MULTILINE)
        if path.parent.name in NAMED and (name is None or name[1] != path.stem):
            given = "it has none" if name is None else f"not {name[1]}"
            raise InputError(f"{path}: its `name:` must be {path.stem}, as the file's, {given}; runs are called by it")
    return own


def groups() -> dict[str, list[str]]:
    """The configuration groups and their choices, the user's own (``SPECAUF_CONF``) among them."""
    choices: dict[str, list[str]] = {}
    for root in filter(None, (folder("conf"), own_folder())):
        for path in glob("*/*.yaml", root_dir=root):
            group, name = os.path.split(path.removesuffix(".yaml"))
            choices.setdefault(group, []).append(name)
    return {group: sorted(set(choices[group])) for group in sorted(choices)}


def file_of(group: str, name: str) -> Path:
    """The yaml of a choice, shipped or the user's own. Errors: InputError for an unknown one."""
    check_choices([f"{group}={name}"])
    roots = [folder("conf"), *([own] if (own := own_folder()) else [])]
    return next(path for root in roots if (path := root / group / f"{name}.yaml").is_file())


def check_choices(overrides: Sequence[str]) -> None:
    """InputError for a malformed override or an unknown choice of a known group."""
    known = groups()
    for override in overrides:
        match = re.fullmatch(r"([+~]*)([\w./@]+)(=.*)?", override, re.DOTALL)
        if match is None or (match[3] is None and not match[1].startswith("~")):
            raise InputError(
                f"{override!r} is not an override; write key=value, for example objective=auf or trainer.steps=500"
            )
        name, value = match[2].split("@")[0], (match[3] or "=")[1:]
        if name not in known:
            continue
        if match[1].startswith("~") or value in ("", "null") or (value.startswith("[") and name != "benchmark"):
            raise InputError(
                f"{override!r}: {name} is one of {', '.join(known[name])}, for example {name}={known[name][0]}"
            )
        if re.search(r"[(\[{$]", value):
            continue
        for choice in value.split(","):
            if choice not in known[name]:
                raise InputError(
                    f"unknown {name} {choice!r}; valid: {', '.join(known[name])}.{nearest(choice, known[name])}"
                )


def check_once(overrides: Sequence[str]) -> None:
    """InputError where a command line gives a group two choices: all but the last would be lost without a word."""
    given = dict[str, str]()
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and given.setdefault(name, value) != value and name in groups():
            raise InputError(
                f"{name} is given twice, as {given[name]} and as {value}; -m {name}={given[name]},{value} trains both"
            )
