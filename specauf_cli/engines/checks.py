"""Checks that a running server is the intended one; each error names what it serves and what was expected."""

import sys
from collections.abc import Sequence
from pathlib import Path

from specauf_cli.config.schema import Config
from specauf_cli.data.chat import Chat
from specauf_cli.engines.client import Client
from specauf_cli.engines.conventions import DTYPES, drafted_per_round, export_folder, method_of
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.served import Served, tokenized
from specauf_cli.errors import InputError, nearest
from specauf_cli.store import layout
from specauf_cli.store.files import file_sha256


def check_model(served: Served, expected: str, options: ServerOptions) -> None:
    """InputError when the server serves another target than ``expected`` (hub id or folder)."""
    if options.served_model is not None:
        if options.served_model not in served.names:
            raise InputError(
                f"{options.base_url} serves {' = '.join(served.names)}, not {options.served_model!r} as --served-model "
                f"says.{nearest(options.served_model, served.names)}"
            )
    elif not any(_is_same_model(n, expected) for n in served.names):
        raise InputError(
            f"{options.base_url} serves {' = '.join(served.names)}, not the target {expected}; if that is the "
            f"same model by another name: --served-model {served.name}"
        )


def other_drafter(served: Served, run: Path | None, options: ServerOptions) -> list[str]:
    """The difference, if the server says that it drafts with another drafter than the run's. Errors: InputError when
    it contradicts --served-drafter."""
    if options.served_drafter is not None and served.drafter not in (None, options.served_drafter):
        raise InputError(
            f"{options.base_url} drafts with {served.drafter}, not {options.served_drafter!r} as --served-drafter says"
        )
    if served.drafter is None or run is None or options.served_drafter is not None:
        return []
    places = [export_folder(run, options.backend), layout.drafter_of(run)]
    if any(_is_same_model(served.drafter, str(place)) for place in places):
        return []
    weights = weights_sha256(served.drafter)
    if weights is not None and weights in [weights_sha256(str(place)) for place in places]:
        return []
    return [
        f"{options.base_url} drafts with {served.drafter}, not with {places[0]}; if that is the drafter of "
        f"run {run.name}: --served-drafter {served.drafter}; to measure it by itself: target=..."
    ]


def other_settings(served: Served, config: Config, run: Path | None, options: ServerOptions) -> list[str]:
    """In which settings the server says that it differs from ``config``: dtype, algorithm, number of draft tokens."""
    return [*other_dtype(served, config, options), *(_other_drafting(served, config, run, options) if run else [])]


def other_dtype(served: Served, config: Config, options: ServerOptions) -> list[str]:
    """The difference, if the server says that it runs the target in another dtype."""
    precision = config.evaluation.precision
    if served.dtype in (None, DTYPES[precision]):
        return []
    same = [f", or measure in that precision: evaluation.precision={p}" for p, d in DTYPES.items() if d == served.dtype]
    return [
        f"{options.base_url} runs the target in {served.dtype}, the settings say evaluation.precision={precision}: "
        f"restart it with --dtype {DTYPES[precision]}{''.join(same)}"
    ]


def _other_drafting(served: Served, config: Config, run: Path, options: ServerOptions) -> list[str]:
    expected = drafted_per_round(config.backbone.proposals, config.backbone.block_size)
    found = []
    method = method_of(config.backbone.kind)
    if served.algorithm is not None and served.algorithm.lower() != method:
        found.append(
            f"{options.base_url} drafts by {served.algorithm}, the drafter of run {run.name} by {method.upper()}; "
            f"start it as `specauf serve-command --backend {options.backend} --run {run.name}` prints"
        )
    if served.proposals not in (None, expected):
        flag = (
            f"--speculative-num-draft-tokens {expected + 1}"  # SGLang counts the anchor
            if options.backend == "sglang"
            else f"num_speculative_tokens {expected}"
        )
        found.append(
            f"{options.base_url} drafts {served.proposals} tokens a round, run {run.name} {expected}: restart it with "
            f"{flag}"
        )
    return found


def unchecked(
    served: Served,
    run: Path | None,
    options: ServerOptions,
    compared: Sequence[str],
) -> list[str]:
    """What of ``compared`` could not be compared; stderr names it too."""
    untold = [k for k in compared if getattr(served, k) is None]
    without_run = [k for k in ("drafter", "proposals") if k in compared and run is None and k not in untold]
    if untold:
        print(
            f"note: not checked, because {options.base_url} does not report its {', '.join(untold)}"
            + ("; a vLLM in developer mode does, VLLM_SERVER_DEV_MODE=1" if options.backend == "vllm" else ""),
            file=sys.stderr,
        )
    if without_run:
        print(f"note: not checked, because no run is given to compare with: {', '.join(without_run)}", file=sys.stderr)
    return sorted(untold + without_run)


def check_tokenizer(client: Client, served: Served, chat: Chat, text: str) -> str:
    """What could be checked of the server's vocabulary; InputError when it differs from the target's."""
    rows = served.flags.get("vocab_size")
    if isinstance(rows, int) and rows < chat.within(rows).vocab:
        raise InputError(f"{client.url} serves a model of {rows} tokens, the target's tokenizer has {chat.vocab}")
    theirs, ours = tokenized(client, served.name, text), tuple(chat.tokens([text])[0])
    if theirs is None:
        return "not checked: it gives no /tokenize"
    if theirs != ours:
        shorter = min(len(theirs), len(ours))
        first = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), shorter)
        raise InputError(
            f"{client.url} cuts the first prompt into {len(theirs)} tokens, the target's tokenizer into {len(ours)} "
            f"(they differ at token {first}): it serves another model than {served.name} or another vocabulary"
        )
    return "cuts the first prompt as the target's"


def weights_sha256(folder: str | None) -> str | None:
    """Hash of a drafter's weights if its folder is on this machine: the path may hold another drafter later."""
    file = Path(folder or "") / "model.safetensors"
    return file_sha256(file) if folder and file.is_file() else None


def _is_same_model(served: str, expected: str) -> bool:
    """The same name, the same folder, or a hub id and its folder in the hub's cache."""
    a, b = served.rstrip("/"), expected.rstrip("/")
    if a == b or f"models--{b.replace('/', '--')}/" in a:
        return True
    return Path(a).exists() and Path(b).exists() and Path(a).samefile(b)
