"""Signatures that tell what this user typed from what came with a folder; the key stays in the user's account.

A run folder holds the overrides it was trained with. Those that this user typed carry a signature; a folder from
elsewhere, or one that was altered, has no valid signature. The key is 32 random bytes in
``$XDG_STATE_HOME/specauf/key`` (``~/.local/state`` by default), readable by its owner only.
"""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from specauf_cli.store.files import create_private


def sign(value: Any) -> str | None:
    """HMAC-SHA-256 of a JSON value, hex digits; None where no key can be kept (a read-only home): nothing is signed."""
    key = _key(create=True)
    return None if key is None else _digest(key, value)


def is_own(value: Any, signature: object) -> bool:
    """True when ``signature`` is what ``sign`` gave this user for ``value``."""
    key = _key(create=False)
    return key is not None and isinstance(signature, str) and hmac.compare_digest(_digest(key, value), signature)


def _digest(key: bytes, value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes | None:
    try:
        path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "specauf" / "key"
        if create and not path.is_file():
            create_private(path, secrets.token_bytes(32))
        key = path.read_bytes()
    except (OSError, RuntimeError):  # no such file; RuntimeError: a user without a home
        return None
    return key if len(key) == 32 else None
