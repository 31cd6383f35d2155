"""The server that `make engine` starts: ready or said why not, and gone when its starter is, however that ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.engine.server import Server, ServerFailed, free_port
from helpers.commands import ROOT

SERVES = """
import http.server, os, signal, subprocess, sys
port, folder, stubborn = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(os.path.join(folder, "pids"), "w").write(f"{os.getpid()} {worker.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
STARTS = """
import os, signal, sys, time
from pathlib import Path
from benchmarks.engine.server import Server, free_port
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves run in the background
folder, port = Path(sys.argv[1]), free_port()
command = [sys.executable, str(folder / "serves.py"), str(port), str(folder), sys.argv[2]]
with Server(command, url=f"http://127.0.0.1:{port}", log=folder / "log", environment=os.environ, timeout=30, grace=1.0):
    (folder / "ready").touch()
    if sys.argv[3] == "raise":
        raise SystemExit(7)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: str, condition: object) -> None:
    assert callable(condition)
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)


def pids(folder: Path) -> list[int]:
    """The server and its worker."""
    return [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("kind", ["obedient", "stubborn"])
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, "raise"])
def test_nothing_outlives_the_starter(tmp_path: Path, ending: signal.Signals | str, kind: str) -> None:
    (tmp_path / "serves.py").write_text(SERVES)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(tmp_path), kind, "raise" if ending == "raise" else "wait"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("ready", (tmp_path / "ready").exists)
        started = pids(tmp_path)
        if isinstance(ending, signal.Signals):
            assert all(map(alive, started))
            starter.send_signal(ending)
        code = starter.wait(30)
        assert code == (7 if ending == "raise" else code)
        assert code != 0
    finally:
        starter.kill()
    wait_for("the server and its worker are gone", lambda: not any(map(alive, started)))


def test_a_server_that_ends_at_once_is_said_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('first'); sys.exit('no such model')"]
    with pytest.raises(ServerFailed, match=r"the server ended with 1; .*log ends with: .*no such model"):
        Server(command, url="http://127.0.0.1:9", log=tmp_path / "log", environment=os.environ, timeout=30)


def test_a_server_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    waits = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    command, url = [sys.executable, "-c", waits, str(tmp_path / "pid")], f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerFailed, match="not ready after 2 seconds"):
        Server(command, url=url, log=tmp_path / "log", environment=os.environ, timeout=2)
    assert not alive(int((tmp_path / "pid").read_text()))
