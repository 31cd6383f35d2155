"""What every record of a benchmark says beside its numbers, and the processes in which numbers are measured.

A record names its command, date, machine and versions, the commit and whether the tree was clean, and the load of the
machine: before, after, and how much of it was the work of others. What was measured beside other work says so
(``load.alone``).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specauf_cli.errors import InputError
from specauf_cli.store.provenance import Watch, code_state, environment, now

ROOT = Path(__file__).resolve().parent.parent
CODE = ("benchmarks/*.py", "benchmarks/engine")
"""What decides the numbers here beside the package itself."""
GRACE = 30.0
"""Seconds that a process gets to save what it has when its time is up."""


def code(commit: str | None = None) -> dict[str, Any]:
    """The code that runs, scripts here included. ``commit``: what a copy without its history was made of."""
    state = code_state(CODE)
    return {**state, "commit": commit} if state["commit"] is None else state


class Measurement:
    """One record in the making: its code and the load of the machine, from now on."""

    def __init__(self, command: str, commit: str | None = None) -> None:
        self.command, self.commit = command, commit
        self.watch, self.code = Watch(), code(commit)

    def record(self, device: str, threads: int, **content: Any) -> dict[str, Any]:
        """``content`` as a record. The code is that of the beginning; it is dirty if it changed meanwhile."""
        changed = code(self.commit) != self.code
        return {
            "command": self.command,
            "date": now(),
            **content,
            "environment": environment(device, threads),
            "code": {**self.code, "dirty": True} if changed else self.code,
            "load": asdict(self.watch.load()),
        }


@dataclass(frozen=True)
class Ran:
    """How a process ended. ``code`` is None when its time was up; ``out`` and ``err`` are empty where they were shown.

    ``seconds``: how long it ran.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def reason(self) -> str:
        """What went wrong, in a line."""
        if self.code is None:
            return f"its time was up after {self.seconds:.0f} s"
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        return f"exit status {self.code}" + (f": {lines[-1].strip()[:300]}" if lines else "")


def run(
    words: Sequence[str], *, seconds: float | None = None, shown: bool = False, env: Mapping[str, str] | None = None
) -> Ran:
    """Runs a process in the root of the checkout, at most ``seconds`` long, with all that it starts.

    When its time is up, or this process is stopped, it is told to end, and killed after ``GRACE`` seconds. ``shown``:
    its output goes to the terminal instead of the result. ``env``: further variables. Python finds the checkout first.
    """
    begin, pipe = time.perf_counter(), None if shown else subprocess.PIPE
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **(env or {})}
    process = subprocess.Popen(
        words, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    code: int | None = None
    out: str | None
    err: str | None
    try:
        out, err = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        out, err = _end(process)
    except BaseException:
        _end(process)
        raise
    return Ran(code, out or "", err or "", time.perf_counter() - begin)


def _end(process: "subprocess.Popen[str]") -> tuple[str | None, str | None]:
    """Ends a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=GRACE)
    return None, None


def status_of(name: str, work: Callable[[], int], kept: str) -> int:
    """The exit status of the command ``name`` that does ``work``: 2 with a line for an InputError, 130 for Ctrl-C or a
    SIGTERM, with a line that says what is ``kept``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; {kept}", file=sys.stderr)
        return 130


def cell(
    module: str, words: Sequence[str], *, seconds: float | None = None, env: Mapping[str, str] | None = None
) -> Any:
    """What ``python -m module words`` prints on its last line, a JSON object, with the load of the machine meanwhile.

    Errors: InputError when it fails, or its time is up.
    """
    watch = Watch()
    ran = run([sys.executable, "-m", module, *words], seconds=seconds, env=env)
    if ran.code != 0:
        raise InputError(f"python -m {module} {' '.join(words)}: {ran.reason}")
    return {**json.loads(ran.out.splitlines()[-1]), "load": asdict(watch.load())}
