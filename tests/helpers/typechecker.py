"""What jaxtyping's import hook checks arguments and results with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An ``int`` is a ``float``, as for mypy (PEP 484)."""

_checks: dict[tuple[str, str, str], Callable[..., Any]] = {}


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """``signature`` with its annotations checked on every call.

    jaxtyping passes functions without a body, so two of a name with equal annotations have the same checks. A function
    inside another one is defined again on every call of the outer one; beartype would generate its checks every time.
    """
    key = (signature.__module__, signature.__qualname__, repr(signature.__annotations__))
    if key not in _checks:
        _checks[key] = _check(signature)
    return _checks[key]
