"""Export: the drafter of a finished run for public loaders, with its model card."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specauf_cli.config.identity import is_local
from specauf_cli.errors import InputError
from specauf_cli.interchange import formats
from specauf_cli.interchange.card import card
from specauf_cli.interchange.targets import absolute, opened, target_path
from specauf_cli.store.files import read_json
from specauf_cli.store.layout import ABOUT, about_of, all_measured, drafter_of, intact, measured, result_of


def export_drafter(
    folder: Path, out: Path, *, layout: str, dtype: str, verifier: str | None = None, given: Sequence[str] = ()
) -> Path:
    """Writes the drafter of a finished run and its model card to ``out``, all or nothing; returns ``out``.

    ``verifier`` (hub id or folder) is what the speculators layout names as target; by default what the run was trained
    with. ``given``: settings of the target, as in ``targets.opened``; Medusa's layout has its head. Errors: InputError
    when ``out`` holds something already, for a backbone of one's own, or for what ``formats.write`` refuses.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten, name another one")
    about = about_of(folder)
    result_of(folder)
    config = read_json(drafter_of(folder) / "config.json")
    read_files = f"drafter/config.json or {ABOUT}"
    with intact(folder, read_files):
        architecture = config["architectures"][0]
        if architecture not in formats.ARCHITECTURES:
            raise InputError(
                f"{folder.name} is a {architecture}, which is not exported: loaders would silently ignore tensors; "
                "only DFlash, Domino, DSpark and Medusa drafters are, in layouts that are read completely"
            )
        if (why := formats.not_written(config, layout)) is not None:
            raise InputError(f"--format {layout}: {folder.name} is a {why}")
        records = all_measured(folder) if measured(folder) else []
        text = card(about, config, records, layout=layout, dtype=dtype)
        medusa = architecture == formats.MEDUSA
        if medusa and verifier is not None:
            raise InputError(f"--verifier {verifier}: the layout of Medusa heads names no target; leave it out")
        named = layout == "vllm" and not medusa
        name, architectures = _verifier(folder, config["specauf"], verifier, given) if named else (None, [])
    if name is not None and verifier is None and is_local(name):
        print(
            f"specauf: config.json will name the target by its folder here, {name}; --verifier ORG/NAME for one that "
            "others can find",
            file=sys.stderr,
        )
    head = formats.own_head(opened(folder, given)) if medusa else None
    with _whole_folder(out) as partial:
        with intact(folder, read_files):
            formats.write(
                drafter_of(folder),
                partial,
                layout=layout,
                dtype=dtype,
                verifier=name,
                architectures=architectures,
                head=head,
            )
        (partial / "README.md").write_text(text, "utf-8")
    return out


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` to write; it becomes ``out`` only when the block succeeds. Errors: InputError
    when it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _verifier(folder: Path, own: dict[str, Any], verifier: str | None, given: Sequence[str]) -> tuple[str, list[str]]:
    """What vLLM loads as the target of a run, and its classes: ``verifier``, or what the run was trained for (``own``
    and ``given`` say)."""
    name = target_path(folder, given) if verifier is None else absolute(verifier)
    local = Path(name) / "config.json"
    if verifier is not None and not local.is_file() and not formats.HUB_ID.fullmatch(verifier):
        raise InputError(f"--verifier {verifier!r} is neither a folder with config.json nor a hub id, ORG/NAME")
    architectures = own.get("target_architectures")
    if not architectures and local.is_file():
        architectures = read_json(local).get("architectures")
    return name, list(architectures or [])
