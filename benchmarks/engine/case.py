"""The cases of ``make engine`` (cases.yaml), and the command that serves one of them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Strict
from pydantic.dataclasses import dataclass

from benchmarks.engine.plugin.specauf_vllm_cpu import WORKAROUNDS
from specauf_cli.config.schema import CLOSED
from specauf_cli.config.settings import validated
from specauf_cli.engines.serve_command import serve_command
from specauf_cli.errors import InputError, nearest
from specauf_cli.interchange.export import export_drafter
from specauf_cli.store import layout
from specauf_cli.store.files import read_json, write_json

FILE = Path(__file__).with_name("cases.yaml")
ON_A_CPU = [
    "--enforce-eager",
    *("--kv-cache-memory-bytes", str(2**26)),
    *("--max-num-seqs", "8"),
    *("--max-num-batched-tokens", "1024"),
]
"""What `specauf serve-command` does not print: no compilation, and a cache and batches that fit a small machine."""

COUNTS = "--per-request-spec-decode-metrics"


@dataclass(frozen=True, config=CLOSED)
class Trained:
    """A drafter that is trained here; ``settings``: more words of `specauf train`."""

    backbone: str
    objective: str
    settings: Annotated[tuple[str, ...], Strict(False)] = ()


@dataclass(frozen=True, config=CLOSED)
class Case:
    """One server that is judged; the keys are explained in cases.yaml."""

    name: str
    title: str
    target: str = "tiny"
    drafter: Trained | None = None
    layout: Literal["vllm", "hf"] | None = None
    speculative: dict[str, Any] | None = None
    runner: Literal["V1", "V2"] = "V1"
    without: Annotated[tuple[str, ...], Strict(False)] = ()
    config: dict[str, Any] = field(default_factory=dict)
    verdict: Literal["equal", "rounding", "differs"] = "equal"

    @property
    def workarounds(self) -> list[str]:
        """Those that its server runs with."""
        return [w for w in WORKAROUNDS if w not in self.without]


def load_cases(only: Sequence[str] = ()) -> list[Case]:
    """The cases of cases.yaml, or those named in ``only``. Errors: InputError for a case that cannot be, or an unknown
    name."""
    rows = yaml.safe_load(FILE.read_text("utf-8"))
    cases = {name: validated(Case, {"name": name, **row}, name) for name, row in rows.items()}
    for case in cases.values():
        if (case.drafter is None) != (case.layout is None) or (case.drafter and case.speculative):
            raise InputError(f"{FILE.name}: {case.name}: a drafter has a layout, and nothing else may draft beside it")
        for name in set(case.without) - set(WORKAROUNDS):
            valid = f"valid: {', '.join(WORKAROUNDS)}.{nearest(name, WORKAROUNDS)}"
            raise InputError(f"{FILE.name}: {case.name}.without: no workaround {name!r}; {valid}")
    for name in only:
        if name not in cases:
            raise InputError(f"--only {name}: valid are {', '.join(cases)}.{nearest(name, cases)}")
    return [case for name, case in cases.items() if not only or name in only]


def train(cases: Sequence[Case], runs: Path) -> dict[tuple[str, Trained], Path]:
    """The runs of every drafter of ``cases``, by target, trained with `specauf train` unless they are there.

    A case without a drafter is held to a run of its target: of the first drafter that cases.yaml has for it, else of
    DFlash with AUF.
    """
    needed = [(case.target, case.drafter or _first_of(case.target)) for case in cases]
    together: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for target, drafter in dict.fromkeys(needed):
        together.setdefault((target, drafter.backbone, drafter.settings), []).append(drafter.objective)
    folders: dict[tuple[str, Trained], Path] = {}
    for (target, backbone, settings), objectives in together.items():
        words = ["train", "--together", f"target={target}", f"backbone={backbone}"]
        words += [f"objective={','.join(sorted(objectives))}", *settings]
        words = [sys.executable, "-m", "specauf_cli", *words, "profile=laptop", f"runs={runs}"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise InputError(f"{shlex.join(words)} ended with {done.returncode}")
        for line in done.stdout.splitlines():
            objective = layout.about_of(Path(line))["config"]["objective"]["name"]
            folders[target, Trained(backbone, objective, settings)] = Path(line)
    return folders


def _first_of(target: str) -> Trained:
    drafters = (case.drafter for case in load_cases() if case.target == target and case.drafter)
    return next(drafters, Trained("dflash", "auf"))


def command(case: Case, run: Path, *, name: str, port: int, drafters: Path) -> tuple[list[str], dict[str, str]]:
    """What serves ``case`` under ``name``, and the variables of its environment.

    It is what `specauf serve-command --backend vllm` prints for ``run`` (for a case without a drafter: any run of the
    target), with what the case changes and a small machine needs. ``drafters``: where changed exports are written.
    """
    export = layout.export_of(run, case.layout or "vllm")
    if not (export / "config.json").is_file():
        export_drafter(run, export, layout=export.name, dtype="fp32")
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()):
        serve_command("vllm", run.name, str(export), [f"runs={run.parent}"])
    printed = shlex.split(output.getvalue().splitlines()[-1])
    start = printed.index("vllm")
    variables = dict(word.split("=", 1) for word in printed[:start])
    command = _replaced(printed[start + 1 :], "--port", str(port))
    command = _replaced(command, COUNTS, "detailed")  # every round instead of a histogram
    if case.drafter is None and case.speculative is None:
        command = _without(_without(command, "--speculative-config"), COUNTS)
    elif case.speculative is not None:
        command = _replaced(command, "--speculative-config", json.dumps(case.speculative))
    elif case.config:
        speculative = json.loads(command[command.index("--speculative-config") + 1])
        speculative["model"] = str(_changed(export, case.config, drafters / case.name))
        command = _replaced(command, "--speculative-config", json.dumps(speculative))
    return [*command, "--served-model-name", name, *ON_A_CPU], variables


def _changed(export: Path, changes: Mapping[str, Any], folder: Path) -> Path:
    """A copy of ``export`` whose config.json has ``changes``."""
    config = read_json(export / "config.json")
    for key in changes:
        if key not in config:
            raise InputError(f"{FILE.name}: {export}/config.json has no {key}.{nearest(key, config)}")
    write_json(folder / "config.json", {**config, **changes})
    weights = folder / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to((export / "model.safetensors").resolve())
    return folder


def _replaced(words: Sequence[str], option: str, value: str) -> list[str]:
    """``words`` with another value of ``option``."""
    at = words.index(option)
    return [*words[: at + 1], value, *words[at + 2 :]]


def _without(words: Sequence[str], option: str) -> list[str]:
    """``words`` without ``option`` and its value."""
    at = words.index(option)
    return [*words[:at], *words[at + 2 :]]
