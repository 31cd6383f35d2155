"""The training loop that the drafter and the small target share: schedule, clipping, log, checkpoints, signals."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from specauf_cli.errors import InputError, Interrupted
from specauf_cli.runtime import ranks, sharding
from specauf_cli.runtime.progress import track
from specauf_cli.store import layout
from specauf_cli.store.files import append_line, atomic, read_log
from specauf_cli.training import state
from specauf_cli.training.tracking import Sink


@dataclass(frozen=True)
class Outcome:
    """What one step function returns: the loss of its batch, sums for the log (scalars), and tokens read."""

    loss: Tensor
    sums: Mapping[str, Tensor]
    tokens: int


@dataclass(frozen=True)
class Training:
    """What to train, and how. ``step(i)`` leaves the gradient of batch ``i``'s loss in the parameters.

    ``identity`` names what is being trained; a checkpoint with another identity is refused. ``summary`` turns the
    window's sums into the named means of a log line. ``snapshot(done)`` is called after every step, before it is saved;
    ``measure(done)`` adds to a line of the log. A checkpoint is written every ``save_every`` steps and ``save_minutes``
    minutes; the last ``keep`` stay. ``sink(line)`` gets every line of the log. ``shared``: every rank runs it, and the
    first one writes.
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
    clip: float | None
    log_every: int
    save_every: int
    save_minutes: float = math.inf
    keep: int = 2
    measure: Callable[[int], dict[str, float]] = lambda _: {}
    snapshot: Callable[[int], None] = lambda _: None
    sink: Sink = lambda _: None
    shared: bool = False


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up over ``warmup`` x steps, then cosine to zero. ``step`` counts from 0."""
    warm = max(1, round(training.warmup * training.steps))
    if step < warm:
        return training.lr * (step + 1) / warm
    return training.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, training.steps - warm)))


class Running:
    """A training under way: its optimiser, the open window of its log, and the steps done. Begins at the newest
    checkpoint."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.checkpoints, self.log = layout.checkpoints_of(training.folder), layout.log_of(training.folder)
        self.writes = ranks.FIRST or not training.shared
        decayed = [p for p in training.module.parameters() if p.requires_grad and p.dim() > 1]
        plain = [p for p in training.module.parameters() if p.requires_grad and p.dim() <= 1]
        self.parameters = [*decayed, *plain]
        self.sharded = any(map(sharding.is_sharded, self.parameters))
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=training.lr,
            betas=training.betas,
            **({"foreach": False} if self.sharded else {"fused": True}),  # several at a time must be of one kind
        )
        self.done, self.window, self.seconds = _resume(self)
        if training.shared:
            ranks.wait()  # nobody reads a checkpoint that the first rank is about to clear away
        if self.done:
            print(f"{training.name}: continues after step {self.done} of {training.steps}", file=sys.stderr)
        self.line = (read_log(self.log) or [{}])[-1]
        self.sums: list[Mapping[str, Tensor]] = []
        self.tokens, self.reading, self.saved = 0, 0.0, time.monotonic()
        self.speed = 0
        self.failure: InputError | None = None

    @property
    def over(self) -> bool:
        """True when there is nothing left to do."""
        return self.failure is not None or self.done >= self.training.steps

    def advance(self) -> None:
        """One optimiser step, its line of the log where one is due, and its checkpoint where one is due.

        Errors: InputError for a non-finite loss; nothing is updated with it.
        """
        training, begin = self.training, time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        outcome = training.step(self.done)
        clip = math.inf if training.clip is None else training.clip
        norm = sharding.clip(self.parameters, clip)
        loss, grad_norm = torch.stack(
            [outcome.loss.double(), norm.double()]
        ).tolist()  # the only wait for a GPU in a step
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            last = state.latest(self.checkpoints)
            kept = f"The last good checkpoint is {last}" if last else "No checkpoint yet"
            raise InputError(
                f"{training.name}: loss {loss}, gradient norm {grad_norm} at step {self.done + 1}; stopped before "
                f"updating. {kept}; try a lower learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, self.done)
        self.optimizer.step()
        self.done += 1
        self.tokens += outcome.tokens
        self.sums.append(outcome.sums)
        seen = {"steps": 1.0, "loss": loss, "grad_norm": grad_norm, "clipped": float(grad_norm > clip)}
        for key, value in seen.items():
            self.window[key] = self.window.get(key, 0.0) + value
        took = time.perf_counter() - begin
        self.seconds, self.reading = self.seconds + took, self.reading + took
        if self.done % training.log_every == 0 or self.done == training.steps:
            self._write_line()
        training.snapshot(self.done)
        late = time.monotonic() - self.saved > 60 * training.save_minutes
        if self.sharded:  # all ranks save together, and the clock is the first one's
            late = bool(ranks.largest(int(late and ranks.FIRST), self.parameters[0].device))
        if self.done % training.save_every == 0 or late or self.done == training.steps:
            self.save()

    def _gather(self) -> None:
        """Adds the sums of the steps since the last line or checkpoint to the window, in one transfer from the
        device."""
        if not self.sums:
            return
        keys = list(self.sums[0])
        rows = torch.stack([torch.stack([s[k].double() for k in keys]) for s in self.sums]).tolist()
        for row in rows:
            for key, value in zip(keys, row, strict=True):
                self.window[key] = self.window.get(key, 0.0) + value
        self.sums = []

    def _write_line(self) -> None:
        self._gather()
        self.line = _summarise(self.training, self.done, self.window)
        self.speed = round(self.tokens / self.reading)
        if self.line["grad_norm"] == 0 and self.done <= self.training.log_every:
            name = self.training.name
            print(f"specauf: {name}: nothing is learnt, every gradient up to step {self.done} is zero", file=sys.stderr)
        if self.writes:
            self.line |= self.training.measure(self.done)
            logged = {**self.line, "tokens_per_second": self.speed}
            append_line(self.log, logged)
            self.training.sink(logged)
        self.window, self.tokens, self.reading = {}, 0, 0.0

    def save(self) -> None:
        """Writes a checkpoint of everything done so far."""
        self._gather()
        self.saved = time.monotonic()
        if not (self.writes or self.sharded):
            return
        files = state.content(self.training.module, self.optimizer)
        if self.writes:
            extra = {"identity": self.training.identity, "window": self.window, "seconds": self.seconds}
            state.save(self.checkpoints, files, self.done, extra, keep=self.training.keep)


def run(trainings: Sequence[Training]) -> list[Running]:
    """Runs every training to its last step, a step of each in turn; they do not touch each other.

    ``log.jsonl`` gets one line per ``log_every`` steps: means over that window. A training that fails (``failure``)
    leaves the others running. Raises ``Interrupted`` after a signal, when every one is saved. Errors: InputError for a
    foreign checkpoint.
    """
    running = [Running(training) for training in trainings]
    name = trainings[0].name if len(trainings) == 1 else f"{len(trainings)} trainings, {trainings[0].name} ..."
    total, done = sum(r.training.steps for r in running), sum(r.done for r in running)
    with _signals() as caught, track(name, total, done) as show:
        while active := [r for r in running if not r.over]:
            for current in active:
                try:
                    current.advance()
                except InputError as error:
                    if current.training.shared and ranks.WORLD > 1:
                        raise  # the other ranks may know nothing of it, and would wait for this rank
                    current.failure = error
                    if len(trainings) > 1:
                        print(f"specauf: {error}; the others go on", file=sys.stderr)
            shown = _metrics(active[0].line) if len(running) == 1 else _side_by_side([r.line for r in running])
            if any(r.done % r.training.log_every == 0 or r.over for r in active):
                show(sum(r.done for r in running), f"{shown} · {active[0].speed:,} tokens/s")
            stop = caught() or 0
            if trainings[0].shared:
                stop = ranks.largest(stop, running[0].parameters[0].device)
            left = [r for r in running if not r.over]
            if stop and left:
                for unfinished in left:
                    unfinished.save()
                if trainings[0].shared:
                    ranks.wait()  # whoever ends first is taken for a failure, and the others are killed
                raise Interrupted(stop, left[0].training.folder, left[0].done)
    return running


def _summarise(training: Training, step: int, window: Mapping[str, float]) -> dict[str, float]:
    """One line of the log: means over the window."""
    n = window["steps"]
    return {
        "step": step,
        "loss": window["loss"] / n,
        **training.summary(window),
        "lr": learning_rate(training, step - 1),
        "grad_norm": window["grad_norm"] / n,
        "clip_fraction": window["clipped"] / n,
    }


def _resume(running: Running) -> tuple[int, dict[str, float], float]:
    """Steps done, the open window of the log and the seconds spent so far; the log is cut back to the checkpoint."""
    training, log = running.training, running.log
    newest = state.latest(running.checkpoints)
    if newest is None:
        training.folder.mkdir(parents=True, exist_ok=True)
        if running.writes:
            log.write_text("")
        return 0, {}, 0.0
    saved = state.restore(newest, training.module, running.optimizer)
    if saved["identity"] != training.identity:
        raise InputError(
            f"checkpoint {newest} belongs to another configuration ({saved['identity']}, not {training.identity}); "
            "move it aside"
        )
    step = int(saved["step"])
    if running.writes:
        kept = [json.dumps(line) + "\n" for line in read_log(log) if line["step"] <= step]
        with atomic(log) as temporary:  # what follows the checkpoint is trained again
            temporary.write_text("".join(kept))
    return step, dict(saved["window"]), float(saved["seconds"])


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Collects SIGINT and SIGTERM so that the step under way can finish; a second one stops at once.

    Not so under torchrun, which passes on to its ranks what they have got themselves. One that comes when everything
    has just ended is raised again, for whoever called.
    """
    caught: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        if caught and ranks.WORLD == 1:
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
    if caught:
        signal.raise_signal(caught[0])


def _side_by_side(lines: Sequence[Mapping[str, float]]) -> str:
    """How far several drafters are, in their order."""
    lengths = [f"{line['accept_length']:.2f}" for line in lines if "accept_length" in line]
    return f"accept length {' '.join(lengths)}" if lengths else ""


def _metrics(line: Mapping[str, float]) -> str:
    """The numbers of a log line that matter while waiting."""
    shown = ("loss", "accuracy", "accept_length", "active_ratio", "tau")
    return " ".join(f"{k.replace('_', ' ')} {line[k]:.3f}" for k in shown if k in line)
