"""HTTP to one server: JSON in and out, timeouts, retries with exponential back-off. Standard library only."""

import http.client
import ipaddress
import json
import re
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from specauf_cli.schema import InputError

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before the first retry, doubled before each further one up to the longest."""

ABSENT = (404, 405, 501)
BUSY = (408, 425, 429)
"""Answers of the 4xx kind that another try may turn."""


class Unanswered(InputError):
    """The server gave no usable answer, however often it was asked."""


class Refused(InputError):
    """The server understood and said no: its status is ``status``."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """One server. ``failures`` counts failed tries; ``stop`` ends waiting and retrying of every thread that shares it."""

    def __init__(self, url: str, *, timeout: float, retries: int, key: str | None = None) -> None:
        """``timeout`` seconds per try, ``retries`` after the first; ``key`` is sent as a bearer token. Errors: InputError."""
        self.url = checked(url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError(
                "SPECAUF_API_KEY holds a character that no key can have; is there a line break at its end?"
            )
        if not 0 < timeout <= 86400 or not 0 <= retries <= 100:
            raise InputError(
                f"--timeout {timeout:g} --retries {retries}: valid are seconds up to 86400, and 0..100 retries"
            )
        self.timeout, self.retries, self.failures = timeout, retries, 0
        self.stop, self._lock = threading.Event(), threading.Lock()
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # A proxy of the environment is for the outside, never for a server on this machine.
        self._open = (urllib.request.build_opener(urllib.request.ProxyHandler({})) if _is_here(self.url) else urllib.request.build_opener()).open  # fmt: skip

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST. Errors: Unanswered after all tries, Refused for a 4xx."""
        return self._json(path, json.dumps(body).encode())

    def first(self, *paths: str) -> Any:
        """The JSON answer to a GET of the first of ``paths`` that is there. Errors: as ``post``; Refused when none is."""
        for path in paths[:-1]:
            try:
                return self._json(path, None)
            except Refused as error:
                if error.status not in ABSENT:
                    raise
        return self._json(paths[-1], None)

    def text(self, path: str) -> str:
        """The text answer to a GET."""
        return self._tries(path, None, lambda raw: raw.decode("utf-8", "replace"))  # type: ignore[no-any-return]

    def _json(self, path: str, body: bytes | None) -> Any:
        return self._tries(path, body, json.loads)

    def _tries(self, path: str, body: bytes | None, read: Any) -> Any:
        delay, reason = FIRST_DELAY, ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.stop.wait(delay)
                delay = min(2 * delay, LONGEST_DELAY)
            if attempt and self.stop.is_set():
                break
            try:
                request = urllib.request.Request(self.url + path, body, self._headers)
                with self._open(request, timeout=self.timeout) as answer:
                    raw = answer.read()
                return read(raw)
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code in (401, 403):
                    said += " (SPECAUF_API_KEY is to hold the server's key)"
                if error.code < 500 and error.code not in BUSY:
                    raise Refused(f"{self.url}{path} refused with {error.code}: {said}", error.code) from error
                if error.code in ABSENT:
                    raise Refused(f"{self.url}{path} is not there ({error.code})", error.code) from error
                reason = f"{error.code}: {said}"
            except TimeoutError as error:
                reason = _why(error, self.timeout)
            except urllib.error.URLError as error:
                reason = _why(error.reason, self.timeout)
            except (OSError, http.client.HTTPException) as error:
                reason = f"the connection broke ({type(error).__name__})"
            except (ValueError, RecursionError):
                reason = f"not JSON: {raw[:60]!r}"
            with self._lock:
                self.failures += 1
        raise Unanswered(f"{self.url}{path}: {reason}; tried {attempt + 1} times")


def checked(url: str) -> str:
    """``url`` without a trailing slash or ``/v1``. Errors: InputError for anything but http(s)://HOST[:PORT][/PATH]."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna")  # a ValueError for an empty label, as in 127.0..1
        whole = parts.scheme in ("http", "https") and host and (parts.port is None or parts.port > 0)
        whole = whole and url.isascii() and not re.search(r"\s", url.strip())
    except ValueError:
        whole = False
    if not whole or parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"--base-url {url!r}: give http://HOST:PORT, for example http://127.0.0.1:30000")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"), "", ""))


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(cause: object, timeout: float) -> str:
    if isinstance(cause, TimeoutError):
        return f"no answer in {timeout:g} s (--timeout)"
    return str(getattr(cause, "strerror", None) or cause)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words, in one line."""
    try:
        raw = error.read(4000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        raw = ""
    try:
        found = json.loads(raw)
        inner = found.get("error", found) if isinstance(found, dict) else found
        raw = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except ValueError:
        pass
    return " ".join(raw.split())[:200] or str(error.reason)
