"""Values of a server's JSON, each checked before it is used."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from specauf_cli.engines.client import Client
from specauf_cli.errors import InputError


def as_object(reply: Any, engine: str, client: Client) -> dict[str, Any]:
    """``reply`` as the JSON object that ``engine`` gives there. Errors: InputError for anything else."""
    if not isinstance(reply, dict):
        raise InputError(f"{client.url} answers {json.dumps(reply)[:80]} where {engine} gives an object")
    return reply


def count(values: Mapping[str, Any], key: str, error: Callable[[str], InputError]) -> int:
    """The count under ``key``. Errors: ``error`` of the reason when it is missing or not a count."""
    value = values.get(key)
    if type(value) is not int or value < 0:
        raise error(f"has {key}={value!r}, a count was expected" if key in values else f"has no {key}")
    return value


def agrees(reported: Any, computed: float) -> bool:
    """Whether a reported ratio is the computed one; some versions round it."""
    return type(reported) in (int, float) and math.isclose(reported, computed, rel_tol=0.01, abs_tol=0.01)


def whole_numbers(value: Any) -> tuple[int, ...] | None:
    """A list of ids or counts as a tuple, None for anything else or an empty one."""
    valid = isinstance(value, list) and value and all(type(v) is int and 0 <= v < 2**31 for v in value)
    return tuple(value) if valid else None


def text(value: Any) -> str | None:
    """``value`` if it is a text that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def integer(value: Any) -> int | None:
    """``value`` if it is a whole number, else None."""
    return value if type(value) is int else None
