"""Runs on disk: the only file that knows what lies where under ``runs/``.

runs/targets/<id>/            a target trained here (an ordinary Hugging Face folder)
runs/trajectories/<target>/   what the target alone emits, shared by every drafter
runs/<run id>/                one drafter: run.json, log.jsonl, checkpoints/, drafter/, finished.json, records/
runs/tables/                  what ``specauf table`` printed
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specauf_cli.data import benchmarks, conversations
from specauf_cli.data.chat import encode
from specauf_cli.evaluation import trajectories
from specauf_cli.evaluation.audit import audit as audit_outputs
from specauf_cli.evaluation.evaluate import check as check_evaluation
from specauf_cli.evaluation.evaluate import evaluate, load_benchmarks
from specauf_cli.models import checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.target import Target
from specauf_cli.records import (
    RunRecord,
    code_state,
    command_line,
    environment,
    load_record,
    now,
    peak_memory_mib,
    read_json,
    run_id,
    save_record,
    write_json,
)
from specauf_cli.schema import Config, Corpus, Example, InputError, nearest
from specauf_cli.training import drafter as training
from specauf_cli.training import pretrain

FINISHED, FAILED, ABOUT = "finished.json", "failed.json", "run.json"


@dataclass
class Bench:
    """A target with its data, ready to train and measure any drafter that shares them. Encoded lazily, once."""

    config: Config
    target: Target
    train: Corpus
    heldout: Corpus
    _examples: tuple[list[Example], dict[str, int]] | None = None
    _features: training.Features | None = None

    def examples(self) -> tuple[list[Example], dict[str, int]]:
        """Training examples and the counts of what they came from."""
        if self._examples is None:
            self._examples = encode(self.target.chat, self.train, max_length=self.config.trainer.max_length)
        return self._examples

    def features(self) -> training.Features:
        """The source of target features for training batches."""
        if self._features is None:
            self._features = training.Features(self.target, self.examples()[0], self.config.trainer)
        return self._features

    def serves(self, config: Config) -> bool:
        """True when ``config`` asks for the same target, data and feature settings."""
        mine, other = self.config, config
        shared = ["target", "data", "device", "runs", "threads", "benchmark_root"]
        shared += [] if mine.data.source == "offline" else ["benchmark"]  # real data are cleaned of its prompts
        same = all(getattr(mine, k) == getattr(other, k) for k in shared)
        keys = ("max_length", "features", "precision")
        return same and all(getattr(mine.trainer, k) == getattr(other.trainer, k) for k in keys)


def open_bench(config: Config) -> Bench:
    """Loads the data, and the target (training it first where it is one of ours and missing).

    Every setting that can be judged without them is checked first: nobody waits minutes for a typing error.
    """
    training.check(config.trainer)
    checkpoint.check(config.backbone)
    check_evaluation(config.evaluation)
    if config.target.path is None and config.target.pretrain is not None:
        targets.check_taps(config.target.taps, config.target.pretrain.layers)
    device = use_machine(config)
    exclude = []
    if config.data.source != "offline":  # the offline corpus is disjoint from its own prompts by construction
        root = Path(config.benchmark_root) if config.benchmark_root else None
        exclude = [benchmarks.load_raw(b, root=root) for b in config.benchmark.values()]
    train, heldout = conversations.load(config.data, exclude=exclude)
    located = pretrain.ensure(config.target, train, Path(config.runs), data=train.sha256, device=device)
    return Bench(config, targets.load(located, device=device), train, heldout)


def use_machine(config: Config) -> str:
    """Sets thread count and allocator, returns the device to use. Errors: InputError for a device that is not there."""
    _keep_freed_memory()
    if config.threads is not None:
        if config.threads < 1:
            raise InputError(f"threads={config.threads} must be at least 1, or null for all")
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={config.device!r} cannot be used here: {str(error).splitlines()[0]}; valid: auto, cpu, cuda, cuda:N"
        ) from error
    return config.device


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks instead of returning them: a step frees and takes the same large tensors again.

    Elsewhere (musl, macOS) there is no mallopt and nothing happens. One arena and no mmap (large blocks
    come from the heap, where they are kept), no trimming: M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
            mallopt(option, value)


def train(bench: Bench, config: Config, overrides: Sequence[str]) -> Path:
    """Trains the drafter of ``config`` unless it is finished, resuming where it stopped; returns its folder."""
    name = run_id(config, target=bench.target.fingerprint, data=bench.train.sha256)
    folder = Path(config.runs) / name
    if (folder / FINISHED).is_file():
        print(f"{name}: finished already{_other_code(read_json(folder / ABOUT)['code'])}", file=sys.stderr)
        os.utime(folder / FINISHED)
        return folder
    examples, counts = bench.examples()
    about = {
        "run": name,
        "overrides": list(overrides),
        "command": command_line(["train", *overrides]),
        "config": config.resolved,
        "inputs": {"data": bench.train.sha256, "heldout": bench.heldout.sha256, "target": bench.target.fingerprint},
        "data": {"name": bench.train.name, **counts},
        "code": code_state(),
        "started": now(),
    }
    write_json(folder / ABOUT, about)
    print(f"{name}: {counts['examples']} examples, {counts['supervised tokens']} supervised tokens", file=sys.stderr)
    (folder / FAILED).unlink(missing_ok=True)
    try:
        last, seconds = training.train(config, bench.target, examples, bench.features(), folder, identity=name)
    except InputError as error:
        write_json(folder / FAILED, {"reason": str(error), "at": now()})
        raise
    result = {
        "last": last,
        "seconds": round(seconds, 2),
        "peak_memory_mib": peak_memory_mib(),
        "environment": environment(str(bench.target.device), torch.get_num_threads()),
        "finished": now(),
    }
    write_json(folder / FINISHED, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def snapshots(folder: Path) -> list[int]:
    """Steps of which a run kept the drafter. Errors: InputError when it kept none."""
    found = sorted(int(p.name.removeprefix("step-")) for p in (folder / "snapshots").glob("step-*"))
    if not found:
        raise InputError(f"run {folder.name} kept no drafter on the way; train it with trainer.snapshot_every=STEPS")
    return found


def measure(
    bench: Bench, config: Config, folder: Path, arguments: Sequence[str], *, step: int | None = None
) -> RunRecord:
    """Evaluates a finished run with the settings of ``config`` and writes its record; a record that exists is returned.

    ``step``: the drafter that was kept at this step instead of the last one; its record lies beside it.
    """
    about, finished = read_json(folder / ABOUT), _finished(folder)
    prompts = load_benchmarks(config)
    resolved = {
        **about["config"],
        "profile": config.resolved["profile"],  # its text may have been reworded since the run was trained
        "evaluation": config.resolved["evaluation"],
        "benchmark": config.resolved["benchmark"],
    }
    check_same_training(config, folder)
    expected = run_id(config, target=bench.target.fingerprint, data=bench.train.sha256)
    if expected != folder.name:
        raise InputError(
            f"run {folder.name} was trained on other data or for another target: the same settings now name {expected}"
        )
    record = RunRecord(
        run=folder.name,
        profile=config.profile.name,
        backbone=config.backbone.name,
        objective=config.objective.name,
        title=config.objective.title,
        seed=config.seed,
        command=command_line(arguments),
        config=resolved,
        code=code_state(),
        environment=environment(str(bench.target.device), torch.get_num_threads()),
        inputs={**about["inputs"], **{f"prompts of {p.name}": p.sha256 for p in prompts}},
        target={"title": config.target.title, **pretrain.describe(str(bench.target.config.path))},
        training={k: finished[k] for k in ("last", "seconds", "peak_memory_mib")}
        | {"data": about["data"], "code": about["code"], "command": about["command"], "curve": _curve(folder)},
        heldout={},
        benchmarks=(),
        cost={},
        written=now(),
        step=step,
    )
    place = folder if step is None else folder / "snapshots" / f"step-{step:06d}"
    existing = place / "records" / f"{record.id}.json"
    if existing.is_file():
        found = load_record(existing)
        if found.inputs == record.inputs:
            print(f"{folder.name}: measured already", file=sys.stderr)
            return found
    target, dtype = bench.target, torch.float32
    if config.evaluation.precision == "bf16":  # the bench's own target also trains, so it stays as it is
        dtype = torch.bfloat16
        target = targets.load(bench.target.config, device=str(bench.target.device), dtype=dtype)
    weights = folder / "drafter" if step is None else place
    drafter = checkpoint.load(weights, target, config.backbone).to(dtype)
    print(f"{folder.name}{'' if step is None else f', step {step}'}: {len(prompts)} benchmarks", file=sys.stderr)
    results, blocks, seconds = evaluate(config, target, drafter, bench.heldout, prompts, _cache(bench))
    record = replace(
        record,
        heldout=blocks,
        benchmarks=results,
        cost={**seconds, "peak_memory_mib": peak_memory_mib()},
        written=now(),
    )
    save_record(record, place / "records")
    return record


def _other_code(then: dict[str, Any]) -> str:
    """A warning where the code may not be the one a finished run was trained with: a run's id does not cover it."""
    now_ = code_state()
    if then == now_ and not then["dirty"]:
        return ""
    if then["commit"] == now_["commit"] and not (then["dirty"] or now_["dirty"]):
        return ""
    made = f"at commit {str(then['commit'])[:12]}" + (" with uncommitted changes" if then["dirty"] else "")
    return f" (trained {made}; its name does not cover the code: move its folder aside to train again)"


CURVE = ("loss", "accuracy", "active_ratio", "support_accuracy", "accept_length")


def _curve(folder: Path) -> dict[str, list[float]]:
    """The columns of ``log.jsonl`` that figures and claims are made of, rounded, one list per column."""
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    names = ["step", *CURVE, "base_loss", "final_loss", *(f"base_{n}" for n in CURVE[1:])]
    return {n: [round(x[n], 4) for x in lines] for n in names if lines and n in lines[0]}


def check_same_training(config: Config, folder: Path) -> None:
    """InputError, before anything is loaded or trained, when ``config`` would train another drafter than ``folder`` holds."""
    then = read_json(folder / ABOUT)["config"]
    groups = ("backbone", "objective", "trainer", "data", "target", "seed")
    other = [g for g in groups if then.get(g) != config.resolved[g]]
    other += ["profile"] if then["profile"]["name"] != config.profile.name else []
    if other:
        raise InputError(
            f"run {folder.name} was trained with another {', '.join(other)} than these settings say; eval accepts evaluation.* and "
            "benchmark settings only"
        )


def audit(bench: Bench, config: Config, folder: Path) -> int:
    """Prints the losslessness of a finished run per benchmark, in fp32 and bf16; returns how many fp32 outputs differ."""
    settings = config.evaluation
    print(f"{folder.name}: T = 0, decoded live")
    drafter = checkpoint.load(folder / "drafter", bench.target, config.backbone)
    low = targets.load(bench.target.config, device=str(bench.target.device), dtype=torch.bfloat16)
    low_drafter = checkpoint.load(folder / "drafter", low, config.backbone).to(torch.bfloat16)
    broken = 0
    for prompts in load_benchmarks(config):
        made = trajectories.get(
            bench.target, prompts, temperature=0.0, seed=settings.seed, max_new_tokens=settings.max_new_tokens,
            tail=drafter.backbone.block_size + 1, batch_size=settings.batch_size, cache=_cache(bench),
        ).trajectories  # fmt: skip
        fp32 = audit_outputs(bench.target, bench.target, drafter, made, max_new_tokens=settings.max_new_tokens)
        bf16 = audit_outputs(bench.target, low, low_drafter, made, max_new_tokens=settings.max_new_tokens)
        print(fp32.line(f"{prompts.title}, fp32"))
        print(bf16.line(f"{prompts.title}, bf16"))
        broken += fp32.requests - fp32.identical
    return broken


def all_measured(folder: Path) -> RunRecord:
    """The newest record of a run with every benchmark that any of its records has (the newest of each prompt set).

    Errors: InputError when it was never measured.
    """
    found = measured(folder)
    if not found:
        raise InputError(f"run {folder.name} was not measured yet; specauf eval --run {folder.name}")
    newest = {(b.benchmark, b.temperature, b.prompts_sha256): b for r in found for b in r.benchmarks}
    return replace(found[-1], benchmarks=tuple(newest.values()))


def _cache(bench: Bench) -> Path:
    """Where the target's trajectories are kept."""
    return Path(bench.config.runs) / "trajectories" / bench.target.fingerprint[:16].replace("/", "_")


@dataclass(frozen=True)
class State:
    """One run as it lies on disk: ``finished``, ``failed`` or ``interrupted`` (or still running), ``step`` steps done."""

    name: str
    state: str
    step: int
    about: dict[str, Any]
    log: list[dict[str, float]]
    reason: str = ""


def states(runs: Path) -> list[State]:
    """Every run under ``runs``, by name."""
    return [state(f.parent) for f in sorted(runs.glob(f"*/{ABOUT}"))]


def state(folder: Path) -> State:
    """What is known of one run. Errors: InputError for damaged files."""
    about, log = read_json(folder / ABOUT), list[dict[str, float]]()
    for line in (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").is_file() else []:
        try:
            log.append(json.loads(line))
        except json.JSONDecodeError:
            break  # being written right now, or torn by a kill
    step = int(log[-1]["step"]) if log else 0
    if (folder / FINISHED).is_file():
        return State(folder.name, "finished", step, about, log)
    if (folder / FAILED).is_file():
        return State(folder.name, "failed", step, about, log, read_json(folder / FAILED)["reason"])
    return State(folder.name, "interrupted", step, about, log)


def measured(folder: Path) -> list[RunRecord]:
    """The records of a run, oldest first."""
    return sorted((load_record(p) for p in (folder / "records").glob("*.json")), key=lambda r: r.written)


def find(runs: Path, names: Sequence[str], *, every: bool, finished_only: bool = True) -> list[Path]:
    """Folders of the named runs (id or path), of all finished runs, or of the latest finished one.

    Errors: InputError for an unknown or unfinished run, or when there is none.
    """
    known = {f.parent.name: f.parent for f in runs.glob(f"*/{ABOUT}")}
    finished = {n: f for n, f in known.items() if (f / FINISHED).is_file()}
    if not names:
        if not finished:
            raise InputError(
                f"no finished run under {runs}/; train one first: specauf train objective=auf backbone=dflash"
            )
        latest = max(finished, key=lambda n: (finished[n] / FINISHED).stat().st_mtime_ns)
        return [finished[n] for n in (sorted(finished) if every else [latest])]
    found = []
    for name in names:
        folder = Path(name) if (Path(name) / ABOUT).is_file() else known.get(name)
        if folder is None:
            raise InputError(
                f"no run {name!r} under {runs}/; there are: {', '.join(sorted(known)) or 'none'}.{nearest(name, known)}"
            )
        if finished_only:
            _finished(folder)
        found.append(folder)
    return found


def overrides_of(folder: Path) -> list[str]:
    """The overrides a run was trained with."""
    return list(read_json(folder / ABOUT)["overrides"])


def _finished(folder: Path) -> dict[str, Any]:
    if not (folder / FINISHED).is_file():
        raise InputError(f"run {folder.name} is not finished; continue it with the command in {folder / ABOUT}")
    result: dict[str, Any] = read_json(folder / FINISHED)
    return result
