"""The command line that starts a server for a run's drafter: SGLang or vLLM."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specauf_cli.config import compose
from specauf_cli.config.identity import upgraded
from specauf_cli.config.overrides import runs_folder_only, runs_words, setting, value_of
from specauf_cli.engines.conventions import (
    DTYPES,
    check_backend,
    drafted_per_round,
    export_folder,
    export_format,
    method_of,
    target_fingerprint,
)
from specauf_cli.errors import InputError, nearest
from specauf_cli.interchange.targets import FROM_THE_USER, target_path
from specauf_cli.store import layout
from specauf_cli.store.files import read_json

SERVED_KINDS = ("dflash", "domino", "dspark", "medusa")
"""Kinds of drafter that at least one of the engines serves."""

TAKEN_FOR_ANOTHER = ("eagle-", "eagle3", "dflash", "dspark")
"""In the path of a drafter, vLLM 0.32.0 takes these for its kind, before its configuration and the method given
(``config/speculative.py``)."""

URLS = {"sglang": "http://127.0.0.1:30000", "vllm": "http://127.0.0.1:8000"}


@dataclass(frozen=True)
class Serving:
    """What is served: ``target`` (hub id or absolute path) with the exported ``drafter``, ``proposals`` tokens a round.

    ``shared``: options that both engines call the same.
    """

    target: str
    drafter: Path
    kind: str
    proposals: int
    shared: list[str]


def serve_command(backend: str, run: str | None, drafter: str | None, overrides: Sequence[str]) -> None:
    """Prints the command that serves a finished run's drafter with its target, and first the export if that is missing.

    Of ``overrides`` it takes ``runs=``, ``evaluation.precision=``, which is the dtype to serve (default: the run's
    own), and, for a run folder from elsewhere, ``target.path=`` and ``target.trust_remote_code=``. Paths in it are
    absolute. Errors: InputError for an engine that cannot serve this drafter, naming why.
    """
    check_backend(backend)
    precision_words = setting(overrides, ["evaluation.precision"])
    target_words = setting(overrides, FROM_THE_USER)
    local = Path(runs_folder_only([o for o in overrides if o not in (*precision_words, *target_words)]))
    (folder,) = layout.find(local, [run] if run is not None else [], every=False)
    config = upgraded(layout.about_of(folder)["config"])  # as it was trained: the yaml files may have changed
    with layout.intact(folder, layout.ABOUT):
        kind, wanted = config["backbone"]["kind"], config["backbone"]["proposals"]
        proposals = drafted_per_round(kind, wanted, config["backbone"]["block_size"])
        precision = value_of(precision_words[-1]) if precision_words else config["evaluation"]["precision"]
        taps = config["target"]["taps"]
    _check_servable(folder.name, kind, backend, precision)
    if kind == "dspark":
        _check_dspark(folder.name, backend, config["backbone"])
    target = target_path(folder, target_words)
    export = _export(folder, backend, drafter)
    if kind == "medusa":
        _check_medusa(folder.name, backend, taps, export)
    if proposals < wanted:
        print(f"note: {backend} drafts {proposals} tokens a round, evaluation here {wanted}", file=sys.stderr)
    missing = not (export / "config.json").is_file()
    lines = [_export_command(folder, export_format(backend, kind), export, target_words)] if missing else []
    shared = ["--dtype", DTYPES[precision], *_revision(folder, target, config["target"]["revision"])]
    shared += _trust(config["target"], target_words)
    command = _sglang_command if backend == "sglang" else _vllm_command
    lines.append(command(Serving(target, export, kind, proposals, shared)))
    print("\n".join(shlex.join(line) for line in lines))
    again = ["specauf", "eval", "--backend", backend, "--base-url", URLS[backend], "--run", folder.name]
    print(f"then: {shlex.join([*again, *runs_words(overrides), *precision_words])}", file=sys.stderr)


def _check_servable(run: str, kind: str, backend: str, precision: str) -> None:
    """InputError for an unknown precision, or a drafter that the engine does not serve."""
    if precision not in DTYPES:
        raise InputError(f"evaluation.precision={precision}: valid: {', '.join(DTYPES)}.{nearest(precision, DTYPES)}")
    if kind not in SERVED_KINDS:
        raise InputError(f"run {run}: neither engine serves a {kind} drafter, only {', '.join(SERVED_KINDS)}")
    if backend == "vllm" and kind == "domino":
        raise InputError(f"run {run}: vLLM serves no Domino drafter yet (vLLM#46707 is open); use --backend sglang")


def _check_dspark(run: str, backend: str, backbone: Mapping[str, Any]) -> None:
    """InputError for a DSpark drafter that would draft otherwise there than here. vLLM computes as many slots as it
    proposes, and slots see each other; it knows no gate."""
    if backend == "sglang":
        raise InputError(f"run {run}: how SGLang serves DSpark was not looked at; use --backend vllm")
    if backbone["proposals"] != backbone["block_size"]:
        raise InputError(
            f"run {run}: vLLM drafts whole blocks of DSpark, this run {backbone['proposals']} of "
            f"{backbone['block_size']} slots: train one with backbone.proposals={backbone['block_size']}"
        )
    if backbone["knobs"].get("markov_head_type") != "vanilla":
        raise InputError(f"run {run}: vLLM serves DSpark with markov_head_type=vanilla only")


def _check_medusa(run: str, backend: str, taps: Any, export: Path) -> None:
    """InputError for Medusa heads that the engine does not serve, or that vLLM would take for another drafter by the
    path of their folder."""
    if backend == "sglang":
        raise InputError(f"run {run}: SGLang serves no Medusa heads; use --backend vllm")
    if taps != "last":
        raise InputError(
            f"run {run}: the Medusa heads that vLLM runs read the target's last hidden state, those of this run the "
            "outputs of tapped layers; train one with target.taps=last"
        )
    word = next((w for w in TAKEN_FOR_ANOTHER if w in str(export).lower()), None)
    if word is not None:
        raise InputError(
            f"{export}: vLLM takes a drafter with {word!r} in its path for one of another kind, whatever its "
            "config.json says; export it to another place, and name that with --drafter"
        )


def _export(folder: Path, backend: str, drafter: str | None) -> Path:
    """Where the exported drafter is, or will be, as an absolute path. Errors: InputError when ``drafter`` names none,
    or one that vLLM would run causally."""
    export = (Path(drafter) if drafter is not None else export_folder(folder, backend)).resolve()
    config = export / "config.json"
    if drafter is not None and not config.is_file():
        raise InputError(f"--drafter {drafter}: there is no such folder with config.json; `specauf export` writes one")
    if backend == "vllm" and config.is_file() and read_json(config).get("sliding_window_non_causal", True) is not True:
        raise InputError(  # as older versions of this tool wrote it
            f"{config}: sliding_window_non_causal must be true, else vLLM runs the block causally; move the folder "
            "away and export again"
        )
    return export


def _export_command(folder: Path, form: str, export: Path, target_words: Sequence[str]) -> list[str]:
    words = ["specauf", "export", "--run", folder.name, "--format", form, "--out", str(export)]
    words += [f"runs={folder.parent}"] if str(folder.parent) != "runs" else []
    return [*words, *target_words] if form == "vllm" else words  # the other format does not need the target


def _revision(folder: Path, target: str, named: str | None) -> list[str]:
    """The commit of a target from the hub that the run was trained with, else the revision that its settings name."""
    commit = target_fingerprint(folder)
    revision = commit if len(commit) == 40 and not Path(target).is_dir() else named
    return ["--revision", revision] if revision else []


def _trust(target: Mapping[str, Any], target_words: Sequence[str]) -> list[str]:
    """``--trust-remote-code`` if the user asks for it; a run folder cannot."""
    if ("target.trust_remote_code", True) in compose.parsed(target_words):
        return ["--trust-remote-code"]
    if target["trust_remote_code"]:
        print(
            "note: the run used target.trust_remote_code=true; give that here too if you trust the target's code",
            file=sys.stderr,
        )
    return []


def _sglang_command(serving: Serving) -> list[str]:
    words = ["python", "-m", "sglang.launch_server", "--model-path", serving.target, *serving.shared]
    words += ["--speculative-algorithm", "DFLASH", "--speculative-draft-model-path", str(serving.drafter)]
    words += ["--speculative-num-draft-tokens", str(serving.proposals + 1)]  # SGLang counts the anchor
    if serving.kind == "domino":  # all of the vocabulary, as here; SGLang's default is 2048 candidates
        words += ["--speculative-domino-candidate-pool-size", "0"]
    return [*words, "--host", "127.0.0.1", "--port", "30000"]


def _vllm_command(serving: Serving) -> list[str]:
    speculative = {
        "method": method_of(serving.kind),
        "model": str(serving.drafter),
        "num_speculative_tokens": serving.proposals,
    }
    # In developer mode it names its drafter and dtype.
    words = ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", serving.target, *serving.shared]
    words += ["--speculative-config", json.dumps(speculative, separators=(",", ":"))]
    words += ["--per-request-spec-decode-metrics", "summary"]
    print(
        "note: --per-request-spec-decode-metrics counts every request, so tau gets intervals; vLLM up to 0.28.0 does "
        "not know it (vLLM#48915): leave it out there",
        file=sys.stderr,
    )
    return [*words, "--host", "127.0.0.1", "--port", "8000"]
