"""Import: a checkpoint from elsewhere as a finished run of no training step."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specauf_cli.config import compose
from specauf_cli.config.overrides import key_of
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.interchange import formats
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models.dflash import DFlash
from specauf_cli.session import Session, open_session
from specauf_cli.store import layout
from specauf_cli.store.files import file_sha256, write_json
from specauf_cli.store.layout import ABOUT, FINISHED, about_of, result_of, signature_of
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.records import run_id

FIXED = ("backbone", "objective", "init", "trainer.steps", "trainer.epochs", "target.taps")
"""Settings that a checkpoint from elsewhere decides itself."""

UNTRAINED = (
    "objective=full_ce",
    "objective.name=imported",
    "objective.title=imported",
    "trainer.steps=0",
    "trainer.epochs=null",
)
"""Settings of a run that was not trained here."""


@dataclass(frozen=True)
class Adoption:
    """A drafter from elsewhere that fits its target. ``overrides`` give ``config``; ``words`` are the user's own among
    them."""

    located: formats.Located
    foreign: formats.Checkpoint
    drafter: DFlash
    session: Session
    config: Config
    overrides: Sequence[str]
    words: Sequence[str]

    @property
    def source(self) -> str:
        """Where the checkpoint came from, without anything that names this machine."""
        return self.located.repository or self.located.folder.resolve().name


def adopt(source: str, words: Sequence[str], *, revision: str | None = None) -> Path:
    """A public checkpoint as a finished run of no training step; returns its folder.

    ``words`` choose target, data and profile, with which it is then measured. The run's name covers the hash of its
    weights. Errors: InputError when it cannot be read, is not for this target, or ``words`` set what the checkpoint
    decides.
    """
    for word in words:
        key = key_of(word)
        if any(key == f or key.startswith(f"{f}.") for f in FIXED):
            raise InputError(f"{word!r}: the checkpoint decides this; give target, data, profile and the like")
    compose.compose(words)  # a typing error is reported before anything is fetched
    adoption = _open(source, words, revision)
    with _partial_folder(Path(adoption.config.runs)) as partial:
        return _write_run(adoption, partial / "run")


def _open(source: str, words: Sequence[str], revision: str | None) -> Adoption:
    """Fetches and reads the checkpoint, opens its target, and fits the one to the other."""
    located = formats.locate(source, revision)
    foreign = formats.read(located.folder)
    for key in foreign.ignored:
        print(f"specauf: {located.folder / 'config.json'}: {key} means nothing here and is left out", file=sys.stderr)
    overrides = [*words, *foreign.overrides, *UNTRAINED, f"init={source}"]
    config = compose.compose(overrides)
    # Before the target is opened with these taps.
    formats.check_layers(foreign, config.target.name, sizes.of(config.target).layers)
    session = open_session(config)
    drafter, copies = formats.drafter(foreign, session.target, config.backbone)
    if copies:
        print(f"specauf: {', '.join(copies)}: the target's own, bit for bit, so left out", file=sys.stderr)
    return Adoption(located, foreign, drafter, session, config, overrides, words)


@contextmanager
def _partial_folder(runs: Path) -> Iterator[Path]:
    """A temporary folder among the runs, removed afterwards. Errors: InputError when it cannot be written."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".import.", dir=runs))
    except OSError as error:
        raise InputError(f"cannot write {runs}: {error.strerror or error}") from error
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_run(adoption: Adoption, partial: Path) -> Path:
    """Writes the run to ``partial`` and renames it when it is complete; returns its folder. A run that was imported
    before is unchanged and becomes the latest.
    """
    session, drafter = adoption.session, layout.drafter_of(partial)
    checkpoint.save(adoption.drafter, session.target, drafter, run="")  # its name needs the hash of what is written
    weights = file_sha256(drafter / "model.safetensors")
    name = run_id(adoption.config, target=session.target.fingerprint, data=session.conversations.sha256, init=weights)
    folder = Path(adoption.config.runs) / name
    if (folder / FINISHED).exists():
        result_of(folder)
        print(f"{name}: imported already", file=sys.stderr)
        with suppress(OSError):  # the folder may be read-only
            os.utime(folder / FINISHED)
        return folder
    checkpoint.save(adoption.drafter, session.target, drafter, run=name)
    write_json(partial / FINISHED, _result(session))
    write_json(partial / ABOUT, _about(adoption, name, weights))
    try:
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; move it aside") from error
    _print_taps(adoption, name)
    return folder


def _about(adoption: Adoption, name: str, weights: str) -> dict[str, Any]:
    """The run's ``run.json``, with where the checkpoint came from."""
    located, foreign = adoption.located, adoption.foreign
    public_verifier = isinstance(foreign.verifier, str) and not Path(foreign.verifier).is_absolute()
    return {
        "run": name,
        "overrides": list(adoption.overrides),
        "command": command_line(["import", adoption.source, *adoption.words]),
        "config": adoption.config.resolved,
        "inputs": adoption.session.inputs_of(weights),
        "data": {"name": "unknown, trained elsewhere"},
        "code": code_state(),
        "signature": signature_of(name, adoption.overrides),
        "started": now(),
        "imported": {
            "source": adoption.source,
            "commit": located.commit,
            "layout": foreign.layout,
            "config_sha256": file_sha256(foreign.folder / "config.json"),
            "verifier": foreign.verifier if public_verifier else None,
        },
    }


def _result(session: Session) -> dict[str, Any]:
    """The run's ``finished.json``."""
    return {
        "last": {"step": 0},
        "seconds": 0.0,
        "peak_memory_mib": 0.0,
        "environment": environment(str(session.target.device), torch.get_num_threads()),
        "finished": now(),
    }


def _print_taps(adoption: Adoption, name: str) -> None:
    """Prints how the checkpoint's layers were counted: with features off by one layer almost no draft is accepted."""
    foreign, depth = adoption.foreign, adoption.session.target.depth
    layers = f", {foreign.layers} layers" if adoption.drafter.layered else ""
    taps = (
        "the target's last hidden state"
        if isinstance(foreign.taps, str)
        else f"layers {', '.join(map(str, foreign.taps))} of 0..{depth - 1} (decoder layers counted from 0, the "
        "feature is the layer's output)"
    )
    print(f"{name}: {foreign.backbone}, block size {foreign.block_size}{layers}; taps {taps}", file=sys.stderr)


def fine_tune_command(folder: Path) -> str:
    """The command line that continues training from an imported run."""
    own = [
        o
        for o in about_of(folder)["overrides"]
        if o.split("=")[0].split(".")[0] not in ("objective", "trainer", "init")
    ]
    return shlex.join(["specauf", "train", f"init={folder.name}", *own, "objective=auf"])
