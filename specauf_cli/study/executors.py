"""The cells of a study, a drafter each: trained and measured in this process, in several, or by one of Hydra's launchers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from specauf_cli import session
from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest, read_json, write_json
from specauf_cli.store.records import RunRecord, load_record


@dataclass(frozen=True)
class Cell:
    """One drafter of a table: its place there, and ``settings`` that all cells share."""

    experiment: str
    backbone: str
    objective: str
    seed: int
    settings: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The overrides that name it."""
        return [*self.settings, f"backbone={self.backbone}", f"objective={self.objective}", f"seed={self.seed}"]


class Worker:
    """Trains and measures one cell after another; cells that share target and data share the loaded ones."""

    def __init__(self) -> None:
        self.bench: session.Bench | None = None

    def _open(self, config: Config) -> session.Bench:
        if self.bench is None or not self.bench.serves(config):
            self.bench = session.open_bench(config)
        return self.bench

    def fill(self, config: Config, overrides: Sequence[str], *, force: bool = False) -> tuple[RunRecord, Path]:
        """The record of a cell and its file, made where they are missing. Errors: InputError."""
        bench = self._open(config)
        folder = session.train(bench, config, overrides, force=force)
        record = session.measure(bench, config, folder, ["eval", *overrides])
        return record, folder / "records" / f"{record.id}.json"

    def train(self, cells: Sequence[Cell]) -> dict[Cell, str]:
        """Trains cells of one table and seed in one pass over data and target; returns why some failed.

        Whatever stops them all is not said here: ``fill`` meets it again, and says it of the cell it belongs to.
        """
        try:
            pairs = [(compose.compose(c.words), c.words) for c in cells]
            bench = self._open(pairs[0][0])
            if not all(bench.serves(config) for config, _ in pairs):
                return {}
            found = session.train_together(bench, pairs)
        except InputError:
            return {}
        return {c: str(one) for c, one in zip(cells, found, strict=True) if isinstance(one, InputError)}


def outcomes(cells: Sequence[Cell], config: Config, launcher: str | None) -> Iterator[tuple[Cell, RunRecord | str]]:
    """Fills every cell; yields it with its record, or with the reason why there is none, as soon as that is known.

    In ``config.workers`` processes, in this one, or by ``hydra/launcher=launcher``.
    """
    if launcher is not None:
        yield from _launched(cells, Path(config.runs), launcher)
    elif (count := min(config.workers, len(cells), os.cpu_count() or 1)) > 1:
        yield from _side_by_side(cells, count)
    else:
        yield from _in_turn(cells, config.together)


def _in_turn(cells: Sequence[Cell], together: bool) -> Iterator[tuple[Cell, RunRecord | str]]:
    """Fills the cells in this process; ``together``: those of one table and seed are trained in one pass over the data."""
    worker = Worker()
    for _, group in groupby(cells, key=lambda c: (c.experiment, c.seed)):
        some = list(group)
        failed = worker.train(some) if together and len(some) > 1 else {}
        for cell in some:
            try:
                yield cell, failed.get(cell) or worker.fill(compose.compose(cell.words), cell.words)[0]
            except InputError as error:
                yield cell, str(error)


def serve() -> None:
    """What a worker process does: reads the overrides of a cell from every line of stdin, answers on stdout, until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker()
    for line in sys.stdin:
        overrides = json.loads(line)
        try:
            answer = {"record": str(worker.fill(compose.compose(overrides), overrides)[1])}
        except InputError as error:
            answer = {"failed": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _side_by_side(cells: Sequence[Cell], count: int) -> Iterator[tuple[Cell, RunRecord | str]]:
    """Fills the cells in ``count`` processes that share the cores; each asks for the next cell when it has done one."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    with _process(["target", *cells[0].words]) as first:  # all cores, and once: the workers find it
        if first.wait():
            raise InputError("the target could not be made, its reason is above")
    waiting, done = SimpleQueue[Cell](), SimpleQueue[tuple[Cell, RunRecord | str]]()
    for cell in cells:
        waiting.put(cell)
    left, starting = False, Lock()

    def keep_busy(stack: ExitStack) -> None:
        process: subprocess.Popen[str] | None = None
        with suppress(Empty):
            while True:
                cell = waiting.get_nowait()
                with starting:
                    if left:
                        return
                    try:
                        if process is None or process.poll() is not None:
                            process = stack.enter_context(_process(["worker"], OMP_NUM_THREADS=threads))
                    except OSError as error:
                        done.put((cell, f"its process could not be started: {error.strerror or error}"))
                        continue
                done.put((cell, _ask(process, cell)))
        if process is not None and process.stdin is not None:
            process.stdin.close()

    with ExitStack() as stack:
        try:
            for _ in range(count):
                Thread(target=keep_busy, args=[stack], daemon=True).start()
            for _ in cells:
                yield done.get()
        finally:
            with starting:  # left early: no worker begins another cell
                left = True


def _ask(process: "subprocess.Popen[str]", cell: Cell) -> RunRecord | str:
    """Has a worker process fill a cell."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(cell.words), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        return load_record(Path(answer["record"])) if "record" in answer else str(answer["failed"])
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            return str(error)
        code = process.wait()
        return f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code}'}"


@contextmanager
def _process(words: Sequence[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """``specauf`` with these words in a process of its own, which is asked to stop (and saves) when the block is left early.

    In a session of its own, so that a Ctrl-C reaches it once, by way of this process; its stderr is passed on line by line.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "specauf_cli", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip

    def pass_on() -> None:
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)

    reader = Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        yield process
    except BaseException:
        process.terminate()
        raise
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None and process.poll() is None:
                with suppress(BrokenPipeError):  # a question that a process which is ending never read
                    stream.close()
        process.wait()
        reader.join()


def job(config: Config, overrides: list[str]) -> None:
    """A cell as a job of a sweep: fills it and leaves in ``runs/cells/`` what came of it."""
    place = _place(config)
    try:
        write_json(place, {"record": str(Worker().fill(config, overrides)[1])})
    except InputError as error:
        write_json(place, {"failed": str(error)})
        raise


def _launched(cells: Sequence[Cell], runs: Path, launcher: str) -> Iterator[tuple[Cell, RunRecord | str]]:
    """Hands the cells to a launcher as one sweep for all that share backbone and settings, and reads what its jobs left behind."""
    for backbone, settings in dict.fromkeys((c.backbone, c.settings) for c in cells):
        some = [c for c in cells if (c.backbone, c.settings) == (backbone, settings)]
        places = {c: _place(compose.compose(c.words)) for c in some}
        for place in places.values():
            place.unlink(missing_ok=True)
        objectives = ",".join(dict.fromkeys(c.objective for c in some))
        seeds = ",".join(dict.fromkeys(str(c.seed) for c in some))
        sweep = [*settings, f"backbone={backbone}", f"objective={objectives}", f"seed={seeds}"]
        print(f"{len(some)} cells on {backbone} go to the launcher {launcher}; logs: {runs}/.submitit", file=sys.stderr)
        reason = f"its job left no result; see {runs}/.submitit"
        try:
            compose.run_hydra(job, ["-m", f"hydra/launcher={launcher}", *sweep])
        except InputError as error:
            reason = str(error)
        for cell, place in places.items():
            found = read_json(place) if place.is_file() else {"failed": reason}
            yield cell, load_record(Path(found["record"])) if "record" in found else str(found["failed"])


def _place(config: Config) -> Path:
    """Where a job leaves what came of it; other settings, another place: two sweeps may wait in one queue."""
    name = f"{config.backbone.name}-{config.objective.name}-s{config.seed}-{digest(config.resolved, 8)}.json"
    return Path(config.runs) / "cells" / name
