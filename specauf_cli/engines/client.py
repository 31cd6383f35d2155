"""HTTP to one server: JSON in and out, one deadline for a whole answer, retries with exponential back-off.

The timeouts of httpx apply to single reads: a server that sends a byte now and then would never exceed them. The
requests therefore run on an event loop of their own, where ``asyncio.timeout`` bounds everything from the connection to
the last byte; the methods of ``Client`` block and may be called by any number of threads.
"""

import asyncio
import ipaddress
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, wait_exponential

from specauf_cli.errors import InputError

LARGEST = 64 * 2**20
"""Most bytes of one answer; a longer one is refused."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before the first retry, doubled before each further one up to the longest."""

LONGEST_RETRY_AFTER = 300.0
"""Seconds that a server may ask to wait before the next try (``Retry-After``)."""

KEEP_ALIVE = 2.0
"""Seconds for which an idle connection is used again; servers close theirs after five, and may do so at that moment."""

ABSENT = (404, 405, 501)
BUSY = (408, 425, 429)
"""Status codes 4xx after which another try may succeed."""


class Unanswered(InputError):
    """The server gave no usable answer, however often it was asked."""


class Refused(InputError):
    """The server refused the request with the status ``status``."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Failed(Exception):
    """One try without a usable answer; another one may succeed, after ``retry_after`` seconds at the earliest."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Client:
    """One server. ``failures`` counts failed tries; ``stop`` ends waiting and retrying of every thread that shares
    it."""

    def __init__(self, url: str, *, timeout: float, retries: int, key: str | None = None) -> None:
        """``timeout`` seconds per try, its whole answer included; ``retries`` after the first.

        ``key`` is sent as a bearer token. Errors: InputError for an address, a key or a number that is not
        valid.
        """
        self.url, self._key = checked(url), key
        local = _is_local(self.url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError(
                "SPECAUF_API_KEY contains a character that no key can have; does it end with a line break?"
            )
        if not 0 < timeout <= 86400 or not 0 <= retries <= 100:
            raise InputError(
                f"--timeout {timeout:g} --retries {retries}: valid are seconds up to 86400, and 0..100 retries"
            )
        self.timeout, self.retries, self.failures = timeout, retries, 0
        self.stop, self._lock = threading.Event(), threading.Lock()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            self._http = httpx.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
                verify=ssl.create_default_context(),
                timeout=None,
                limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE),
                follow_redirects=False,  # only the address that was given is contacted, a key goes nowhere else
                trust_env=not local,  # a proxy of the environment is for other machines
            )
        except (ValueError, ImportError) as error:
            raise InputError(f"the proxy that this environment names cannot be used: {error}") from error
        self._loop = asyncio.new_event_loop()
        # A daemon, so that an interrupt ends the process at once.
        threading.Thread(target=_serve, args=(self._loop,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection; pending requests are cancelled."""
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST. Errors: Unanswered after all tries, Refused for a 4xx."""
        return self._answer(path, json.dumps(body).encode(), json.loads)

    def first(self, *paths: str) -> Any:
        """The JSON answer to a GET of the first of ``paths`` that is there. Errors: as ``post``; Refused when none
        is."""
        for path in paths[:-1]:
            try:
                return self._answer(path, None, json.loads)
            except Refused as error:
                if error.status not in ABSENT:
                    raise
        return self._answer(paths[-1], None, json.loads)

    def text(self, path: str) -> str:
        """The text answer to a GET. Errors: as ``post``."""
        answer: str = self._answer(path, None, lambda raw: raw.decode("utf-8", "replace"))
        return answer

    def _answer(self, path: str, body: bytes | None, read: Callable[[bytes], Any]) -> Any:
        """``read`` of the answer, asked for until there is one."""
        retrying = Retrying(
            retry=retry_if_exception_type(_Failed),
            stop=self._gives_up,
            wait=_delay,
            sleep=lambda _: None,  # ``_gives_up`` has waited already
            after=self._count_failure,
        )
        try:
            return retrying(self._try, path, body, read)
        except RetryError as error:
            last = error.last_attempt
            raise Unanswered(
                f"{self.url}{path}: {last.exception()}; tried {last.attempt_number} times"
            ) from last.exception()

    def _gives_up(self, state: RetryCallState) -> bool:
        """True after the last try. Else waits before the next one; true, too, when ``stop`` is set meanwhile."""
        return state.attempt_number > self.retries or self.stop.wait(state.upcoming_sleep)

    def _count_failure(self, _: RetryCallState) -> None:
        with self._lock:
            self.failures += 1

    def _try(self, path: str, body: bytes | None, read: Callable[[bytes], Any]) -> Any:
        """One request. Errors: _Failed where another try may succeed, Refused or InputError where none does."""
        try:
            response, raw = asyncio.run_coroutine_threadsafe(self._request(path, body), self._loop).result()
        except TimeoutError as error:
            raise _Failed(f"no answer in {self.timeout:g} s (--timeout)") from error
        except httpx.ConnectError as error:
            raise _Failed(_system_reason(error)) from error
        except httpx.HTTPError as error:
            raise _Failed(f"the connection broke ({type(error).__name__})") from error
        self._check(path, response, raw)
        try:
            return read(raw)
        except (ValueError, RecursionError) as error:
            raise _Failed(f"not JSON: {self._shown(repr(raw[:60]))}") from error

    def _shown(self, text: str) -> str:
        """``text`` of a server without the key that it was sent."""
        return text.replace(self._key, "***") if self._key else text

    async def _request(self, path: str, body: bytes | None) -> tuple[httpx.Response, bytes]:
        """Status, headers and body of one answer. Errors: TimeoutError, httpx.HTTPError, InputError beyond
        ``LARGEST``."""
        raw = bytearray()
        async with (
            asyncio.timeout(self.timeout),
            self._http.stream("GET" if body is None else "POST", self.url + path, content=body) as response,
        ):
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > LARGEST:
                    raise InputError(
                        f"{self.url}{path} answers with more than {LARGEST / 2**20:g} MiB; is it an SGLang or vLLM "
                        "server?"
                    )
        return response, bytes(raw)

    def _check(self, path: str, response: httpx.Response, raw: bytes) -> None:
        """Raises the error that a status other than success means."""
        status = response.status_code
        if response.is_success:
            return
        if 300 <= status < 400:
            place = self._shown(without_secrets(response.headers.get("Location", "nowhere")))[:200]
            raise InputError(
                f"{self.url}{path} redirects to {place!r} ({status}), and only the address that was given is asked: "
                "give --base-url of the server itself"
            )
        message = self._shown(_message(response, raw))
        if status in (401, 403):
            message += " (SPECAUF_API_KEY is to hold the server's key)"
        if status < 500 and status not in BUSY:
            raise Refused(f"{self.url}{path} refused with {status}: {message}", status)
        if status in ABSENT:
            raise Refused(f"{self.url}{path} is not there ({status})", status)
        raise _Failed(f"{status}: {message}", _retry_after(response.headers.get("Retry-After", "")))


def checked(url: str) -> str:
    """``url`` without a trailing slash or ``/v1``. Errors: InputError for anything but http(s)://HOST[:PORT][/PATH]."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").encode("idna")  # a ValueError for an empty label, as in 127.0..1
        valid = parts.scheme in ("http", "https") and host and (parts.port is None or parts.port > 0)
        valid = valid and url.isascii() and not re.search(r"\s", url.strip())
        httpx.URL(url.strip())
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid or parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"--base-url {without_secrets(url)!r}: give http://HOST:PORT, as in http://127.0.0.1:30000")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"), "", ""))


def without_secrets(address: str) -> str:
    """``address`` without user, password, query and fragment: they may give access."""
    shown, *secret = re.split(r"[?#]", address, maxsplit=1)
    shown = re.sub(r"^(\s*[^/]*//)?.*@", lambda m: f"{m[1] or ''}***@", shown)
    return f"{shown}?***" if secret else shown


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Runs ``loop`` until it is stopped, then cancels what is left on it."""
    with asyncio.Runner(loop_factory=lambda: loop):
        loop.run_forever()


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _delay(state: RetryCallState) -> float:
    """Seconds before the next try: exponential, and at least what the server asked for."""
    failure = state.outcome.exception() if state.outcome is not None else None
    backoff = wait_exponential(multiplier=FIRST_DELAY, max=LONGEST_DELAY)(state)
    return max(backoff, failure.retry_after if isinstance(failure, _Failed) else 0.0)


def _retry_after(header: str) -> float:
    """Seconds that a ``Retry-After`` header asks for, given as seconds or as a date; 0 for none."""
    if header.strip().isdecimal():
        seconds = float(header)
    else:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _system_reason(error: BaseException) -> str:
    """Why a connection could not be made, in the operating system's words: those of the innermost cause that has
    some."""
    reason, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):  # one error for each address of the host
            cause = cause.exceptions[0]
        if isinstance(cause, socket.gaierror | ssl.SSLError):  # their numbers are not the system's
            reason = cause.strerror or str(cause)
        elif isinstance(cause, OSError) and cause.errno:
            reason = os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return reason


def _message(response: httpx.Response, raw: bytes) -> str:
    """The server's own words, in one line."""
    text = raw[:4000].decode("utf-8", "replace")
    try:
        content = json.loads(text)
        inner = content.get("error", content) if isinstance(content, dict) else content
        text = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:200] or response.reason_phrase
