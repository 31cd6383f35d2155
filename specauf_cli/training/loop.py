"""The training loop that the drafter and the small target share: schedule, clipping, log, checkpoints, signals."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from specauf_cli.progress import track
from specauf_cli.records import atomic, read_log
from specauf_cli.schema import InputError
from specauf_cli.training import ranks, state
from specauf_cli.training.tracking import Sink


class Interrupted(Exception):
    """The user (or the system) asked to stop; everything up to the last finished step is saved."""

    def __init__(self, signum: int, where: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}; saved in {where}")
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Outcome:
    """What one step function returns: the loss of its batch, sums for the log (scalars), and tokens read."""

    loss: Tensor
    sums: Mapping[str, Tensor]
    tokens: int


@dataclass(frozen=True)
class Job:
    """One training job. ``step(i)`` leaves the gradient of batch ``i``'s loss in the parameters.

    ``identity`` names what is being trained; a checkpoint with another identity is refused. ``summary`` turns the
    window's sums into the named means of a log line. ``snapshot(done)`` is called after every step, before it is saved;
    ``measure(done)`` adds to a line of the log. A checkpoint is written every ``save_every`` steps and ``save_minutes`` minutes.
    ``sink(line)`` gets every line of the log. ``shared``: every rank runs the same job, and the first one writes.
    """

    name: str
    folder: Path
    module: nn.Module
    step: Callable[[int], Outcome]
    summary: Callable[[Mapping[str, float]], dict[str, float]]
    identity: str
    steps: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: float
    clip: float
    log_every: int
    save_every: int
    save_minutes: float = math.inf
    measure: Callable[[int], dict[str, float]] = lambda _: {}
    snapshot: Callable[[int], None] = lambda _: None
    sink: Sink = lambda _: None
    shared: bool = False


def learning_rate(job: Job, step: int) -> float:
    """Linear warm-up over ``warmup`` x steps, then cosine to zero. ``step`` counts from 0."""
    warm = max(1, round(job.warmup * job.steps))
    if step < warm:
        return job.lr * (step + 1) / warm
    return job.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, job.steps - warm)))


def run(job: Job) -> tuple[dict[str, float], float]:
    """Trains to the last step, continuing from the newest checkpoint; returns the last log line and the seconds spent.

    ``log.jsonl`` gets one line per ``log_every`` steps: means over that window. Raises ``Interrupted`` after a signal
    (saved first). Errors: InputError for a non-finite loss (nothing is updated with it) or a foreign checkpoint.
    """
    checkpoints, log = job.folder / "checkpoints", job.folder / "log.jsonl"
    decayed = [p for p in job.module.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in job.module.parameters() if p.requires_grad and p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": job.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=job.lr,
        betas=job.betas,
        fused=True,
    )
    start, window, spent = _resume(job, checkpoints, log, optimizer)
    if job.shared:
        ranks.wait()  # nobody reads a checkpoint that the first rank is about to clear away
    if start:
        print(f"{job.name}: continues after step {start} of {job.steps}", file=sys.stderr)
    began = time.perf_counter() - spent
    parameters = [*decayed, *plain]
    writes = ranks.FIRST or not job.shared
    line = (read_log(log) or [{}])[-1]
    with _signals() as caught, track(job.name, job.steps, start) as show:
        clock, tokens, saved = time.perf_counter(), 0, time.monotonic()
        for i in range(start, job.steps):
            optimizer.zero_grad(set_to_none=True)
            outcome = job.step(i)
            norm = torch.nn.utils.clip_grad_norm_(parameters, job.clip)
            loss, grad_norm = outcome.loss.item(), norm.item()
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                last = state.latest(checkpoints)
                raise InputError(
                    f"{job.name}: loss {loss}, gradient norm {grad_norm} at step {i + 1}; stopped before updating. "
                    f"{f'The last good checkpoint is {last}' if last else 'No checkpoint yet'}; try a lower learning rate"
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(job, i)
            optimizer.step()
            tokens += outcome.tokens
            for key, found in outcome.sums.items():
                window[key] = window.get(key, 0.0) + float(found)
            for key, value in (
                ("steps", 1.0),
                ("loss", loss),
                ("grad_norm", grad_norm),
                ("clipped", float(grad_norm > job.clip)),
            ):
                window[key] = window.get(key, 0.0) + value
            done = i + 1
            if done % job.log_every == 0 or done == job.steps:
                line = _summarise(job, done, window)
                elapsed = time.perf_counter() - clock
                if writes:
                    line |= job.measure(done)
                    logged = {**line, "tokens_per_second": round(tokens / elapsed)}
                    _append(log, logged)
                    job.sink(logged)
                    show(done, _metrics(line))
                window, clock, tokens = {}, time.perf_counter(), 0
            job.snapshot(done)
            stop = caught()
            if job.shared:
                stop = ranks.largest(stop or 0, parameters[0].device) or None
            late = time.monotonic() - saved > 60 * job.save_minutes
            if writes and (done % job.save_every == 0 or late or stop is not None or done == job.steps):
                saved = time.monotonic()
                state.save(checkpoints, job.module, optimizer, done, _extra(job, window, began))
            if stop is not None and done < job.steps:
                raise Interrupted(stop, job.folder, done)
    return line, time.perf_counter() - began


def _extra(job: Job, window: Mapping[str, float], began: float) -> dict[str, Any]:
    return {"identity": job.identity, "window": window, "seconds": time.perf_counter() - began}


def _summarise(job: Job, step: int, window: Mapping[str, float]) -> dict[str, float]:
    """One line of the log: means over the window."""
    n = window["steps"]
    return {
        "step": step,
        "loss": window["loss"] / n,
        **job.summary(window),
        "lr": learning_rate(job, step - 1),
        "grad_norm": window["grad_norm"] / n,
        "clip_fraction": window["clipped"] / n,
    }


def _resume(
    job: Job, checkpoints: Path, log: Path, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float], float]:
    """First step to do, the open window of the log and the seconds spent so far; the log is cut back to the checkpoint."""
    found = state.latest(checkpoints)
    if found is None:
        job.folder.mkdir(parents=True, exist_ok=True)
        if ranks.FIRST or not job.shared:
            log.write_text("")
        return 0, {}, 0.0
    saved = state.restore(found, job.module, optimizer)
    if saved["identity"] != job.identity:
        raise InputError(
            f"checkpoint {found} belongs to another configuration ({saved['identity']}, not {job.identity}); move it aside"
        )
    step = int(saved["step"])
    if job.shared and not ranks.FIRST:
        return step, dict(saved["window"]), float(saved["seconds"])
    kept = [json.dumps(line) + "\n" for line in read_log(log) if line["step"] <= step]
    with atomic(log) as temporary:  # what is behind the checkpoint comes again
        temporary.write_text("".join(kept))
    return step, dict(saved["window"]), float(saved["seconds"])


def _append(log: Path, line: Mapping[str, Any]) -> None:
    try:
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {log}: {error.strerror or error}") from error


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Collects SIGINT and SIGTERM so that the step under way can finish; a second one stops at once."""
    caught: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        yield lambda: None
        return
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _metrics(line: Mapping[str, float]) -> str:
    """The numbers of a log line that matter while waiting."""
    shown = ("loss", "accuracy", "accept_length", "active_ratio", "tau")
    return " ".join(f"{k.replace('_', ' ')} {line[k]:.3f}" for k in shown if k in line)
