"""Which settings of a run folder are used, and which must come from the user's own command line.

A run folder is data. Its sizes, seeds and names are used. Settings that would run code never are
(``trust_remote_code``, a credit or backbone of the user's own); folders outside the runs folder and interpolations are
used only if this user typed them (``signature``). A refused setting can be given on the command line.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specauf_cli.config import compose, settings
from specauf_cli.config.overrides import key_of, runs_words, setting
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.store import layout


def overrides_of(folder: Path, given: Sequence[str] = (), only: Sequence[str] | None = None) -> list[str]:
    """The overrides that a run was trained with, as far as a folder may bring them; ``runs=`` is left to the caller.

    ``given``: the user's own overrides, which stand in for what would be refused. ``only``: the keys that are wanted
    (None: all of them). Errors: InputError naming the setting.
    """
    about = layout.about_of(folder)
    typed_here = layout.is_signed(about)
    own_keys = {key for key, _ in compose.parsed(given)}
    kept = []
    for word, (key, value) in zip(about["overrides"], compose.parsed(about["overrides"]), strict=True):
        if key == "runs" or (only is not None and key not in only):
            continue
        reason = _runs_code(key, value)
        if not reason and not typed_here and key != "init":  # the weights it began with are not opened again
            reason = _reaches_out(value, folder.resolve().parent)
        if not reason:
            kept.append(word.replace("backbone.model.", "backbone.knobs.", 1))  # its name until version 0.1
        elif key not in own_keys:
            raise InputError(
                f"{folder / layout.ABOUT} asks for {word!r}, which {reason}; a run folder cannot ask for that: if you "
                f"trust it, give {key}=... on the command line yourself"
            )
    return kept


def _runs_code(key: str, value: Any) -> str:
    """Why a setting from a folder could run code; empty if it cannot."""
    for name, inner in _walk(key, value):
        if any(part.startswith("_") and part.endswith("_") for part in name.split(".")):
            return "names code to run"
        if settings.names_code(name):
            if name.endswith("trust_remote_code") and inner is not False:
                return "runs the code of a model's repository"
            if isinstance(inner, str) and "." in inner:  # a bare name is a shipped one
                return "names code to run"
    return ""


def _reaches_out(value: Any, runs_folder: Path) -> str:
    """Why a setting reads outside the runs folder, or the environment; empty when it does not."""
    for _, inner in _walk("", value):
        if not isinstance(inner, str):
            continue
        if "${" in inner:
            return "is an interpolation"
        path = Path(os.path.expanduser(inner))
        inside = path.is_absolute() and path.resolve().is_relative_to(runs_folder)
        if ".." in path.parts or "://" in inner or (path.is_absolute() and not inside):
            return "names a place outside the runs folder"
    return ""


def _walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every plain value inside ``value`` with its dotted key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(key, inner)
    else:
        yield key, value


def configs(folder: Path, extra: Sequence[str], benchmarks: str) -> tuple[Config, Config]:
    """How a run was trained (its data were cleaned of the benchmarks chosen then), and how it is measured now."""

    place = [] if runs_words(extra) else [f"runs={folder.parent}"]
    own, extra = [*overrides_of(folder, extra), *place], list(extra)
    # Answers that were regenerated for its training depend on the evaluation settings used then.
    later = setting(extra, ["benchmark", "evaluation"])
    as_trained = compose.compose([*own, *(o for o in extra if o not in later)])
    layout.check_same_training(as_trained, folder)
    if not later:
        return as_trained, compose.with_benchmarks(as_trained, benchmarks)
    chosen = [w for w in own if not (key_of(w) == "benchmark" and any(key_of(e) == "benchmark" for e in extra))]
    return as_trained, compose.with_benchmarks(compose.compose([*chosen, *extra]), benchmarks)
