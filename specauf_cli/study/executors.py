"""What runs the jobs of a table: this process, several worker processes, or a cluster through a Hydra launcher.

Each is a ``Runner``: it trains and measures every job, and yields it with its record, or with the reason why there is
none, as soon as that is known.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Protocol

from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.session import Session, open_session
from specauf_cli.store import layout
from specauf_cli.store.files import digest, read_json, write_json
from specauf_cli.store.records import RunRecord, load_record
from specauf_cli.study.jobs import Job

Outcome = RunRecord | str
"""The record of a job, or the reason why there is none."""


class Runner(Protocol):
    """Runs the jobs of a table."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job with its outcome, in the order in which they end."""


def runner(config: Config, launcher: str | None, jobs: int) -> Runner:
    """What runs ``jobs`` jobs: ``hydra/launcher=launcher``, else ``config.workers`` processes, else this one."""
    if launcher is not None:
        return Cluster(launcher, Path(config.runs))
    workers = min(config.workers, jobs, os.cpu_count() or 1)
    return Workers(workers) if workers > 1 else Here(together=config.together)


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
        return record, layout.record_path(folder, record.id)

    def train(self, jobs: Sequence[Job]) -> dict[Job, str]:
        """Trains jobs of one table and seed in one pass over data and target; returns why some failed.

        An error that stops them all is not reported here: ``fill`` raises it again for the job that it belongs to.
        """
        try:
            session = self._open(jobs[0].config)
            if not all(session.serves(job.config) for job in jobs):
                return {}
            folders_or_errors = session.train_together([(job.config, job.words) for job in jobs])
        except InputError:
            return {}
        return {
            job: str(error) for job, error in zip(jobs, folders_or_errors, strict=True) if isinstance(error, InputError)
        }


class Here:
    """Runs jobs one after another in this process.

    ``together``: those of one table and seed are trained in one pass over the data.
    """

    def __init__(self, *, together: bool) -> None:
        self.together = together

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job with its outcome, in their order."""
        worker = Worker()
        for _, group in groupby(jobs, key=lambda job: (job.table, job.seed)):
            alike = list(group)
            failures = worker.train(alike) if self.together and len(alike) > 1 else {}
            for job in alike:
                try:
                    yield job, failures.get(job) or worker.fill(job.config, job.words)[0]
                except InputError as error:
                    yield job, str(error)


class Workers:
    """Runs jobs in ``count`` worker processes that share the cores; each takes the next job when it has ended one.

    A runner is used for one list of jobs.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._waiting = SimpleQueue[Job]()
        self._outcomes = SimpleQueue[tuple[Job, Outcome]]()
        self._processes = ExitStack()
        self._starting = Lock()  # held while a process is started, and to forbid that any more are
        self._stopped = False

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job with its outcome. Errors: InputError when their target cannot be made."""
        with _process(["target", *jobs[0].words]) as process:  # once and on all cores: the workers find it there
            if process.wait():
                raise InputError("the target could not be made, its reason is above")
        for job in jobs:
            self._waiting.put(job)
        with self._processes:
            try:
                for _ in range(self.count):
                    Thread(target=self._work, daemon=True).start()
                for _ in jobs:
                    yield self._outcomes.get()
            finally:
                with self._starting:
                    self._stopped = True

    def _work(self) -> None:
        """Has one worker process fill jobs until none waits; a process that ended is started again."""
        process: subprocess.Popen[str] | None = None
        threads = str(max(1, (os.cpu_count() or 1) // self.count))
        with suppress(Empty):
            while True:
                job = self._waiting.get_nowait()
                with self._starting:
                    if self._stopped:
                        return
                    try:
                        if process is None or process.poll() is not None:
                            process = self._processes.enter_context(_process(["worker"], OMP_NUM_THREADS=threads))
                    except OSError as error:
                        self._outcomes.put((job, f"its process could not be started: {error.strerror or error}"))
                        continue
                self._outcomes.put((job, _ask(process, job)))
        if process is not None and process.stdin is not None:
            process.stdin.close()


class Cluster:
    """Hands jobs to one of Hydra's launchers and reads what they left under ``runs/jobs/``."""

    def __init__(self, launcher: str, runs: Path) -> None:
        self.launcher, self.runs = launcher, runs

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job with its outcome, one sweep for all that share backbone and settings."""
        for backbone, settings in dict.fromkeys((job.backbone, job.settings) for job in jobs):
            alike = [job for job in jobs if (job.backbone, job.settings) == (backbone, settings)]
            paths = {job: outcome_path(job.config) for job in alike}
            for path in paths.values():
                path.unlink(missing_ok=True)
            reason = self._sweep(backbone, settings, alike)
            for job, path in paths.items():
                answer = read_json(path) if path.is_file() else {"failed": reason}
                yield job, _outcome(answer)

    def _sweep(self, backbone: str, settings: Sequence[str], jobs: Sequence[Job]) -> str:
        """Runs the jobs as one sweep; returns why a job that left nothing failed."""
        logs = f"{self.runs}/.submitit"
        objectives = ",".join(dict.fromkeys(job.objective for job in jobs))
        seeds = ",".join(dict.fromkeys(str(job.seed) for job in jobs))
        sweep = [*settings, f"backbone={backbone}", f"objective={objectives}", f"seed={seeds}"]
        print(f"{len(jobs)} jobs on {backbone} go to the launcher {self.launcher}; logs: {logs}", file=sys.stderr)
        try:
            compose.run_hydra(fill_as_hydra_job, ["-m", f"hydra/launcher={self.launcher}", *sweep])
        except InputError as error:
            return str(error)
        return f"its job left no result; see {logs}"


def fill_as_hydra_job(config: Config, overrides: list[str]) -> None:
    """A job as a job of a sweep: fills it and writes its outcome to ``runs/jobs/``."""
    path = outcome_path(config)
    try:
        write_json(path, {"record": str(Worker().fill(config, overrides)[1])})
    except InputError as error:
        write_json(path, {"failed": str(error)})
        raise


def outcome_path(config: Config) -> Path:
    """Where a job of a sweep writes its outcome; other settings, another path: two sweeps may wait in one queue."""
    name = f"{config.backbone.name}-{config.objective.name}-s{config.seed}-{digest(config.resolved, 8)}.json"
    return layout.job_result(Path(config.runs), name)


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


def _ask(process: "subprocess.Popen[str]", job: Job) -> Outcome:
    """Has a worker process fill a job."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(job.words), file=process.stdin, flush=True)
        return _outcome(json.loads(process.stdout.readline()))
    except InputError as error:
        return str(error)
    except (OSError, ValueError):
        code = process.wait()
        return f"its process ended {f'by signal {-code}' if code < 0 else f'with code {code}'}"


def _outcome(answer: dict[str, str]) -> Outcome:
    """What a worker process or a job of a sweep answered. Errors: InputError for a damaged record."""
    return load_record(Path(answer["record"])) if "record" in answer else str(answer["failed"])


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
