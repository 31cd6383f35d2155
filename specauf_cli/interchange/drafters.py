"""Drafters out and in: export a run for public loaders, with its model card; adopt a checkpoint from elsewhere as a
run."""

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from specauf_cli.config import compose
from specauf_cli.config.identity import is_local
from specauf_cli.config.schema import Config
from specauf_cli.errors import InputError
from specauf_cli.evaluation.statistics import interval, sample
from specauf_cli.interchange import formats
from specauf_cli.models import checkpoint, sizes
from specauf_cli.models.dflash import DFlash
from specauf_cli.reporting.escape import cell, code
from specauf_cli.reporting.tables import measured_prompts
from specauf_cli.session import Session, open_session
from specauf_cli.store import trust
from specauf_cli.store.files import file_sha256, read_json, write_json
from specauf_cli.store.layout import ABOUT, FINISHED, about_of, all_measured, intact, result_of, signature_of
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.records import RunRecord, run_id
from specauf_cli.training import pretrain

FIXED = ("backbone", "objective", "init", "trainer.steps", "trainer.epochs", "target.taps")
"""Settings that a checkpoint from elsewhere decides itself."""


NAMING = ("profile", "target", "target.name", "target.path", "target.revision", "data_root")
"""Settings that say which target a run was trained for."""


def export(folder: Path, out: Path, *, layout: str, dtype: str, verifier: str | None = None) -> Path:
    """Writes the drafter of a finished run and its model card to ``out``, all or nothing; returns ``out``.

    ``verifier`` (hub id or folder) is what the ``vllm`` layout names as target; by default what the run was trained
    with. Errors: InputError when ``out`` holds something already, for a backbone of one's own, or for what
    ``formats.write`` refuses.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not an empty folder; nothing is overwritten, name another one")
    about, measured = about_of(folder), sorted((folder / "records").glob("*.json"))
    result_of(folder)
    config = read_json(folder / "drafter" / "config.json")
    read = f"drafter/config.json or {ABOUT}"
    with intact(folder, read):
        kind = config["architectures"][0]
        if kind not in formats.ARCHITECTURES:
            raise InputError(
                f"{folder.name} is a {kind}, which no public loader knows: it would leave out tensors without a word; "
                "only DFlash and Domino drafters are exported"
            )
        records = all_measured(folder) if measured else []
        text = card(about, config, records, layout=layout, dtype=dtype)
        name, architectures = _verifier(folder, config["specauf"], verifier) if layout == "vllm" else (None, [])
        if name is not None and verifier is None and is_local(name):
            print(
                f"specauf: config.json will name the target by its folder here, {name}; --verifier ORG/NAME for one "
                "that others can find",
                file=sys.stderr,
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        with intact(folder, read):
            formats.write(
                folder / "drafter", partial, layout=layout, dtype=dtype, verifier=name, architectures=architectures
            )
        (partial / "README.md").write_text(text, "utf-8")
        partial.chmod(0o755)
        os.replace(partial, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def target_path(folder: Path, given: Sequence[str] = ()) -> str:
    """Hub id, or absolute path, of the target that a run was trained for.

    ``given``: ``target.path=`` as the user names it. Errors: InputError when it was trained here and is gone, or when a
    run folder from elsewhere names a place of its own.
    """
    about = about_of(folder)
    if about["config"]["target"].get("path") is not None:  # a folder is named by the run's own words alone
        words = [*trust.overrides_of(folder, given, only=NAMING), *given]
        return _anywhere(str(compose.compose(words).target.path))
    targets = folder.parent / "targets"
    for place in sorted(p.parent for p in targets.glob(f"*/{pretrain.MARKER}")):
        if pretrain.describe(str(place)).get("fingerprint") == about["inputs"].get("target"):
            return _anywhere(str(place))
    raise InputError(f"the target of run {folder.name} is not under {targets}/ any more")


def _anywhere(path: str) -> str:
    """A folder as its absolute path: an engine is started somewhere else. A hub id as it is."""
    return str(Path(path).expanduser().resolve()) if is_local(path) else path


def _verifier(folder: Path, own: dict[str, Any], given: str | None) -> tuple[str, list[str]]:
    """What vLLM loads as the target of a run, and its classes: ``given``, or what the run was trained for (``own``
    says)."""
    name = target_path(folder) if given is None else _anywhere(given)
    local = Path(name) / "config.json"
    if given is not None and not local.is_file() and not formats.HUB_ID.fullmatch(given):
        raise InputError(f"--verifier {given!r} is neither a folder with config.json nor a hub id, ORG/NAME")
    found = own.get("target_architectures") or (read_json(local).get("architectures") if local.is_file() else None)
    return name, list(found or [])


def card(
    about: dict[str, Any], config: dict[str, Any], records: Sequence[RunRecord], *, layout: str, dtype: str
) -> str:
    """The model card, with the front matter that the Hugging Face hub reads."""
    chosen, special, own = about["config"], config["dflash_config"], config["specauf"]
    target, data, backbone = chosen["target"], chosen["data"], chosen["backbone"]
    path = target["path"]
    hub = path if path and formats.HUB_ID.fullmatch(path) and not Path(path).is_dir() else None
    where = hub or ("a local folder" if path else "trained by SpecAUF on the same data")
    front = {
        "base_model": hub,
        "datasets": [data["hub_id"]] if data["source"] == "hub" and data.get("hub_id") else None,
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", backbone["name"], "specauf"],
    }
    imported = about.get("imported")
    origin = (
        f"adopted from {cell(imported['source'])}"
        if imported
        else f"trained by SpecAUF with {cell(chosen['objective']['title'])}"
    )
    loader = "public DFlash and Domino loaders (SGLang, SpecForge)" if layout == "hf" else "vLLM and speculators"
    sizes = f"draft layers {config['num_hidden_layers']}, block size {config['block_size']}, {dtype}"
    lines = [
        "---",
        *(f"{k}: {json.dumps(v)}" for k, v in front.items() if v is not None),
        "---",
        "",
        f"# {cell(backbone['title'])} drafter for {cell(target['title'])}",
        "",
        f"A block drafter for speculative decoding, {origin}; {sizes}. For {loader}. It has neither embedding nor head "
        "of its own: both are the target's.",
        "",
        "## Measured",
        "",
        *_measured(records, rounded=dtype != "fp32"),
        "## How it was made",
        "",
        f"- target: {cell(target['title'])}, {cell(where)}, weights {cell(own.get('target_fingerprint'))}",
        f"- tapped layers: {', '.join(map(cell, special['target_layer_ids']))} (decoder layers counted from 0, the "
        f"feature is the layer's output); mask token id {cell(special['mask_token_id'])}",
        f"- data: {cell(about['data']['name'])}"
        + (f", {cell(about['data']['examples'])} examples" if "examples" in about["data"] else ""),
        f"- command: {code(about['command'])}",
        f"- run: {cell(about['run'])}, seed {cell(chosen['seed'])}",
        f"- weights before export: sha256 {cell(own.get('weights'))}",
        f"- code: specauf {cell(about['code'].get('version'))}, commit {cell(about['code']['commit'])}"
        + (" with uncommitted changes" if about["code"]["dirty"] else ""),
        "",
    ]
    return "\n".join(lines)


def _measured(records: Sequence[RunRecord], *, rounded: bool) -> list[str]:
    """tau per benchmark and temperature of every set of evaluation settings; or that there is none.

    ``rounded``: what is exported has fewer bits than what was measured.
    """
    if not records:
        return ["Not measured.", ""]
    lines = [
        "tau: completion tokens / verification rounds of a request, then the mean over requests (what serving engines "
        "report); ± half of the 95 % interval over prompts."
        + (" Measured before the weights were rounded." if rounded else ""),
        "",
    ]
    for record in records:
        settings = record.config["evaluation"]
        lines += [
            f"Precision {cell(settings['precision'])}, at most {cell(settings['max_new_tokens'])} new tokens, greedy "
            f"drafts of {cell(record.config['backbone']['proposals'])}, seed {cell(settings['seed'])}, "
            f"{cell(record.written)}:",
            "",
            "| benchmark | T | prompts | tau |",
            "|---|--:|--:|--:|",
        ]
        for b in record.benchmarks:
            found = interval(sample({record.seed: b.traces}, "engine"), b.benchmark)
            lines.append(
                f"| {cell(b.title)} | {b.temperature:g} | {measured_prompts(b)} | "
                f"{found.value:.3f} ± {found.half_width:.3f} |"
            )
        lines.append("")
    return lines


def adopt(source: str, words: Sequence[str], *, revision: str | None = None) -> Path:
    """A public DFlash or Domino checkpoint as a finished run of no training step; returns its folder.

    ``words`` choose target, data and profile, with which it is then measured. The run's name covers the hash of its
    weights. Errors: InputError when it cannot be read, is not for this target, or ``words`` set what the checkpoint
    decides.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if any(key == f or key.startswith(f"{f}.") for f in FIXED):
            raise InputError(f"{word!r}: the checkpoint decides this; give target, data, profile and the like")
    compose.compose(words)  # a typing error is found before anything is fetched
    place = formats.locate(source, revision)
    found = formats.read(place.folder)
    for key in found.ignored:
        print(f"specauf: {place.folder / 'config.json'}: {key} means nothing here and is left out", file=sys.stderr)
    overrides = [
        *words,
        *found.overrides,
        "objective=full_ce",
        "objective.name=imported",
        "objective.title=imported",
        "trainer.steps=0",
        "trainer.epochs=null",
        f"init={source}",
    ]
    config = compose.compose(overrides)
    formats.check_layers(
        found, config.target.name, sizes.of(config.target).layers
    )  # before it is opened with these taps
    session = open_session(config)
    drafter, copies = formats.drafter(found, session.target, config.backbone)
    if copies:
        print(f"specauf: {', '.join(copies)}: the target's own, bit for bit, so left out", file=sys.stderr)
    try:
        Path(config.runs).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".import.", dir=config.runs))
    except OSError as error:
        raise InputError(f"cannot write {config.runs}: {error.strerror or error}") from error
    try:
        return _place(partial, place, found, session, config, overrides, drafter, ["import", _public(place), *words])
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(
    partial: Path,
    place: formats.Located,
    found: formats.Checkpoint,
    session: Session,
    config: Config,
    overrides: Sequence[str],
    drafter: DFlash,
    command: Sequence[str],
) -> Path:
    """Writes the run under ``partial`` and moves it to its name when it is whole."""
    made = partial / "run"
    checkpoint.save(drafter, session.target, made / "drafter", run="")
    weights = file_sha256(made / "drafter" / "model.safetensors")
    name = run_id(config, target=session.target.fingerprint, data=session.conversations.sha256, init=weights)
    folder = Path(config.runs) / name
    if (folder / FINISHED).exists():
        result_of(folder)
        print(f"{name}: imported already", file=sys.stderr)
        with suppress(OSError):  # the folder may be read-only
            os.utime(folder / FINISHED)
        return folder
    checkpoint.save(drafter, session.target, made / "drafter", run=name)
    imported = {
        "source": _public(place),
        "commit": place.commit,
        "layout": found.layout,
        "config_sha256": file_sha256(found.folder / "config.json"),
        "verifier": found.verifier
        if isinstance(found.verifier, str) and not Path(found.verifier).is_absolute()
        else None,
    }
    about = {
        "run": name,
        "overrides": list(overrides),
        "command": command_line(command),
        "config": config.resolved,
        "inputs": session.inputs_of(weights),
        "data": {"name": "unknown, trained elsewhere"},
        "code": code_state(),
        "signature": signature_of(name, overrides),
        "started": now(),
        "imported": imported,
    }
    result = {
        "last": {"step": 0},
        "seconds": 0.0,
        "peak_memory_mib": 0.0,
        "environment": environment(str(session.target.device), torch.get_num_threads()),
        "finished": now(),
    }
    write_json(made / FINISHED, result)
    write_json(made / ABOUT, about)
    try:
        os.replace(made, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; move it aside") from error
    depth = session.target.model.config.num_hidden_layers
    taps = ", ".join(map(str, found.taps))
    print(
        f"{name}: {found.backbone}, block size {found.block_size}, {found.layers} layers; taps layers {taps} of "
        f"0..{depth - 1} (decoder layers counted from 0, the feature is the layer's output)",
        file=sys.stderr,
    )
    return folder


def fine_tune_command(folder: Path) -> str:
    """How training goes on from an adopted run, as another command line."""
    own = [
        o
        for o in about_of(folder)["overrides"]
        if o.split("=")[0].split(".")[0] not in ("objective", "trainer", "init")
    ]
    return shlex.join(["specauf", "train", f"init={folder.name}", *own, "objective=auf"])


def _public(place: formats.Located) -> str:
    """Where a checkpoint came from, without anything that names this machine."""
    return place.repository or place.folder.resolve().name
