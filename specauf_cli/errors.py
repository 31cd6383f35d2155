"""What goes wrong, as the one line that a user reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Something the user gave is wrong. Its text is the one line the user reads: what, where, what is valid."""


def first_line(error: BaseException) -> str:
    """What a library says in an error, in one line; the kind of error where it says nothing. A line that ends with a
    colon needs the next."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def whole_text(error: BaseException) -> str:
    """All that a library says in an error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, valid: Iterable[str]) -> str:
    """``' Did you mean X?'`` for the valid name closest to ``word``, or ``''`` when none is close.

    A name of initials is close to its words: ``trainer.lr`` to ``trainer.learning_rate``.
    """
    names = list(valid)
    place, dot, words = word.rpartition(".")
    short = f"{place}{dot}{''.join(part[0] for part in re.split('[_-]', words) if part)}"
    close = [short] if short in names else difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_option(word: str, valid: Iterable[str]) -> InputError:
    """The error for an option that a command does not have, with the nearest of those that it has."""
    names = list(valid)
    return InputError(f"no option {word!r}; valid: {', '.join(names)}.{nearest(word.partition('=')[0], names)}")


class Interrupted(Exception):
    """The user (or the system) asked to stop; everything up to the last finished step is saved."""

    def __init__(self, signum: int, where: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}; saved in {where}")
        self.exit_code = 128 + signum
