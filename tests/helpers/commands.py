"""The command line in this process, for tests of several files."""

import io
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from specauf_cli.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def specauf(cwd: Path, *words: str, check: bool = True, encoding: str = "utf-8") -> Done:
    """The command in this process (a new one would spend seconds importing torch), as ``main`` runs it.

    ``encoding`` is that of the terminal.
    """
    raw = io.BytesIO()
    out, err, code = io.TextIOWrapper(raw, encoding, write_through=True), io.StringIO(), 0
    argv, folder = sys.argv, Path.cwd()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    os.chdir(cwd)
    sys.argv = ["specauf", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        os.chdir(folder)
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if check:
        assert code == 0, err.getvalue()
    return Done(code, raw.getvalue().decode(encoding), err.getvalue())
