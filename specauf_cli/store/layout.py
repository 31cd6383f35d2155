"""Runs on disk: the only file that knows what is where under ``runs/``.

runs/<run id>/                one drafter
    run.json                  settings, inputs, code state, command
    log.jsonl                 one line per ``trainer.log_every`` steps
    checkpoints/              what an interrupted training continues from
    drafter/                  the trained drafter, in the public layout
    finished.json             last line of the log and totals; failed.json: why it failed
    snapshots/step-NNNNNN/    a drafter kept during training, with records/ of its own
    records/                  what was measured
    export/<layout>/          what ``specauf export`` wrote
    speed/                    what ``specauf speed`` timed, records and pages
runs/aside/                   runs that ``specauf train --force`` moved out of the way
runs/targets/<id>/            a target trained here (an ordinary Hugging Face folder); <id>.training/ until it is whole
runs/trajectories/<target>/   what the target alone emits, shared by every drafter
runs/features/<hash>/         target features of the training data (trainer.features=disk)
runs/servers/<id>/            what a running server answered and counted; referee/: how it compares, records and pages
runs/lookup/                  what prompt lookup reaches on the answers of a target
runs/tables/                  what ``specauf table`` printed, and which records each last table was made of
runs/figures/<profile>/       what ``specauf figures`` drew
runs/reports/                 what ``specauf report`` wrote
runs/views/                   what ``specauf view`` wrote
runs/jobs/                    results of jobs that a launcher ran
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specauf_cli.config import identity, settings
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError, nearest
from specauf_cli.store import signature
from specauf_cli.store.files import digest, file_sha256, held, is_number, read_json, read_log
from specauf_cli.store.provenance import code_state
from specauf_cli.store.records import RunRecord, load_record, settings_of

FINISHED, FAILED, ABOUT = "finished.json", "failed.json", "run.json"
CHECKPOINT = re.compile(r"step-\d{6,}")


def drafter_of(folder: Path) -> Path:
    """The folder of a run's trained drafter."""
    return folder / "drafter"


def weights_of(folder: Path) -> Path:
    """The file of a run's trained weights."""
    return drafter_of(folder) / "model.safetensors"


def log_of(folder: Path) -> Path:
    """The training log of a run, or of a target under training."""
    return folder / "log.jsonl"


def checkpoints_of(folder: Path) -> Path:
    """The folder of the checkpoints that a training continues from."""
    return folder / "checkpoints"


def checkpoint(checkpoints: Path, step: int) -> Path:
    """A checkpoint in the folder of checkpoints of a training."""
    return checkpoints / f"step-{step:06d}"


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in that folder, ascending; none where it does not exist."""
    return sorted(int(p.name.removeprefix("step-")) for p in checkpoints.glob("step-*") if CHECKPOINT.fullmatch(p.name))


def records_of(folder: Path) -> Path:
    """The folder of the records of a run, or of a snapshot."""
    return folder / "records"


def record_path(folder: Path, record_id: str) -> Path:
    """The file of one record of a run, or of a snapshot."""
    return records_of(folder) / f"{record_id}.json"


def record_paths(folder: Path) -> list[Path]:
    """The files of every record of a run, or of a snapshot, by name."""
    return sorted(records_of(folder).glob("*.json"))


def export_of(folder: Path, layout: str) -> Path:
    """Where a run's drafter is exported to, in a public layout, unless the user names another folder."""
    return folder / "export" / layout


def speed_of(folder: Path) -> Path:
    """Where what was timed of a run is kept."""
    return folder / "speed"


def snapshot(folder: Path, step: int) -> Path:
    """The folder of the drafter that a run kept at ``step``; its records are below it."""
    return folder / "snapshots" / f"step-{step:06d}"


def has_snapshots(folder: Path) -> bool:
    """True when a run kept drafters during training."""
    return (folder / "snapshots").is_dir()


def snapshot_steps(folder: Path) -> list[int]:
    """Steps at which a run kept its drafter. Errors: InputError when it kept none."""
    names = [path.name[5:] for path in (folder / "snapshots").glob("step-*")]
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps:
        raise InputError(
            f"run {folder.name} kept no drafter during training; train it with trainer.snapshot_every=STEPS or "
            "trainer.eval_every=STEPS"
        )
    return steps


def snapshot_record_paths(folder: Path) -> list[Path]:
    """The records of every drafter that a run kept during training, by step."""
    return sorted((folder / "snapshots").glob("*/records/*.json"))


def aside(runs: Path) -> Path:
    """Where ``specauf train --force`` moves runs."""
    return runs / "aside"


def targets(runs: Path) -> Path:
    """Where targets that were trained here are kept."""
    return runs / "targets"


def target_training(target: Path) -> Path:
    """Where the training of a target keeps its work until the target is complete."""
    return target.with_name(target.name + ".training")


def trajectories(runs: Path, fingerprint: str) -> Path:
    """Where the trajectories of the target with this fingerprint are cached."""
    return runs / "trajectories" / fingerprint[:16].replace("/", "_")


def features(runs: Path) -> Path:
    """Where target features are kept on disk."""
    return runs / "features"


def server(runs: Path, name: str) -> Path:
    """Where the answers and records of one running server are kept."""
    return runs / "servers" / name


def answers_of(server: Path) -> Path:
    """The answers of a running server, one line each."""
    return server / "answers.jsonl"


def referee_of(server: Path) -> Path:
    """Where the records and pages of the referee about a running server are kept."""
    return server / "referee"


def lookup(runs: Path) -> Path:
    """Where the records of prompt lookup are kept, which belong to no run."""
    return runs / "lookup"


def tables(runs: Path) -> Path:
    """Where ``specauf table`` writes its pages."""
    return runs / "tables"


def last_tables(runs: Path, profile: str) -> Path:
    """The file that names the records of a profile's last tables."""
    return tables(runs) / f"{profile}.json"


def figures(runs: Path, profile: str) -> Path:
    """Where ``specauf figures`` draws the figures of a profile."""
    return runs / "figures" / profile


def report(runs: Path, profile: str) -> Path:
    """The HTML report of a profile."""
    return runs / "reports" / f"{profile}.html"


def view(runs: Path, names: Sequence[str]) -> Path:
    """The page of ``specauf view`` for the runs of these names."""
    return runs / "views" / f"{'-and-'.join(names)}.html"


def job_result(runs: Path, name: str) -> Path:
    """Where a job that a launcher ran leaves its result."""
    return runs / "jobs" / name


def all_measured(folder: Path) -> list[RunRecord]:
    """The measurements of a run: one record per set of evaluation settings (precision, length, seed), the newest last.

    Each contains every benchmark that was measured with these settings, the newest result per prompt set. Errors:
    InputError when the run was never measured.
    """
    merged: dict[str, RunRecord] = {}
    for record in measured(folder):
        key = digest(settings_of(record))
        known = merged.pop(key).benchmarks if key in merged else ()
        newest = {(b.benchmark, b.temperature, b.prompts_sha256): b for b in (*known, *record.benchmarks)}
        merged[key] = replace(record, benchmarks=tuple(newest.values()))
    if not merged:
        raise InputError(f"run {folder.name} was not measured yet; specauf eval --run {folder.name}")
    return list(merged.values())


def record_of(file: str) -> RunRecord:
    """The record in a file that a user named. Errors: InputError where there is none, or a damaged one."""
    if not Path(file).is_file():
        raise InputError(f"no record {file}: there is no such file")
    return load_record(Path(file))


def measured_of(runs: Path, name: str) -> list[RunRecord]:
    """The measurements of a finished run (its id or path), or the one of a record's file (a path that ends in .json).

    Errors: InputError for an unknown run or file, for a damaged record, and for a run that was never measured.
    """
    if name.endswith(".json"):
        return [record_of(name)]
    (folder,) = find(runs, [name], every=False)
    return all_measured(folder)


@dataclass(frozen=True)
class State:
    """One run as it is on disk: ``finished``, ``training`` (now; ``reason`` says where), ``failed`` or
    ``interrupted``."""

    name: str
    state: str
    step: int
    about: dict[str, Any]
    log: list[dict[str, float]]
    reason: str = ""

    @property
    def origin(self) -> str:
        """The source of an imported drafter; empty for one that was trained here."""
        imported = self.about.get("imported")
        return f"imported from {imported.get('source')}" if isinstance(imported, dict) else ""


def states(runs: Path) -> list[State]:
    """Every run under ``runs``, by name; one whose files cannot be trusted is ``damaged``."""
    known = []
    for folder in sorted(f.parent for f in runs.glob(f"*/{ABOUT}")):
        try:
            known.append(state(folder))
        except InputError as error:
            known.append(State(folder.name, "damaged", 0, {}, [], str(error)))
    return known


def state(folder: Path) -> State:
    """The state of one run. Errors: InputError for damaged files."""
    about, log = about_of(folder), read_log(log_of(folder))
    step = max([int(log[-1]["step"]) if log else 0, *checkpoint_steps(checkpoints_of(folder))])
    if (folder / FINISHED).is_file():
        result_of(folder)
        return State(folder.name, "finished", step, about, log)
    if holder := held(folder):
        return State(folder.name, "training", step, about, log, f"in {holder}")
    if (folder / FAILED).is_file():
        return State(folder.name, "failed", step, about, log, _reason(folder))
    return State(folder.name, "interrupted", step, about, log)


def _reason(folder: Path) -> str:
    failure = read_json(folder / FAILED)
    return str(failure.get("reason")) if isinstance(failure, dict) else "unknown"


def measured(folder: Path) -> list[RunRecord]:
    """The records of a run, oldest first. Errors: InputError for a damaged one, or one of another run."""
    records = sorted((load_record(path) for path in record_paths(folder)), key=lambda r: r.written)
    for record in records:
        if record.run != folder.name:
            raise InputError(f"{record_path(folder, record.id)} is a record of {record.run}; move it there")
    return records


def find(runs: Path, names: Sequence[str], *, every: bool, finished_only: bool = True) -> list[Path]:
    """Folders of the named runs (id or path), of all finished runs, or of the latest finished one.

    Errors: InputError for an unknown or unfinished run, or when there is none.
    """
    known = {f.parent.name: f.parent for f in runs.glob(f"*/{ABOUT}")}
    finished = {n: f for n, f in known.items() if (f / FINISHED).exists()}
    if not names and not every and len(finished) > 1:  # the default is the latest run that is not damaged
        whole = {n: f for n, f in finished.items() if _is_whole(f)}
        if whole and len(whole) < len(finished):
            damaged = ", ".join(sorted(set(finished) - set(whole)))
            print(f"specauf: passed over, damaged: {damaged} (`specauf ls` says how)", file=sys.stderr)
        finished = whole or finished
    if not names:
        if not finished:
            raise InputError(
                f"no finished run under {runs}/; train one first: specauf train objective=auf backbone=dflash"
            )
        newest = sorted(finished, key=lambda n: (finished[n] / FINISHED).stat().st_mtime_ns, reverse=True)
        return [finished[n] for n in (sorted(finished) if every else newest[:1])]
    folders = []
    for name in names:
        folder = Path(name) if (Path(name) / ABOUT).is_file() else known.get(name)
        if folder is None:
            raise InputError(
                f"no run {name!r} under {runs}/; there are: {', '.join(sorted(known)) or 'none'}.{nearest(name, known)}"
            )
        if finished_only:
            result_of(folder)
        folders.append(folder)
    return folders


def initial(runs: Path, name: str | None) -> tuple[Path, str] | None:
    """The folder of the drafter that training starts from, and the hash of its weights; None for random weights.

    Errors: InputError for an unknown or unfinished run.
    """
    if name is None:
        return None
    if not name.strip():
        raise InputError("init= is empty; it names a finished run to start from, or null for random weights")
    (folder,) = find(runs, [name], every=False)
    return drafter_of(folder), file_sha256(weights_of(folder))


def _is_whole(folder: Path) -> bool:
    try:
        return bool(about_of(folder) and result_of(folder))
    except InputError:
        return False


def about_of(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says. Errors: InputError when it is damaged or was written for a folder of another name."""
    about: dict[str, Any] = read_json(folder / ABOUT)
    kinds = {"run": str, "overrides": list, "config": dict, "inputs": dict, "data": dict, "code": dict, "command": str}
    whole = isinstance(about, dict) and all(isinstance(about.get(k), kind) for k, kind in kinds.items())
    whole = whole and {"commit", "dirty"} <= set(about["code"]) and all(isinstance(o, str) for o in about["overrides"])
    for group in ("backbone", "objective", "target", "data", "profile", "trainer"):
        part = about["config"].get(group) if whole else None
        whole = isinstance(part, dict) and (group == "trainer" or isinstance(part.get("name"), str))
    if not whole or "name" not in about["data"]:
        raise InputError(f"{folder / ABOUT} is damaged; move {folder} aside and train again")
    if about["run"] != folder.resolve().name:
        raise InputError(f"{folder} holds the run {about['run']}; a run's folder keeps its name, so rename it back")
    return about


def signature_of(run: str, overrides: Sequence[str]) -> str | None:
    """This user's signature of a run's overrides, for its ``run.json``; None where no key can be kept."""
    return signature.sign([run, list(overrides)])


def is_signed(about: dict[str, Any]) -> bool:
    """True when ``run.json`` (``about_of``) shows that this user typed the overrides of the run."""
    return signature.is_own([about["run"], about["overrides"]], about.get("signature"))


@contextmanager
def intact(folder: Path, files: str) -> Iterator[None]:
    """Reports a run's ``files`` as damaged when the block misses a key in them or finds a value of another kind."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(f"{folder}/{files} is damaged; move {folder} aside and train again") from error


def result_of(folder: Path) -> dict[str, Any]:
    """What ``finished.json`` says. Errors: InputError when the run is not finished, or its files are damaged."""
    if not (folder / FINISHED).exists():
        raise InputError(f"run {folder.name} is not finished; continue it with the command in {folder / ABOUT}")
    result = read_json(folder / FINISHED)
    whole = (
        isinstance(result, dict) and isinstance(result.get("last"), dict) and type(result["last"].get("step")) is int
    )
    whole = whole and all(is_number(result.get(k)) for k in ("seconds", "peak_memory_mib"))
    if not whole or not (drafter_of(folder) / "config.json").is_file() or not weights_of(folder).is_file():
        raise InputError(
            f"{folder / FINISHED} or the drafter next to it is damaged; move {folder} aside and train again"
        )
    return dict(result)


def other_code(then: dict[str, Any]) -> str:
    """A warning if the code is not, or may not be, what a finished run was trained with; its id does not cover code."""
    now_, known = code_state(), not then["dirty"] or "changes" in then
    if then == now_ and known:
        return ""
    if then["commit"] == now_["commit"] and not (then["dirty"] or now_["dirty"]):
        return ""
    trained = f"at commit {str(then['commit'])[:12]}" + (" with uncommitted changes" if then["dirty"] else "")
    why = "the code is another one now" if known else "its name does not cover the code"
    return f" (trained {trained}; {why}: --force trains it again)"


CURVE = ("loss", "accuracy", "active_ratio", "support_accuracy", "accept_length")


def curve_of(folder: Path) -> dict[str, list[float]]:
    """The columns of ``log.jsonl`` that figures and claims need, rounded, one list per column."""
    lines = read_log(log_of(folder))
    if not lines and result_of(folder)["last"]["step"] == 0:  # it was trained elsewhere
        return {}
    if not lines or lines[-1]["step"] != result_of(folder)["last"]["step"]:
        raise InputError(f"{log_of(folder)} is damaged; move {folder} aside and train again")
    names = ["step", *CURVE, "base_loss", "final_loss", *(f"base_{n}" for n in CURVE[1:])]
    return {n: [round(x[n], 4) for x in lines] for n in names if lines and n in lines[0]}


def check_same_training(config: Config, folder: Path) -> None:
    """InputError, before anything is loaded or trained, when ``config`` would train another drafter than ``folder``
    holds."""
    then, now = (settings.identity(identity.upgraded(c)) for c in (about_of(folder)["config"], config.resolved))
    other = [group for group in now if then.get(group) != now[group]]
    if other:
        raise InputError(
            f"run {folder.name} was trained with another {', '.join(other)} than these settings say; eval accepts "
            "evaluation.* and benchmark settings only"
        )
