"""Measures every record in benchmarks/ again and writes the table of goals.

    make bench                                     hours on 2 cores: leave the machine alone meanwhile
    make bench ARGS='--only step --only limits'    just these
    make bench ARGS='--python specforge=PYTHON'    an interpreter for a package of peers.py
    python benchmarks/all.py --small --out DIR     every script at its smallest; says nothing about speed

Every script runs in a process of its own, one after the other. One that fails is named, and the next ones run; one that
needs packages that are not there is left out with a line. The drafters that some of them measure are trained first
where they are missing. Then benchmarks/README.md and the pages that show a record are written again. Exit status: 0,
or 1 if a script failed.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import goals, records
from benchmarks.engine import environment
from benchmarks.records import ROOT
from specauf_cli.errors import InputError, nearest
from specauf_cli.reporting.marks import fill
from specauf_cli.store.files import write_text

PEERS = ("speculators", "specforge")
TABLE2 = ("-m", "--together", "objective=full_ce,decay,auf_decay,auf")
KEPT = ("objective=auf", "trainer.snapshot_every=16")
AUF, DECAY, B_AUF = ("objective=auf",), ("objective=decay",), ("objective=b_auf", "backbone=domino")
SMALL = ("profile=smoke", "trainer.steps=16", "trainer.snapshot_every=8", "evaluation.prompts=1")


@dataclass(frozen=True)
class Options:
    """``folder``: where records go; ``python``: interpreters of the peers by package."""

    small: bool
    folder: Path
    runs: str
    python: dict[str, str]


@dataclass(frozen=True)
class Script:
    """``module`` writes its record to ``--out``; ``words`` and ``small`` are its further words at either size.

    ``trainings``: words of `specauf train` for the drafters that it gets as --run; ``with_runs``: it wants --runs;
    ``lacks``: why it cannot run here, empty where it can; ``pages``: modules that write pages from its record.
    """

    module: str
    words: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    trainings: tuple[tuple[str, ...], ...] = ()
    with_runs: bool = False
    out: str = ""
    lacks: Callable[[Options], str] = lambda _: ""
    pages: tuple[str, ...] = ()


def lacks_peers(options: Options) -> str:
    """Neither package can be imported by the interpreter that would run it."""
    missing = []
    for package in PEERS:
        python = options.python.get(package, sys.executable)
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        try:
            found = records.run([python, "-c", code]).code == 0
        except OSError:
            raise InputError(f"--python {package}={python}: there is no such interpreter") from None
        if not found:
            missing.append(package)
    if not missing:
        return ""
    return f"{' and '.join(missing)} not installed; name an interpreter that has it: --python {missing[0]}=PYTHON"


def lacks_engine(_: Options) -> str:
    """The engine's environment is not there, or for other versions."""
    return "" if environment.is_ready(ROOT / ".engine" / "venv") else "vLLM is not installed; `make engine` installs it"


SCRIPTS = {
    "step": Script("benchmarks.step", (), ("--vocabularies", "300", "--repeat", "1")),
    "peers": Script(
        "benchmarks.peers",
        (),
        ("--vocabularies", "300", "--precisions", "fp32", "--repeat", "1", "--steps", "1"),
        lacks=lacks_peers,
    ),
    "limits": Script("benchmarks.limits", (), ("--steps", "1", "profile=smoke"), out="limits"),
    "scale": Script("benchmarks.scale", (), ("--steps", "1", "--only", "block size"), out="scale"),
    "corpus": Script("benchmarks.corpus", (), ("--gigabytes", "0.001")),
    "plan": Script("benchmarks.plan", (), ("--steps", "2", "--only", "DFlash AUF")),
    "families": Script(
        "benchmarks.families",
        (),
        ("--only", "tiny_llama", "target.pretrain.steps=4", "trainer.steps=4", "evaluation.prompts=1"),
        with_runs=True,
    ),
    "replay": Script("benchmarks.replay", (), ("--repeat", "1"), (TABLE2,), with_runs=True),
    "draws": Script("benchmarks.draws", (), ("--seeds", "1", "--profile", "smoke"), (), with_runs=True),
    "weights": Script("benchmarks.weights", (), (), (KEPT,), with_runs=True, pages=("specauf_cli.reporting.gallery",)),
    "speed": Script(
        "benchmarks.speed",
        (),
        ("--prompts", "1", "--repeats", "1", "--repetitions", "2"),
        (DECAY, AUF, B_AUF),
        with_runs=True,
    ),
    "engine": Script(
        "benchmarks.engine.run", ("--again",), (), lacks=lacks_engine, pages=("specauf_cli.reporting.engines",)
    ),
}
"""In the order in which they run."""


class ScriptFailed(Exception):
    """What it said, in a line."""


def measure(name: str, options: Options) -> None:
    """Runs one script, and writes the pages of its record where that is the published one. Errors: ScriptFailed."""
    script = SCRIPTS[name]
    runs = [folder for words in script.trainings for folder in trained(words, options)]
    words = [*(script.small if options.small else script.words), *(w for run in runs for w in ("--run", run))]
    if script.with_runs:
        words += ["--runs", options.runs]
    if name == "peers":
        words += [word for pair in options.python.items() for word in ("--python", "=".join(pair))]
    if name != "engine":  # it has one place only
        words += ["--out", str(options.folder / (script.out or f"{name}.json"))]
    run([sys.executable, "-m", script.module, *words], shown=True)
    if options.folder == goals.FOLDER:
        for page in script.pages:
            run([sys.executable, "-m", page])


def trained(words: Sequence[str], options: Options) -> list[str]:
    """Folders of the drafters that ``specauf train words`` trains, or has trained before."""
    more = SMALL if options.small else ("profile=laptop",)
    command = [sys.executable, "-m", "specauf_cli", "train", *words, *more, f"runs={options.runs}"]
    return run(command).splitlines()


def run(words: Sequence[str], *, shown: bool = False) -> str:
    """What a process prints. Errors: ScriptFailed unless it ends well."""
    ran = records.run(words, shown=shown)
    if ran.code != 0:
        raise ScriptFailed(f"{shlex.join(words[1:4])}: {ran.reason}")
    return ran.out


def run_all(names: Sequence[str], options: Options) -> list[str]:
    """Runs the named scripts and returns those that failed."""
    failed = []
    for name in names:
        why = SCRIPTS[name].lacks(options)
        if not why and options.small and name == "engine":
            why = "it has no smaller size"
        if why:
            print(f"make bench: {name} is left out: {why}", file=sys.stderr)
            continue
        print(f"make bench: {name}", file=sys.stderr, flush=True)
        try:
            measure(name, options)
        except ScriptFailed as error:
            failed.append(name)
            print(f"make bench: {name} failed, the next ones run: {error}", file=sys.stderr, flush=True)
    return failed


def write_table(folder: Path) -> Path:
    """Writes the table of goals from the records in ``folder``: into benchmarks/README.md, or its copy in another
    folder."""
    path = folder / goals.PAGE.name
    write_text(path, fill(goals.PAGE.read_text("utf-8"), {"goals": goals.table(folder)}, goals.PAGE))
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="just this one; may be repeated")
    parser.add_argument("--small", action="store_true", help="every script at its smallest, to see that it runs")
    parser.add_argument("--out", type=Path, default=goals.FOLDER, help="folder of the records")
    parser.add_argument("--runs", default="runs", help="folder of the drafters that are measured")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER")
    given = parser.parse_args(arguments)
    return records.status_of("make bench", partial(bench, given), "records that were written are kept")


def bench(given: argparse.Namespace) -> int:
    """Runs what is asked for, then writes the table; the exit status. Errors: InputError for what cannot be asked."""
    for name in given.only:
        if name not in SCRIPTS:
            raise InputError(f"unknown benchmark {name!r}; valid: {', '.join(SCRIPTS)}.{nearest(name, SCRIPTS)}")
    if given.small and given.out.resolve() == goals.FOLDER:
        raise InputError("--small measures nothing: give --out DIR, another folder than that of the records")
    python = dict(word.split("=", 1) for word in given.python if "=" in word)
    if len(python) < len(given.python) or set(python) - set(PEERS):
        raise InputError(f"--python {given.python[-1]}: give PEER=INTERPRETER; PEER is one of {', '.join(PEERS)}")
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(given.small, folder, str(Path(given.runs).resolve()), python)
    failed = run_all([name for name in SCRIPTS if name in given.only or not given.only], options)
    print(write_table(folder))
    if failed:
        print(f"make bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
