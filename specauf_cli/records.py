"""Identity, provenance and files: run ids, RunRecords, atomic write-once, load."""

import fcntl
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from specauf_cli.identity import is_local
from specauf_cli.schema import InputError, Trace
from specauf_cli.settings import Config

SCHEMA = 1
PACKAGES = ("torch", "transformers", "tokenizers", "hydra-core", "numpy", "pandas")


def digest(value: Any, length: int = 64) -> str:
    """Hex SHA-256 of a JSON value in canonical form, cut to ``length`` characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id(config: Config, *, target: str, data: str, init: str | None = None) -> str:
    """Names plus a short hash of everything that determines the trained weights; evaluation settings do not enter.

    ``target`` and ``data`` are the fingerprints of the target's weights and of the training data's content, ``init`` that of the
    weights it starts from (None: random ones, which the seed determines).
    """
    identity = {
        k: config.resolved[k] for k in ("backbone", "objective", "trainer", "data", "target", "profile", "seed")
    }
    identity["profile"] = config.profile.name
    parts = (config.backbone.name, config.objective.name, config.target.name, config.profile.name, f"s{config.seed}")
    return "-".join([*parts, digest([identity, target, data, *([init] if init else [])], 8)])


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write; it replaces ``path`` only when the block succeeds.

    Errors: InputError when there is no space left or the folder cannot be written; ``path`` is then as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {reason}; what was there before is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds ``folder`` for one process; the system lets go of it when the process ends, however it ends.

    Errors: InputError, naming the process and its host, while another one holds it; ``wait``: waits for that one instead.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    with file:
        try:
            _flock(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                raise InputError(
                    f"{what} is in use by {holder}; wait for it, or stop it, and run this again"
                ) from error
            print(f"{what} is in use by {holder}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())  # not buffered: said once
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
        yield


def _flock(file: TextIO) -> None:
    """Takes the lock; OSError while another process has it. Tried twice: ``held`` has it for a moment when it looks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(folder: Path) -> str:
    """The process that holds ``folder`` at the moment, as it named itself; empty when none does."""
    try:
        if not (folder / ".lock").is_file():
            return ""
        with open(folder / ".lock", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except OSError:
        pass  # nobody has held it yet
    return ""


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, one nesting level per line where that helps a reader and a diff."""
    with atomic(path) as temporary:
        temporary.write_text(pretty(value) + "\n", "utf-8")


def pretty(value: Any, indent: int = 0) -> str:
    """JSON with short leaves on one line: objects and lists that fit 110 columns, and lists of numbers, stay whole."""
    flat = json.dumps(value, ensure_ascii=False)
    whole = not isinstance(value, dict | list) or not value or len(flat) + indent <= 110
    if whole or (isinstance(value, list) and not any(isinstance(v, dict | list) for v in value)):
        return flat
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, dict):
        rows = [f"{pad}{json.dumps(str(k), ensure_ascii=False)}: {pretty(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + pretty(v, indent + 1) for v in value) + f"\n{end}]"


def read_json(path: Path) -> Any:
    """Errors: InputError naming the file, and the line where its JSON breaks."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise InputError(f"cannot read {path}: it is not a file")
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); the file is damaged") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid UTF-8; the file is damaged") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply; the file is damaged") from error
    except ValueError as error:
        raise InputError(f"{path}: a number that is too long; the file is damaged") from error


def is_number(value: Any) -> bool:
    """True for a finite number that fits a float."""
    return type(value) in (int, float) and abs(value) < 1e300


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a training log, up to one that a kill has torn. A missing log has none."""
    lines: list[dict[str, float]] = []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        numbers = isinstance(line, dict) and all(map(is_number, line.values()))
        if not numbers or type(line.get("step")) is not int or "loss" not in line:
            break
        lines.append(line)
    return lines


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark at one temperature: the traces of every request and what was left out.

    ``starts`` (replay only): the histogram of accepted counts over every start, and block-mask sums per slot on trajectories.
    """

    benchmark: str
    title: str
    column: str
    temperature: float
    prompts_sha256: str
    prompts: int
    origin: str
    skipped: dict[str, int]
    audit: dict[str, Any]
    starts: dict[str, list[int]]
    traces: tuple[Trace, ...]

    @property
    def measured(self) -> int:
        """Prompts with a trace: of the ``prompts`` that were asked some may have been skipped."""
        return len({t.prompt_id for t in self.traces})


@dataclass(frozen=True)
class RunRecord:
    """Everything needed to trust and redo one run: what was asked, with what, where, and the raw outcome.

    ``heldout`` holds block-mask sums on held-out conversations: per slot, valid and correct counts. ``training`` is the
    last line of the log plus totals, and the log's columns that figures need. Means are never stored; tables compute them.
    ``step`` is set when a drafter from the middle of training was measured; such records are never in a table.
    """

    run: str
    profile: str
    backbone: str
    objective: str
    title: str
    seed: int
    command: str
    config: dict[str, Any]
    code: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, str]
    target: dict[str, Any]
    training: dict[str, Any]
    heldout: dict[str, Any]
    benchmarks: tuple[BenchmarkResult, ...]
    cost: dict[str, float]
    written: str
    step: int | None = None
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """The run's id plus a hash of the evaluation settings: the name of the record's file."""
        at = "" if self.step is None else f".step{self.step:06d}"
        return f"{self.run}{at}.{digest([self.config['evaluation'], self.config['benchmark']], 8)}"


def save_record(record: RunRecord, folder: Path) -> Path:
    """Writes the record under its id and returns the file. Under ``runs/`` a later measurement replaces an earlier one;
    what was published is never overwritten (``study``)."""
    path = folder / f"{record.id}.json"
    write_json(path, asdict(record))
    return path


def load_record(path: Path) -> RunRecord:
    """Errors: InputError for a file that is not a record of this schema."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a run record of schema {SCHEMA}")
    try:
        raw["benchmarks"] = tuple(
            BenchmarkResult(
                **{**b, "traces": tuple(Trace(**{**t, "accepted": tuple(t["accepted"])}) for t in b["traces"])}
            )
            for b in raw["benchmarks"]
        )
        record = RunRecord(**raw)
        name = record.id
        _check(record)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a complete run record: {error}; delete it and measure again") from error
    if name != path.stem:
        raise InputError(f"{path} holds the record {name}: it was renamed or altered; delete it and measure again")
    return record


def _check(record: RunRecord) -> None:
    """Errors: ValueError, KeyError, TypeError or AttributeError for a record that no evaluation can have written."""
    if not record.benchmarks or not isinstance(record.written, str):
        raise ValueError("it measured nothing")
    if type(record.seed) is not int or not all(isinstance(t, str) for t in (record.run, record.title, record.command)):
        raise ValueError("seed, run, title or command is of another kind")
    for b in record.benchmarks:
        texts = (b.benchmark, b.title, b.column, b.origin, *(t.prompt_id for t in b.traces))
        counts = [*b.skipped.values(), b.prompts, *(b.audit.get(k) for k in ("requests", "identical", "same_rounds"))]
        counts += [n for t in b.traces for n in (t.tokens, t.turn, t.proposed)]
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and n < 2**31 for n in counts):
            raise ValueError(f"{b.title!r}: a text or a count is of another kind")
        if not is_number(b.temperature):
            raise ValueError(f"{b.title}: temperature {b.temperature!r}")
        for t in b.traces:
            if not all(type(a) is int and 0 <= a <= t.proposed for a in t.accepted) or t.tokens < 1:
                raise ValueError(f"{b.benchmark}: impossible rounds of {t.prompt_id}")
            if not t.accepted and t.tokens > 1:  # the pass over the prompt gives one token, the others need a round
                raise ValueError(f"{b.benchmark}: impossible rounds of {t.prompt_id}")
        if not b.traces or {"requests", "identical", "same_rounds"} - set(b.audit):
            raise ValueError(f"{b.benchmark}: no requests")
    sums = [n for k in ("id_correct", "id_valid", "valid", "correct") for n in record.heldout.get(k, ())]
    if not all(map(is_number, sums)):
        raise ValueError("heldout holds what is no count")
    for part, keys in (
        (record.heldout, ("ids", "id_correct", "id_valid", "valid", "correct")),
        (record.training, ("command", "code")),
        (record.code, ("commit", "dirty")),
        (record.target, ("title",)),
        (record.config["profile"], ("name", "text")),
    ):
        missing = [k for k in keys if k not in part]
        if missing:
            raise ValueError(f"{missing[0]} is missing")


def settings_of(record: RunRecord) -> dict[str, Any]:
    """The evaluation settings that change numbers: not how many requests were audited, nor the batch size."""
    kept = ("precision", "max_new_tokens", "seed", "heldout_anchors")
    return {k: record.config["evaluation"].get(k) for k in kept}


def code_state() -> dict[str, Any]:
    """Commit of the checkout this package runs from, and whether its code or settings differ from that commit.

    Results that the tool itself writes do not make the code dirty. Outside a checkout only the version is known.
    """
    here = Path(__file__).resolve().parent
    state: dict[str, Any] = {"version": _version("specauf"), "commit": None, "dirty": None}
    tracked = ["specauf_cli", "conf", "experiments", "pyproject.toml", "constraints.txt"]
    try:
        git = ["git", "-C", str(here.parent)]
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if Path(top) == here.parent:
            state["commit"] = subprocess.run(
                [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
            ).stdout.strip()
            status = subprocess.run(
                [*git, "status", "--porcelain", "--", *tracked], capture_output=True, text=True, check=True
            )
            state["dirty"] = bool(status.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        pass  # no git here: the version says what there is to say
    return state


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
    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
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


def command_line(overrides: Mapping[str, str] | Sequence[str]) -> str:
    """The command as another machine would type it: values that are paths are replaced by their key in capitals."""
    private = {"data_root": "DIR", "benchmark_root": "DIR", "data.path": "PATH", "runs": "RUNS"}
    words = []
    for word in overrides:
        whole, equals, value = word.partition("=")
        bare = value.strip("'\"")
        key = whole.lstrip("+")
        hidden = private.get(key)
        if (key == "init" and "/" in value) or (key in ("target.path", "target.name") and is_local(bare)):
            hidden = "RUN" if key == "init" else "DIR"
        words.append(f"{whole}={hidden}" if equals and hidden else word)
    return " ".join(["specauf", *words])


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, MiB.

    From /proc where there is one: ``ru_maxrss`` (KiB on Linux, bytes on macOS) counts a parent's from before the program started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return round(int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def now() -> str:
    """UTC time, seconds, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
