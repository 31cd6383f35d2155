"""Overrides as words of a command line, before they are composed."""

import os
from collections.abc import Sequence

from specauf_cli.errors import InputError


def overrides_of(words: Sequence[str] | None) -> list[str]:
    """``words`` as overrides. Errors: InputError for a word that is none."""
    for word in words or []:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{word!r} is not an override; write key=value, for example profile=smoke")
    return list(words or [])


def runs_words(overrides: Sequence[str]) -> list[str]:
    """Those of ``overrides`` that name the folder of the runs."""
    return [o for o in overrides if o.lstrip("+").startswith("runs=")]


def runs_folder(overrides: Sequence[str]) -> str:
    """The folder that ``runs=...`` names among ``overrides``. Errors: InputError for an empty one."""
    given = [o.partition("=")[2].strip("'\"") for o in runs_words(overrides)]
    if given and not given[-1]:
        raise InputError("runs= is empty; it names the folder of the runs, for example runs=runs")
    return os.path.expanduser(given[-1]) if given else "runs"


def runs_folder_only(overrides: Sequence[str]) -> str:
    """The same for a command that takes no other setting."""
    for override in overrides:
        if override.partition("=")[0].lstrip("+") != "runs":
            raise InputError(f"{override!r}: this command takes no setting but runs=FOLDER")
    return runs_folder(overrides)
