"""A server that cannot outlive the process that started it.

``Server`` starts a command through a guard: this file as a program, in a session of its own. The guard's standard input
is a pipe whose other end only the starter holds. When that end is closed, by ``stop``, by an exception or because the
starter was killed, the guard ends the command and all that it started: SIGTERM first, SIGKILL after a while. Ctrl-C in
a terminal does not reach the session of the guard, so that the starter alone decides.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServerFailed(Exception):
    """The server ended, or was not ready in time; one line with the end of its log."""


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running command. ``url`` is where it is reached; leaving the ``with`` block stops it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str,
        log: Path,
        environment: Mapping[str, str],
        timeout: float,
        grace: float = 15.0,
    ) -> None:
        """Starts ``command``, whose output goes to ``log``, and waits until ``url``/health answers with 200.

        ``grace``: seconds between SIGTERM and SIGKILL when it is stopped. Errors: ServerFailed when it ends before it
        is ready, or is not ready after ``timeout`` seconds.
        """
        self.url, self.log = url, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(grace), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )
        try:
            self._wait(timeout)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout: float) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not asked for this machine
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            if self._guard.poll() is not None:
                raise ServerFailed(f"the server ended with {self._guard.returncode}; {self._last_words()}")
            try:
                with direct.open(f"{self.url}/health", timeout=5) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.2)
        raise ServerFailed(f"the server was not ready after {timeout:g} seconds; {self._last_words()}")

    def _last_words(self, lines: int = 3) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as text:
            last = deque((line.strip() for line in text if line.strip()), maxlen=lines)
        return f"{self.log} ends with: {' | '.join(last) or 'nothing'}"

    @property
    def running(self) -> bool:
        """True until the command has ended."""
        return self._guard.poll() is None

    def stop(self) -> None:
        """Ends the command and all that it started; returns when they are gone. May be called again."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def guard(grace: float, command: Sequence[str]) -> int:
    """Runs ``command`` until it ends or standard input is closed, and then ends the rest of its process group.

    Returns the exit code of ``command``.
    """

    def end(*_: object) -> None:
        _end_group(grace)
        os._exit(128 + signal.SIGTERM)

    for number in ENDING:
        signal.signal(number, end)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _end_group(grace)
    return code


def _end_group(grace: float) -> None:
    """Ends every other process of this one's group: SIGTERM, and after ``grace`` seconds SIGKILL, to this one too."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    limit = time.monotonic() + grace
    while _others():
        if time.monotonic() > limit:
            os.killpg(0, signal.SIGKILL)
        time.sleep(0.05)


def _others() -> bool:
    """True while the group has another process that is no zombie."""
    own = os.getpid()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == own and int(place.name) != own and state != "Z":
            return True
    return False


if __name__ == "__main__":
    sys.exit(guard(float(sys.argv[1]), sys.argv[2:]))
