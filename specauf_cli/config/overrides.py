"""Overrides as words of a command line: their keys, and the folder of the runs that they name."""

import os
from collections.abc import Collection, Sequence

from specauf_cli.config.groups import check_once
from specauf_cli.errors import InputError


def overrides_of(words: Sequence[str] | None) -> list[str]:
    """``words`` as overrides. Errors: InputError for a word that is not an override."""
    for word in words or []:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{word!r} is not an override; write key=value, for example profile=smoke")
    check_once(words or [])
    return list(words or [])


def key_of(word: str) -> str:
    """The setting or group that an override sets; its prefix (``+``, ``++``, ``~``) and package are left out."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def value_of(word: str) -> str:
    """The value of an override as it was typed, without quotes around it."""
    return word.partition("=")[2].strip("'\"")


def setting(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Those of ``words`` that set one of ``keys``, or something inside it."""
    return [w for w in words if any(key_of(w) == k or key_of(w).startswith(f"{k}.") for k in keys)]


def runs_words(words: Sequence[str]) -> list[str]:
    """Those of ``words`` that name the folder of the runs."""
    return setting(words, ["runs"])


def runs_folder(words: Sequence[str]) -> str:
    """The folder that ``runs=...`` names among ``words``. Errors: InputError for an empty one."""
    given = [value_of(w) for w in runs_words(words)]
    if given and not given[-1]:
        raise InputError("runs= is empty; it names the folder of the runs, for example runs=runs")
    folder = os.path.expanduser(given[-1]) if given else "runs"
    check_folder(folder)
    return folder


def check_folder(runs: str) -> None:
    """InputError when the folder of the runs is a file."""
    if os.path.exists(runs) and not os.path.isdir(runs):
        raise InputError(f"runs={runs} is a file; it names the folder of the runs, for example runs=runs")


def runs_folder_only(words: Sequence[str]) -> str:
    """The same for a command that takes no other setting."""
    other = next((w for w in words if w not in runs_words(words)), None)
    if other is not None:
        raise InputError(f"{other!r}: this command takes no setting but runs=FOLDER")
    return runs_folder(words)
