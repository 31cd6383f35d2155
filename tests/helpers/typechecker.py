"""What jaxtyping's import hook checks arguments and results with."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from beartype import BeartypeConf, beartype

ENOUGH = 2
"""Checks of one function in one test: every kind of call is among the first, and a loop would spend most of its time on
checks."""

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An ``int`` is a ``float``, as for mypy (PEP 484)."""

_checks: dict[tuple[str, str, str], Callable[..., Any]] = {}
_calls = Counter[tuple[str, str]]()
_left_alone: list[Any] = []


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """``signature`` with its annotations checked on the first calls of a test.

    jaxtyping passes functions without a body, so two of a name with equal annotations have the same checks. A function
    inside another one is defined again on every call of the outer one; beartype would generate its checks every time.
    """
    key = (signature.__module__, signature.__qualname__, repr(signature.__annotations__))
    if key not in _checks:
        _checks[key] = _counted(_check(signature), key[:2])
    return _checks[key]


def again() -> None:
    """Checks every function anew: another test begins."""
    _calls.clear()
    while _left_alone:
        del _left_alone.pop().__no_type_check__


def _counted(check: Callable[..., Any], name: tuple[str, str]) -> Callable[..., Any]:
    @functools.wraps(check)
    def call(*args: Any, **kwargs: Any) -> Any:
        _calls[name] += 1
        if _calls[name] == ENOUGH:
            _leave_alone(*name)
        return check(*args, **kwargs)

    return call


def _leave_alone(module: str, qualname: str) -> None:
    """Tells jaxtyping's wrapper not to check a function any more; one that is inside another is always checked."""
    if "<locals>" in qualname:
        return
    try:
        found = attrgetter(qualname)(sys.modules[module])
    except AttributeError:  # a property, a class made by a decorator
        return
    function = inspect.unwrap(found)
    if inspect.isfunction(function):
        function.__no_type_check__ = True
        _left_alone.append(function)
