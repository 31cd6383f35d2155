"""The jobs of a study, a drafter each: trained and measured in this process, in several, or by one of Hydra's
launchers."""

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

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.session import Session, open_session
from specauf_cli.store.files import digest, read_json, write_json
from specauf_cli.store.records import RunRecord, load_record


@dataclass(frozen=True)
class Job:
    """One drafter of a table: its place there, and ``settings`` that all jobs share."""

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
    """Trains and measures one job after another; jobs that share target and data share the loaded ones."""

    def __init__(self) -> None:
        self.session: Session | None = None

    def _open(self, config: Config) -> Session:
        if self.session is None or not self.session.serves(config):
            self.session = open_session(config)
        return self.session

    def fill(self, config: Config, overrides: Sequence[str], *, force: bool = False) -> tuple[RunRecord, Path]:
        """The record of a job and its file, made where they are missing. Errors: InputError."""
        session = self._open(config)
        folder = session.train(config, overrides, force=force)
        record = session.measure(config, folder, ["eval", *overrides])
        return record, folder / "records" / f"{record.id}.json"

    def train(self, jobs: Sequence[Job]) -> dict[Job, str]:
        """Trains jobs of one table and seed in one pass over data and target; returns why some failed.

        Whatever stops them all is not said here: ``fill`` meets it again, and says it of the job it belongs to.
        """
        try:
            pairs = [(compose.compose(c.words), c.words) for c in jobs]
            session = self._open(pairs[0][0])
            if not all(session.serves(config) for config, _ in pairs):
                return {}
            found = session.train_together(pairs)
        except InputError:
            return {}
        return {c: str(one) for c, one in zip(jobs, found, strict=True) if isinstance(one, InputError)}


def outcomes(jobs: Sequence[Job], config: Config, launcher: str | None) -> Iterator[tuple[Job, RunRecord | str]]:
    """Fills every job; yields it with its record, or with the reason why there is none, as soon as that is known.

    In ``config.workers`` processes, in this one, or by ``hydra/launcher=launcher``.
    """
    if launcher is not None:
        yield from _launched(jobs, Path(config.runs), launcher)
    elif (count := min(config.workers, len(jobs), os.cpu_count() or 1)) > 1:
        yield from _side_by_side(jobs, count)
    else:
        yield from _in_turn(jobs, config.together)


def _in_turn(jobs: Sequence[Job], together: bool) -> Iterator[tuple[Job, RunRecord | str]]:
    """Fills the jobs in this process; ``together``: those of one table and seed are trained in one pass over the
    data."""
    worker = Worker()
    for _, group in groupby(jobs, key=lambda c: (c.experiment, c.seed)):
        some = list(group)
        failed = worker.train(some) if together and len(some) > 1 else {}
        for job in some:
            try:
                yield job, failed.get(job) or worker.fill(compose.compose(job.words), job.words)[0]
            except InputError as error:
                yield job, str(error)


def serve() -> None:
    """What a worker process does: reads the overrides of a job from every line of stdin, answers on stdout, until it
    ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker()
    for line in sys.stdin:
        overrides = json.loads(line)
        try:
            answer = {"record": str(worker.fill(compose.compose(overrides), overrides)[1])}
        except InputError as error:
            answer = {"failed": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _side_by_side(jobs: Sequence[Job], count: int) -> Iterator[tuple[Job, RunRecord | str]]:
    """Fills the jobs in ``count`` processes that share the cores; each asks for the next job when it has done one."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    with _process(["target", *jobs[0].words]) as first:  # all cores, and once: the workers find it
        if first.wait():
            raise InputError("the target could not be made, its reason is above")
    waiting, done = SimpleQueue[Job](), SimpleQueue[tuple[Job, RunRecord | str]]()
    for job in jobs:
        waiting.put(job)
    left, starting = False, Lock()

    def keep_busy(stack: ExitStack) -> None:
        process: subprocess.Popen[str] | None = None
        with suppress(Empty):
            while True:
                job = waiting.get_nowait()
                with starting:
                    if left:
                        return
                    try:
                        if process is None or process.poll() is not None:
                            process = stack.enter_context(_process(["worker"], OMP_NUM_THREADS=threads))
                    except OSError as error:
                        done.put((job, f"its process could not be started: {error.strerror or error}"))
                        continue
                done.put((job, _ask(process, job)))
        if process is not None and process.stdin is not None:
            process.stdin.close()

    with ExitStack() as stack:
        try:
            for _ in range(count):
                Thread(target=keep_busy, args=[stack], daemon=True).start()
            for _ in jobs:
                yield done.get()
        finally:
            with starting:  # left early: no worker begins another job
                left = True


def _ask(process: "subprocess.Popen[str]", job: Job) -> RunRecord | str:
    """Has a worker process fill a job."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(job.words), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        return load_record(Path(answer["record"])) if "record" in answer else str(answer["failed"])
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            return str(error)
        code = process.wait()
        return f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code}'}"


@contextmanager
def _process(words: Sequence[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """``specauf`` with these words in a process of its own, which is asked to stop (and saves) when the block is left
    early.

    In a session of its own, so that a Ctrl-C reaches it once, by way of this process; its stderr is passed on line by
    line.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "specauf_cli", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )

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


def fill_as_hydra_job(config: Config, overrides: list[str]) -> None:
    """A job as a job of a sweep: fills it and leaves in ``runs/jobs/`` what came of it."""
    place = _place(config)
    try:
        write_json(place, {"record": str(Worker().fill(config, overrides)[1])})
    except InputError as error:
        write_json(place, {"failed": str(error)})
        raise


def _launched(jobs: Sequence[Job], runs: Path, launcher: str) -> Iterator[tuple[Job, RunRecord | str]]:
    """Hands the jobs to a launcher as one sweep for all that share backbone and settings, and reads what its jobs left
    behind."""
    for backbone, settings in dict.fromkeys((c.backbone, c.settings) for c in jobs):
        some = [c for c in jobs if (c.backbone, c.settings) == (backbone, settings)]
        places = {c: _place(compose.compose(c.words)) for c in some}
        for place in places.values():
            place.unlink(missing_ok=True)
        objectives = ",".join(dict.fromkeys(c.objective for c in some))
        seeds = ",".join(dict.fromkeys(str(c.seed) for c in some))
        sweep = [*settings, f"backbone={backbone}", f"objective={objectives}", f"seed={seeds}"]
        print(f"{len(some)} jobs on {backbone} go to the launcher {launcher}; logs: {runs}/.submitit", file=sys.stderr)
        reason = f"its job left no result; see {runs}/.submitit"
        try:
            compose.run_hydra(fill_as_hydra_job, ["-m", f"hydra/launcher={launcher}", *sweep])
        except InputError as error:
            reason = str(error)
        for job, place in places.items():
            found = read_json(place) if place.is_file() else {"failed": reason}
            yield job, load_record(Path(found["record"])) if "record" in found else str(found["failed"])


def _place(config: Config) -> Path:
    """Where a job leaves what came of it; other settings, another place: two sweeps may wait in one queue."""
    name = f"{config.backbone.name}-{config.objective.name}-s{config.seed}-{digest(config.resolved, 8)}.json"
    return Path(config.runs) / "jobs" / name
