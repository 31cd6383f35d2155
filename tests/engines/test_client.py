"""The HTTP client: retries, waiting, connections, and where a key goes."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from specauf_cli.engines import client
from specauf_cli.engines.client import Client, Refused, Unanswered
from specauf_cli.errors import InputError

Answers = Callable[[int], tuple[int, dict[str, str], Any]]
"""Number of this request -> status, headers and JSON body of its answer."""


class Log:
    """What a server saw: headers of its requests, and how many connections they came by."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.connections = 0


@contextmanager
def serving(answers: Answers) -> Iterator[tuple[str, Log]]:
    """A server on this machine that keeps connections open, as the engines' do."""
    log, lock = Log(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                log.connections += 1

        def do_GET(self) -> None:
            with lock:
                log.headers.append(dict(self.headers))
                number = len(log.headers) - 1
            status, headers, body = answers(number)
            raw = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with serving(lambda number: (status if number < 2 else 200, {}, {"number": number})) as (url, _):
        asked = Client(url, timeout=5.0, retries=2)
        assert asked.first("/x") == {"number": 2}
        assert asked.failures == 2
        asked.close()


@pytest.mark.parametrize("status", [400, 401, 404, 405, 501])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    with (
        serving(lambda number: (status, {}, {"error": {"message": "no"}})) as (url, log),
        Client(url, timeout=5.0, retries=2) as asked,
    ):
        with pytest.raises(Refused) as caught:
            asked.first("/x")
        assert caught.value.status == status
        assert ("SPECAUF_API_KEY" in str(caught.value)) == (status == 401)
        assert (len(log.headers), asked.failures) == (1, 0)


def test_the_last_reason_and_the_number_of_tries_are_said() -> None:
    reasons = ["first", "second", "third"]
    with (
        serving(lambda number: (500, {}, {"message": reasons[number]})) as (url, _),
        Client(url, timeout=5.0, retries=2) as asked,
        pytest.raises(Unanswered, match=f"{url}/x: 500: third; tried 3 times"),
    ):
        asked.first("/x")


@pytest.mark.parametrize("retry_after", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_server_says_when_to_ask_again(retry_after: Callable[[], str]) -> None:
    header = {"Retry-After": retry_after()}
    with (
        serving(lambda number: (503 if number == 0 else 200, header, {})) as (url, _),
        Client(url, timeout=5.0, retries=1) as asked,
    ):
        began = time.perf_counter()
        asked.first("/x")
        assert 0.9 < time.perf_counter() - began < 4


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0.0), ("soon", 0.0), ("-3", 0.0), ("7", 7.0), ("99999", client.LONGEST_RETRY_AFTER), ("1 Jan 1999", 0.0)],
)
def test_retry_after_is_read_with_bounds(header: str, seconds: float) -> None:
    assert client._retry_after(header) == seconds


def test_stop_ends_waiting_without_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 30.0)
    with (
        serving(lambda number: (500, {}, {"message": "down"})) as (url, log),
        Client(url, timeout=5.0, retries=9) as asked,
    ):
        threading.Timer(0.3, asked.stop.set).start()
        began = time.perf_counter()
        with pytest.raises(Unanswered, match="500: down; tried 1 times"):
            asked.first("/x")
        assert time.perf_counter() - began < 5
        assert len(log.headers) == 1


def test_connections_are_used_again_by_every_thread() -> None:
    with serving(lambda number: (200, {}, number)) as (url, log), Client(url, timeout=5.0, retries=0) as asked:
        for _ in range(3):
            threads = [threading.Thread(target=asked.first, args=("/x",)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(log.headers) == 12
        assert log.connections <= 4


def test_an_answer_broken_off_is_said() -> None:
    with (
        serving(lambda number: (200, {"Content-Length": "1000", "Connection": "close"}, {})) as (url, _),
        Client(url, timeout=5.0, retries=0) as asked,
        pytest.raises(Unanswered, match=r"the connection broke \(RemoteProtocolError\)"),
    ):
        asked.first("/x")


def test_a_key_is_sent_as_a_bearer_token() -> None:
    with (
        serving(lambda number: (200, {}, {})) as (url, log),
        Client(url, timeout=5.0, retries=0, key="sesame") as asked,
    ):
        asked.first("/x")
        assert log.headers[0]["Authorization"] == "Bearer sesame"
    Client("https://example.invalid", timeout=1.0, retries=0, key="sesame").close()


def test_a_key_that_no_header_can_hold_is_said_and_not_shown() -> None:
    for key in ("sesame\n", "sesam\u00e9"):
        with pytest.raises(InputError, match="SPECAUF_API_KEY contains a character") as caught:
            Client("http://127.0.0.1:1", timeout=1.0, retries=0, key=key)
        assert "sesam" not in str(caught.value)


def test_a_proxy_is_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda number: (200, {}, {"by": "proxy"})) as (proxy, log):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with Client("http://example.invalid", timeout=5.0, retries=0) as asked:
            assert asked.first("/x") == {"by": "proxy"}
        with Client("http://127.0.0.1:1", timeout=5.0, retries=0) as asked, pytest.raises(Unanswered):
            asked.first("/x")
        assert len(log.headers) == 1


def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "ftp://127.0.0.1:9")
    with pytest.raises(InputError, match="the proxy that this environment names cannot be used"):
        Client("http://example.invalid", timeout=1.0, retries=0)


def test_the_address_is_judged() -> None:
    assert client.checked("http://localhost:8000/v1/") == "http://localhost:8000"
    for wrong in ("localhost:8000", "ftp://x", "http://", "http://x:y", "http://user:secret@x", "http://x?a=b"):
        with pytest.raises(InputError, match="give http://HOST:PORT"):
            client.checked(wrong)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:sesame@x:1/y", "http://***@x:1/y"),
        ("http://u:ses/ame@x", "http://***@x"),
        ("user:sesame@x:8000", "***@x:8000"),
        ("http://x/y?key=sesame#sesame", "http://x/y?***"),
        ("http://x:8000/y", "http://x:8000/y"),
    ],
)
def test_an_address_is_shown_without_what_gives_access(address: str, shown: str) -> None:
    assert client.without_secrets(address) == shown


def test_no_password_of_an_address_is_shown() -> None:
    for wrong in ("http://user:sesame@x", "http://x?key=sesame", "http://u:ses ame@x", "ftp://u:sesame@x#sesame"):
        with pytest.raises(InputError, match="give http://HOST:PORT") as caught:
            client.checked(wrong)
        assert "ses" not in str(caught.value)


@pytest.mark.parametrize("status", [302, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(status: int) -> None:
    headers = {"Location": "http://u:sesame@elsewhere/?key=sesame"}
    with (
        serving(lambda number: (status, headers, {"error": {"message": "the key sesame is wrong"}})) as (url, _),
        Client(url, timeout=5.0, retries=0, key="sesame") as asked,
        pytest.raises(InputError) as caught,
    ):
        asked.first("/x")
    assert "sesame" not in str(caught.value)
    assert "***" in str(caught.value)
