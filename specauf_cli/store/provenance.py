"""How a result was produced: code, environment, command, time."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from specauf_cli.config import settings
from specauf_cli.config.identity import is_local
from specauf_cli.config.overrides import key_of, value_of

PACKAGES = ("torch", "transformers", "tokenizers", "hydra-core", "numpy", "pandas")


def code_state(also: Sequence[str] = ()) -> dict[str, Any]:
    """Commit of the checkout this package runs from, and whether its code or settings differ from that commit.

    Results that the tool itself writes do not make the code dirty; ``also``: further paths or patterns of git that do.
    ``changes``, of dirty code only: a digest of what differs. Outside a checkout only the version is known.
    """
    here = Path(__file__).resolve().parent.parent
    state: dict[str, Any] = {"version": _version("specauf"), "commit": None, "dirty": None}
    tracked = ["specauf_cli", "conf", "experiments", "pyproject.toml", "constraints.txt", *also]
    try:
        if Path(os.fsdecode(_git(here.parent, "rev-parse", "--show-toplevel").strip())) == here.parent:
            state["commit"] = _git(here.parent, "rev-parse", "HEAD").decode().strip()
            state["dirty"] = bool(_git(here.parent, "status", "--porcelain", "--", *tracked).strip())
            if state["dirty"]:
                state["changes"] = _changes(here.parent, tracked)
    except (OSError, subprocess.CalledProcessError):
        pass  # without git only the version is known
    return state


def _changes(root: Path, paths: Sequence[str]) -> str:
    """A digest of how files below ``paths`` differ from the commit, new files among them."""
    found = hashlib.sha256(_git(root, "diff", "HEAD", "--binary", "--", *paths))
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *paths)
    for name in filter(None, new.split(b"\0")):
        found.update(name + b"\0" + hashlib.sha256((root / os.fsdecode(name)).read_bytes()).digest())
    return found.hexdigest()[:12]


def _git(root: Path, *words: str) -> bytes:
    """What git prints. Errors: OSError without git, CalledProcessError where it fails."""
    return subprocess.run(["git", "-C", root, *words], capture_output=True, check=True).stdout


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions and hardware, without anything that names the machine or its user."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (
                line.split(":", 1)[1].strip()
                for line in info.read_text("utf-8").splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    import torch

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device.split(":")[0],
        "gpu": gpu,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


OTHERS = 0.1
"""Cores that other processes may keep busy, on average, beside a measurement that counts as alone."""
BEFORE = 0.5
"""The load average before a measurement that counts as alone, where the system does not count its processors' time."""


@dataclass(frozen=True)
class Load:
    """What else the machine did while something was measured.

    ``before`` and ``after``: load averages of one minute, which include what this tool itself did before. ``others``:
    cores that other processes and other machines on the same hardware kept busy on average; None where the system does
    not count that. ``alone``: they were at most ``OTHERS``; where they are unknown, ``before`` was at most ``BEFORE``.
    """

    before: float
    after: float
    others: float | None
    alone: bool


class Watch:
    """From now on, the load of the machine. Child processes are this process's own once they have been waited for."""

    def __init__(self) -> None:
        self._before, self._begin = os.getloadavg()[0], time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def load(self) -> Load:
        """The load since the beginning."""
        wall, busy, others = time.perf_counter() - self._begin, _busy_seconds(), None
        if busy is not None and self._busy is not None:
            others = round(max(0.0, busy - self._busy - (_own_seconds() - self._own)) / max(wall, 1e-9), 2)
        alone = self._before <= BEFORE if others is None else others <= OTHERS
        return Load(round(self._before, 2), round(os.getloadavg()[0], 2), others, alone)


def _busy_seconds() -> float | None:
    """Seconds that all processors have worked, of all processes: those that /proc/stat does not call idle."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _idle, _wait, *more = (int(n) for n in stat.read_text("utf-8").splitlines()[0].split()[1:9])
    busy = user + nice + system + sum(more)
    return busy / os.sysconf("SC_CLK_TCK") if busy else None


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have been waited for."""
    return sum(os.times()[:4])


def command_line(words: Sequence[str]) -> str:
    """The command without paths of this machine: files and folders are replaced by a word in capitals.

    A run's id (``init``) and a model of the hub (``target.path``, ``target.name``) are kept.
    """
    published = {**settings.places(), "target.name": "DIR"}
    shown = []
    for word in words:
        key, value = key_of(word), value_of(word)
        public = (key == "init" and "/" not in value) or (key.startswith("target.") and not is_local(value))
        hide = "=" in word and key in published and not public
        shown.append(f"{word.partition('=')[0]}={published[key]}" if hide else word)
    return " ".join(["specauf", *shown])


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, MiB.

    From /proc where there is one: ``ru_maxrss`` (KiB on Linux, bytes on macOS) counts a parent's from before the
    program started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return round(int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def now() -> str:
    """UTC time, seconds, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
