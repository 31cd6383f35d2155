"""HTTP to one server: JSON in and out, timeouts, retries with exponential back-off. Standard library only."""

import http.client
import io
import ipaddress
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from specauf_cli.errors import InputError

LARGEST = 64 * 2**20
"""Bytes of one answer; more is no answer of these servers."""

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


class _Timed(io.RawIOBase):
    """What a connection receives until ``ends`` (``time.monotonic``). Errors: TimeoutError afterwards."""

    def __init__(self, connection: socket.socket, ends: float) -> None:
        self._connection, self._ends = connection, ends
        self._raw = connection.makefile("rb", buffering=0)  # keeps the connection open until this is closed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._connection.settimeout(_left(self._ends))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that is whole, headers included, before the timeout of its connection is over; else TimeoutError."""

    def __init__(self, sock: socket.socket, *args: Any, **words: Any) -> None:
        super().__init__(sock, *args, **words)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, time.monotonic() + (sock.gettimeout() or 0.0)))


class _Whole(http.client.HTTPConnection):
    """One request and its answer within ``timeout`` seconds; the library allows as many for every single read."""

    response_class = _Answer

    def connect(self) -> None:
        self._ends = time.monotonic() + (self.timeout or 0.0)
        super().connect()
        self.sock.settimeout(_left(self._ends))

    def getresponse(self) -> http.client.HTTPResponse:
        self.sock.settimeout(_left(self._ends))
        return super().getresponse()


class _WholeTLS(_Whole, http.client.HTTPSConnection):
    """The same over TLS."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Whole, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_WholeTLS, req)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: only the address that was given is contacted, a key goes nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _left(ends: float) -> float:
    """Seconds until ``ends``. Errors: TimeoutError when there are none."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Client:
    """One server. ``failures`` counts failed tries; ``stop`` ends waiting and retrying of every thread that shares
    it."""

    def __init__(self, url: str, *, timeout: float, retries: int, key: str | None = None) -> None:
        """``timeout`` seconds per try, its whole answer included; ``retries`` after the first.

        ``key`` is sent as a bearer token. Errors: InputError for what none of them can be.
        """
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
        proxy = [urllib.request.ProxyHandler({})] if _is_here(self.url) else []
        self._open = urllib.request.build_opener(_Http, _Https, _Stay, *proxy).open

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST. Errors: Unanswered after all tries, Refused for a 4xx."""
        return self._json(path, json.dumps(body).encode())

    def first(self, *paths: str) -> Any:
        """The JSON answer to a GET of the first of ``paths`` that is there. Errors: as ``post``; Refused when none
        is."""
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
                    raw = self._body(answer, path)
                return read(raw)
            except InputError:  # is a ValueError, but no other try turns it
                raise
            except urllib.error.HTTPError as error:
                if 300 <= error.code < 400:
                    place = error.headers.get("Location", "nowhere")[:200]
                    raise InputError(
                        f"{self.url}{path} redirects to {place!r} ({error.code}), and only the address that was given "
                        "is asked: give --base-url of the server itself"
                    ) from error
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

    def _body(self, answer: Any, path: str) -> bytes:
        """All of ``answer``. Errors: InputError beyond ``LARGEST`` bytes, IncompleteRead for one that broke off."""
        raw: bytes = answer.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise InputError(
                f"{self.url}{path} answers with more than {LARGEST / 2**20:g} MiB; is it an SGLang or vLLM server?"
            )
        told = answer.headers.get("Content-Length", "")
        if told.isdigit() and len(raw) < int(told):  # read with a bound does not say so itself
            raise http.client.IncompleteRead(raw, int(told) - len(raw))
        return raw


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
