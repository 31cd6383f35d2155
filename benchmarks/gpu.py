"""What only a GPU can say, in one command: tests, share of the peak, attention, and a study of real size.

    make gpu                                                          28 minutes on one NVIDIA GPU, no network
    make gpu ARGS='--minutes 10'                                      less; the same command continues
    make gpu ARGS='--again steps'                                     a finished part again; without a name: all parts
    make gpu GPU_PYTHON=python3 ARGS='--commit SHA'                   a copy of the tree, nothing to be installed
    python benchmarks/gpu.py --device cpu --small --out DIR           the command at its smallest, on any machine

Four parts, in this order; each is written to benchmarks/gpu.json before the next begins, and is then done:

- tests      those marked gpu
- steps      seconds of a training step and its share of the GPU's peak, at the paper's sizes (limits.py; goal 45 %)
- attention  flex_attention against split attention at these sizes (attention.py)
- study      tables 2 and 4 of profile h200, in all the time that is left; runs/ holds its records and tables

A part has a limit of its own so that the next ones get their share. One that is cut keeps the cells, drafters and
measurements that it finished. The study needs real conversations: SPECAUF_DATA=DIR or --data DIR, as profile=cpu_real.
Exit status: 0 all parts are done, 1 something failed, 2 it cannot run here, 3 time ran out or a part was left out.
"""

import argparse
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.records import GRACE, ROOT, Measurement
from specauf_cli.errors import InputError, nearest
from specauf_cli.store import layout
from specauf_cli.store.files import lock, read_json, write_json
from specauf_cli.store.provenance import environment

DONE, UNFINISHED, FAILED, SKIPPED = "done", "unfinished", "failed", "skipped"
PAPER = ("profile=paper", "trainer.batch_size=4", "data.known.tokens=1296", "device=cuda")
"""One device's part of the paper's batch, in sequences that padding makes 1,312 tokens long (a multiple of 32)."""
WIDTHS = {4096: "qwen3_8b", 2560: "qwen3_4b"}
SMOKE = ("profile=smoke", "device=cpu")

STEPS: dict[str, tuple[str, ...]] = {
    f"{title}, width {width}": (*PAPER, f"target={target}", *words)
    for width, target in WIDTHS.items()
    for title, words in {
        "DFlash AUF": ("objective=auf",),
        "DFlash full-CE": ("objective=full_ce",),
        "Domino B-AUF": ("objective=b_auf", "backbone=domino"),
    }.items()
}
SMALL_STEPS: dict[str, tuple[str, ...]] = {"DFlash AUF, smoke": (*SMOKE, "objective=auf")}
ATTENTION: dict[str, tuple[str, ...]] = {
    f"width {width}, {length} tokens": ("--length", str(length), *PAPER, f"target={target}")
    for width, target in WIDTHS.items()
    for length in (1024, 3072)
}
SMALL_ATTENTION: dict[str, tuple[str, ...]] = {"smoke": ("--length", "64", "--repeat", "2", *SMOKE)}
STUDY = ("table2", "table4", "--only", "full_ce,decay,auf_decay,auf,b_auf,b_auf_decay", "profile=h200", "device=cuda")
SMALL_STUDY = (
    "table2",
    "--only",
    "auf",
    *SMOKE,
    "trainer.steps=2",
    "evaluation.prompts=1",
    "evaluation.max_new_tokens=8",
)
A_CELL = 240.0
"""Seconds after which a cell has failed."""


@dataclass(frozen=True)
class Setting:
    """What all parts share. ``data``: the folder with conversations for the study; None: there is none.

    ``commit``: that of a copy of the tree without its history.
    """

    device: str
    small: bool
    runs: Path
    data: Path | None
    commit: str | None = None


@dataclass(frozen=True)
class Job:
    """One part while it runs. ``content``: what it has found, kept from an earlier call that was cut; ``save`` writes
    it; ``ends``: when its time is up, on the clock of ``time.monotonic``."""

    setting: Setting
    content: dict[str, Any]
    save: Callable[[], None]
    ends: float

    @property
    def left(self) -> float:
        """Seconds that it still has."""
        return self.ends - time.monotonic()


@dataclass(frozen=True)
class Part:
    """``work`` does it and returns how it ended; ``most`` seconds at a time, and it is not begun with fewer than
    ``least``."""

    work: Callable[[Job], str]
    most: float
    least: float


def tests(job: Job) -> str:
    """Those marked ``gpu``: how many passed, which did not."""
    files = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text("utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
        ran = records.run([sys.executable, *words], seconds=job.left, env={"SPECAUF_GPU_TESTS": job.setting.device})
        if ran.code is None:
            return UNFINISHED
        if not report.is_file():
            job.content["why"] = ran.reason
            return FAILED
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    named = {f"{case.get('classname')}.{case.get('name')}": {child.tag for child in case} for case in cases}
    failed = [name for name, ended in named.items() if ended & {"failure", "error"}]
    skipped = [name for name, ended in named.items() if "skipped" in ended]
    job.content.update(passed=len(named) - len(failed) - len(skipped), failed=failed, skipped=skipped)
    return DONE if ran.code == 0 and job.content["passed"] and not skipped else FAILED


def steps(job: Job) -> str:
    """A training step at the paper's sizes, cell by cell."""
    words = ["--cell", "--steps", "2" if job.setting.small else "12"]
    return _cells(job, "benchmarks.limits", words, SMALL_STEPS if job.setting.small else STEPS)


def attention(job: Job) -> str:
    """Both attentions at the paper's sizes, cell by cell."""
    return _cells(job, "benchmarks.attention", ["--cell"], SMALL_ATTENTION if job.setting.small else ATTENTION)


def _cells(job: Job, module: str, words: Sequence[str], cells: dict[str, tuple[str, ...]]) -> str:
    """Every cell that has no numbers yet, in a process of its own; one that fails leaves the others running."""
    rows: dict[str, Any] = job.content.setdefault("rows", {})
    for name, more in cells.items():
        if name in rows and "error" not in rows[name]:
            continue
        seconds = min(A_CELL, job.left)
        if seconds <= 0:
            return UNFINISHED
        try:
            rows[name] = records.cell(module, [*words, *more], seconds=seconds)
        except InputError as error:
            if job.left <= 0:  # cut by the part's limit, which says nothing about the cell
                return UNFINISHED
            rows[name] = {"error": str(error)}
        print(f"  {name}: {rows[name]}", flush=True)
        job.save()
    return FAILED if any("error" in row for row in rows.values()) else DONE


def study(job: Job) -> str:
    """The tables of the profile for one GPU; a training that is cut saves its state, the next call continues it."""
    setting = job.setting
    words = [*(SMALL_STUDY if setting.small else STUDY), f"runs={setting.runs.resolve()}"]
    if not setting.small:
        if setting.data is None or not (setting.data / "train").is_dir():
            why = (
                "no conversations: give DIR with train/*.jsonl and benchmarks/*.jsonl as --data DIR or SPECAUF_DATA=DIR"
            )
            job.content["why"] = why
            return SKIPPED
        words.append(f"data_root={setting.data.resolve()}")
    ran = records.run([sys.executable, "-m", "specauf_cli", "table", *words], seconds=job.left, shown=True)
    profile = next(word.partition("=")[2] for word in words if word.startswith("profile="))
    measured = {
        state.name: len(layout.record_paths(setting.runs / state.name))
        for state in layout.states(setting.runs)
        if f"-{profile}-s" in state.name and state.state == "finished"
    }
    tables = [path.name for path in sorted(layout.tables(setting.runs).glob(f"{profile}-*.md"))]
    job.content.update(profile=profile, records=measured, tables=tables)
    if ran.code:
        job.content["why"] = f"specauf table ended with {ran.reason}"
    return DONE if ran.code == 0 else UNFINISHED if ran.code is None else FAILED


PARTS = {
    "tests": Part(tests, most=180, least=20),
    "steps": Part(steps, most=480, least=30),
    "attention": Part(attention, most=180, least=30),
    "study": Part(study, most=float("inf"), least=60),
}
"""In the order in which they run. The first three may take 14 of the 28 minutes; the study gets the rest."""


def share(part: Part, left: float) -> float | None:
    """Seconds for a part when ``left`` seconds of the whole remain, with time to end it; None: too few."""
    seconds = min(part.most, left - GRACE)
    return seconds if seconds >= part.least else None


def same_place(one: dict[str, Any], setting: Setting) -> bool:
    """Whether a part's record was measured on this kind of device, and at this size."""
    here = environment(setting.device, torch.get_num_threads())
    known = one["environment"]
    return bool(one["small"] == setting.small and all(known[k] == here[k] for k in ("device", "gpu")))


def run_parts(setting: Setting, path: Path, *, minutes: float, only: Sequence[str], again: Sequence[str]) -> int:
    """Runs what is not done yet and writes every part to ``path``; the exit status of the command."""
    ends = time.monotonic() + 60 * minutes
    record: dict[str, Any] = read_json(path) if path.is_file() else {"parts": {}}
    ended = []
    for name in only:
        part, known = PARTS[name], record["parts"].get(name)
        if known is not None and (name in again or not same_place(known, setting)):
            known = None
        if known is not None and known["status"] == DONE:
            print(
                f"{name}: done at {known['date']}, commit {str(known['code']['commit'])[:7]}; --again {name} repeats it"
            )
            continue
        seconds = share(part, ends - time.monotonic())
        if seconds is None:
            print(f"{name}: no time left; the same command continues")
            ended.append(UNFINISHED)
            continue
        print(f"{name}: {seconds:.0f} s at most", flush=True)
        status = _run_part(name, known, setting, record, path, seconds)
        ended.append(status)
        found = record["parts"][name]
        print(f"{name}: {status}{': ' + found['why'] if 'why' in found else ''}, {found['seconds']:.0f} s", flush=True)
    print(f"record: {path}")
    return 1 if FAILED in ended else 3 if {UNFINISHED, SKIPPED} & set(ended) else 0


def _run_part(
    name: str, known: dict[str, Any] | None, setting: Setting, record: dict[str, Any], path: Path, seconds: float
) -> str:
    """Runs one part and writes it; one that was cut goes on with what it has, if the code is still the same."""
    measurement, begin = Measurement("make gpu", setting.commit), time.monotonic()
    continues = known is not None and known["status"] != DONE and known["code"] == measurement.code
    content: dict[str, Any] = {"rows": known["rows"]} if continues and known and "rows" in known else {}
    before = float(known["seconds"]) if continues and known else 0.0

    def save(status: str = UNFINISHED) -> None:
        spent = before + time.monotonic() - begin
        about = {"status": status, "seconds": round(spent, 1), "small": setting.small}
        threads = torch.get_num_threads()
        record["parts"][name] = {**about, **measurement.record(setting.device, threads, **content)}
        write_json(path, record)

    status = PARTS[name].work(Job(setting, content, save, begin + seconds))
    save(status)
    return status


def _parts(names: Sequence[str] | None) -> list[str]:
    """The parts that are named, in their order; all of them for none. Errors: InputError."""
    for name in names or ():
        if name not in PARTS:
            raise InputError(f"unknown part {name!r}; valid: {', '.join(PARTS)}.{nearest(name, PARTS)}")
    return [name for name in PARTS if not names or name in names]


def _setting(options: argparse.Namespace) -> Setting:
    """Errors: InputError where there is no such device, or none that is worth the real sizes."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"no CUDA device here (torch {torch.__version__}); needed is one NVIDIA GPU. To see the command without: "
            "python benchmarks/gpu.py --device cpu --small --out DIR"
        )
    if options.device == "cpu" and not options.small:
        raise InputError("--device cpu: the real sizes are for a GPU; add --small")
    if options.minutes <= 0:
        raise InputError(f"--minutes {options.minutes:g} must be above 0")
    return Setting(options.device, options.small, options.runs, options.data, options.commit)


def main(arguments: Sequence[str] | None = None) -> int:
    data = os.environ.get("SPECAUF_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="every part at its smallest")
    parser.add_argument("--minutes", type=float, default=28.0, help="of this call, all parts together")
    parser.add_argument("--only", action="append", metavar="PART", help="just this part; may be repeated")
    parser.add_argument("--again", nargs="*", metavar="PART", help="also parts that are done; without a name: all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of gpu.json")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the study's runs")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, help="conversations for the study")
    parser.add_argument("--commit", help="of this tree, where it is a copy without its history")
    options = parser.parse_args(arguments)

    def work() -> int:
        setting = _setting(options)
        again = [] if options.again is None else _parts(options.again)
        with lock(options.out, "make gpu"):
            path = options.out / "gpu.json"
            return run_parts(setting, path, minutes=options.minutes, only=_parts(options.only), again=again)

    return records.status_of("make gpu", work, "what is finished is kept, the same command continues")


if __name__ == "__main__":
    sys.exit(main())
