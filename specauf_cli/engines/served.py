"""What a server reports about itself, the same for both engines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specauf_cli.engines.client import Client, Refused, Unanswered
from specauf_cli.engines.replies import whole_numbers

START = "start it as `specauf serve-command --run RUN` prints"
PRIVATE = re.compile(
    r"key|secret|password|host|addr|ssl|url|log|(^|_)ports?$|internal_states|cert|endpoint|(^|_)env|_dir$|storage"
)
"""Flags that never enter a record: they may name a machine or give access to it."""


@dataclass(frozen=True)
class Served:
    """What a server reports about itself; None: not reported. ``proposals`` draft tokens a round, ``context`` tokens a
    request.

    ``names`` are the names it serves the target by (``name`` is what requests must say), ``dtype`` is that of the
    target's weights (``float32``, ``bfloat16``, ...), ``verification`` the engine's name of how drafts are accepted,
    ``flags`` its settings.
    """

    backend: str
    version: str | None
    name: str
    names: tuple[str, ...]
    drafter: str | None
    algorithm: str | None
    proposals: int | None
    context: int | None
    dtype: str | None
    verification: str | None
    flags: dict[str, Any]

    @property
    def drafter_in_words(self) -> str:
        """The drafter and its draft tokens, as messages name them."""
        drafted = f" with {self.proposals} draft tokens" if self.proposals is not None else ""
        return f"drafter {self.drafter or 'unnamed'}{drafted}"


def dtype_name(value: Any) -> str | None:
    """An engine's name of a dtype, without what it is called in Python; None for ``auto``, which names none."""
    name = str(value or "auto").removeprefix("torch.")
    return {"auto": None, "float": "float32", "half": "float16"}.get(name, name)


def public_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings that were set, without what names a machine."""
    plain = (str, int, float, bool)
    return {k: v for k, v in sorted(flags.items()) if isinstance(v, plain) and v != "" and not PRIVATE.search(k)}


def metrics(client: Client) -> str:
    """The server's Prometheus metrics, empty where it has none."""
    try:
        return client.text("/metrics")
    except Refused:
        return ""


def started(client: Client) -> str | None:
    """The start time of the server's process, from its /metrics; None if they do not contain it."""
    times = re.findall(r"^process_start_time_seconds(?:\{.*\})?\s+(\S+)", metrics(client), re.MULTILINE)
    return " ".join(times) or None


def tokenized(client: Client, model: str, text: str) -> tuple[int, ...] | None:
    """Token ids of ``text`` from the server's own tokenizer, None if it has no /tokenize."""
    try:
        reply = client.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
    except (Refused, Unanswered):
        return None
    return whole_numbers(reply.get("tokens")) if isinstance(reply, dict) else None
