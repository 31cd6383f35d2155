"""Evaluation by a running server, and the command line that starts one: SGLang and vLLM.

runs/servers/<id>/             one server as it was found: its model, drafter, settings and version are in the id
runs/servers/<id>/answers.jsonl   every finished answer, appended at once; a second run of the command continues it
runs/servers/<id>/<hash>.json     the record: command, settings, code, what the server says of itself, what of it was
                                  not compared with the settings (``unchecked``), counts per request

A server that does not name its drafter is known by when it was started: answers are used again for that start alone.
"""

import json
import os
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specauf_cli.config.compose import with_benchmarks
from specauf_cli.config.overrides import runs_folder, runs_folder_only, runs_words
from specauf_cli.config.schema import TargetConfig
from specauf_cli.errors import InputError, nearest
from specauf_cli.store.files import digest, file_sha256, lock, read_json, write_json
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.trust import configs

if TYPE_CHECKING:
    from specauf_cli.config.schema import Config
    from specauf_cli.data.chat import Chat
    from specauf_cli.engines.backends import Served
    from specauf_cli.engines.client import Client

SCHEMA = 1
FORMATS = {"sglang": "hf", "vllm": "vllm"}
"""What ``specauf export`` writes for each engine."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""How the engines name what ``evaluation.precision`` says, the precision of replay here."""

LASTING = ("dtype", "quantization", "kv_cache_dtype", "revision", "tp_size", "attention_backend")
"""Settings that tell one server from another; others (seeds, sizes of its memory) change when it is started again."""

KEY = "SPECAUF_API_KEY"
"""Environment variable with the server's key, where it wants one; it is never recorded."""


@dataclass(frozen=True)
class Options:
    """Options of ``specauf eval --backend``: whom to ask and how. ``served_*``: the names by which the server knows
    them."""

    backend: str
    base_url: str
    concurrency: int
    timeout: float
    retries: int
    served_model: str | None
    served_drafter: str | None


def options(
    backend: str | None,
    base_url: str | None,
    concurrency: int,
    timeout: float,
    retries: int,
    served_model: str | None,
    served_drafter: str | None,
    here: Mapping[str, object],
) -> Options:
    """The options of ``specauf eval``, judged. ``here``: options that only mean something without a server."""
    if backend is None or base_url is None:
        raise InputError(f"--backend {backend or 'sglang|vllm'} --base-url {base_url or 'URL'}: a server needs both")
    other = [name for name, value in here.items() if value]
    if other:
        raise InputError(
            f"{', '.join(other)}: not with --backend; a server decodes live and counts by its own definition"
        )
    _check_backend(backend)
    if not 1 <= concurrency <= 1024:
        raise InputError(f"--concurrency {concurrency} is out of range; valid: 1..1024 requests at once")
    return Options(backend, base_url, concurrency, timeout, retries, served_model, served_drafter)


def evaluate(options: Options, runs: Sequence[str], benchmarks: str, extra: Sequence[str]) -> None:
    """Measures the drafter that a running server uses, on the benchmarks as rendered for the target, and prints tau.

    The settings are those of a run (the latest finished one by default), or with ``target=...`` those given. Errors:
    InputError for a server of another target, drafter, dtype, number of draft tokens or kind, or one that stops
    answering (what it answered is kept).
    """
    from specauf_cli.data.chat import Chat
    from specauf_cli.engines import server, summary
    from specauf_cli.engines.answers import Answers
    from specauf_cli.engines.backends import VLLM, SGLang
    from specauf_cli.engines.client import Client
    from specauf_cli.evaluation.evaluate import load_benchmarks

    client = Client(options.base_url, timeout=options.timeout, retries=options.retries, key=os.environ.get(KEY))
    folder, config = _settings(runs, benchmarks, extra)
    target = _located(config, folder)
    assert target.path is not None
    prompts = load_benchmarks(config)
    chat = Chat.load(target)  # tokenizer and template alone: the weights are the server's
    backend = (
        SGLang(client, sorted(chat.stop_ids))
        if options.backend == "sglang"
        else VLLM(client, sorted(chat.stop_ids), options.served_model)
    )
    served = backend.served()
    _check_model(served, target.path, options)
    _check_drafter(served, folder, options)
    unchecked = _check_settings(served, config, folder, options)
    first = _rendered(chat, prompts[0].prompts[0].turns[0])
    tokenizer = _check_tokenizer(client, served, chat, first)
    backend.probe(chat.tokens([first])[0])
    known = _known(served, client, options)
    identity = {
        **known,
        "run": folder.name if folder else None,
        "template": digest(chat.tokenizer.chat_template, 16),
        "vocabulary": chat.vocab,
        "stop": sorted(chat.stop_ids),
        # What nothing tells from another server is another one every time.
        "drafter": [known["drafter"] or secrets.token_hex(8), _weights(served.drafter)],
    }
    name = f"{options.backend}-{folder.name if folder else target.name}-{digest(identity, 8)}"
    place = Path(config.runs) / "servers" / name
    words = ["eval", "--backend", options.backend, "--base-url", "URL", *(["--run", folder.name] if folder else [])]
    words += ["--served-model", _bare(options.served_model)] if options.served_model else []
    words += ["--served-drafter", _bare(options.served_drafter)] if options.served_drafter else []
    words += ["--concurrency", str(options.concurrency)]
    asked = {
        k: config.resolved["evaluation"][k]
        for k in ("drafts", "prompts", "temperatures", "seed", "max_new_tokens", "precision")
    }
    chosen = {"evaluation": asked, "benchmark": config.resolved["benchmark"]}
    results = []
    print(f"{name}: {served.name}, {_who(served)}, asked {options.concurrency} at a time", file=sys.stderr)
    if served.drafter is None and options.served_drafter is None:
        again = (
            "until it is restarted" if known["drafter"] else "never, since it does not say either when it was started"
        )
        print(
            f"note: {client.url} does not name its drafter: answers are used again {again}; --served-drafter NAME "
            "keeps them",
            file=sys.stderr,
        )
    if backend.counts == "counters":
        print(
            f"{name}: answers carry no counts, so the server's counters are read around every {options.concurrency} "
            "requests; intervals need --concurrency 1, or a server with --per-request-spec-decode-metrics summary",
            file=sys.stderr,
        )
    with lock(place, f"server record {name}"):
        answers = Answers(place / "answers.jsonl")
        try:
            if answers.found:
                torn = f", {answers.torn} torn lines left out" if answers.torn else ""
                print(f"{name}: {len(answers.found)} answers are there already{torn}", file=sys.stderr)
            asking = server.Asking(
                backend,
                client,
                chat,
                answers,
                options.concurrency,
                config.evaluation.max_new_tokens,
                config.evaluation.seed,
                served.context,
            )
            for temperature in config.evaluation.temperatures:
                for prompt_set in prompts:
                    column = config.benchmark[prompt_set.name].column
                    results.append(server.measure(asking, prompt_set, column=column, temperature=temperature))
            now_served = backend.served()
            if _known(now_served, client, options) != known:
                answers.discard()
                raise InputError(
                    f"{client.url} was started again or changed while it was asked ({_who(served)}, then "
                    f"{_who(now_served)}), so what it answered may be of two drafters"
                )
        except InputError as error:
            kept = f"{len(answers.found)} answers are kept; run the same command to continue"
            if known["drafter"] is None:
                kept = (
                    "no answer is used again, for it names neither its drafter nor its start; --served-drafter NAME "
                    "keeps them"
                )
            raise InputError(f"{error}; {kept}") from error
        finally:
            answers.close()
        record = {
            "schema": SCHEMA,
            "kind": "server",
            "id": name,
            "backend": options.backend,
            "definition": options.backend,
            "definition_text": server.DEFINITIONS[options.backend],
            "counts": backend.counts,
            "concurrency": options.concurrency,
            "unchecked": unchecked,
            "run": folder.name if folder else None,
            "profile": config.profile.name,
            "command": command_line([*words, "--benchmarks", benchmarks, *extra]),
            "config": {"target": config.resolved["target"], **chosen},
            "code": code_state(),
            # Of the machine that asked. What answered is under "server".
            "environment": environment("cpu", 1),
            "server": _bare({**asdict(served), "tokenizer": tokenizer}),
            "inputs": {
                "template": identity["template"],
                "target": _fingerprint(folder),
                "drafter": _weights(served.drafter),
                **{f"prompts of {p.name}": p.sha256 for p in prompts},
            },
            "columns": server.COLUMNS,
            "benchmarks": [asdict(r) for r in results],
            "cost": {"seconds": round(sum(r.seconds for r in results), 2)},
            "written": now(),
        }
        path = place / f"{digest([chosen, options.concurrency], 8)}.json"
        if not _same(path, record):
            write_json(path, record)
    print("\n".join(summary.of_server(read_json(path))))
    print(f"  record: {path}")


def serve_command(backend: str, run: str | None, drafter: str | None, extra: Sequence[str]) -> None:
    """Prints the command that serves a finished run's drafter beside its target, after the export where that is
    missing.

    Of ``extra`` it takes ``runs=``, ``evaluation.precision=``, which is the dtype to serve (default: the run's own),
    and, for a run folder from elsewhere, ``target.path=`` and ``target.trust_remote_code=``. Paths in it are absolute.
    Errors: InputError for an engine that cannot serve this drafter, naming why.
    """
    from specauf_cli.config import compose
    from specauf_cli.interchange import drafters
    from specauf_cli.store import layout as all_runs

    _check_backend(backend)
    chosen = [o for o in extra if o.lstrip("+").startswith("evaluation.precision=")]
    named = [o for o in extra if o.lstrip("+").startswith(("target.path=", "target.trust_remote_code="))]
    place = Path(runs_folder_only([o for o in extra if o not in (*chosen, *named)]))
    (folder,) = all_runs.find(place, [run] if run is not None else [], every=False)
    config = all_runs.about_of(folder)["config"]  # as it was trained, whatever the yaml files say today
    target, backbone = config["target"], config["backbone"]
    with all_runs.intact(folder, all_runs.ABOUT):
        kind, wanted = backbone["model"]["_target_"].rpartition(".")[2], backbone["proposals"]
        proposals = _drafted(wanted, backbone["block_size"])
        precision = chosen[-1].partition("=")[2] if chosen else config["evaluation"]["precision"]
    if precision not in DTYPES:
        raise InputError(f"evaluation.precision={precision}: valid: {', '.join(DTYPES)}.{nearest(precision, DTYPES)}")
    if kind not in ("DFlash", "Domino"):
        raise InputError(f"run {folder.name}: neither engine serves a {kind} drafter, only DFlash and Domino")
    if backend == "vllm" and kind == "Domino":
        raise InputError(
            f"run {folder.name}: vLLM serves no Domino drafter yet (vLLM#46707 is open); use --backend sglang"
        )
    model = drafters.target_path(folder, named)
    path = (Path(drafter) if drafter is not None else folder / "export" / FORMATS[backend]).resolve()
    if drafter is not None and not (path / "config.json").is_file():
        raise InputError(f"--drafter {drafter}: there is no such folder with config.json; `specauf export` writes one")
    if backend == "vllm" and (path / "config.json").is_file():
        _check_export(path)
    if proposals < wanted:
        print(f"note: {backend} drafts {proposals} tokens a round, evaluation here {wanted}", file=sys.stderr)
    lines = []
    if not (path / "config.json").is_file():
        words = ["specauf", "export", "--run", folder.name, "--format", FORMATS[backend], "--out", str(path)]
        lines.append(words + ([f"runs={folder.parent}"] if str(folder.parent) != "runs" else []))
    commit = _fingerprint(folder)
    revision = commit if len(commit) == 40 and not Path(model).is_dir() else target["revision"]
    shared = ["--dtype", DTYPES[precision], *(["--revision", revision] if revision else [])]
    if ("target.trust_remote_code", True) in compose.parsed(named):  # never because a run folder says so
        shared += ["--trust-remote-code"]
    elif target["trust_remote_code"]:
        print(
            "note: the run used target.trust_remote_code=true; give that here too if you trust the target's code",
            file=sys.stderr,
        )
    if backend == "sglang":
        words = ["python", "-m", "sglang.launch_server", "--model-path", model, *shared]
        words += ["--speculative-algorithm", "DFLASH", "--speculative-draft-model-path", str(path)]
        words += ["--speculative-num-draft-tokens", str(proposals + 1)]  # SGLang counts the anchor
        if kind == "Domino":  # all of the vocabulary, as here; SGLang's default is 2048 candidates
            words += ["--speculative-domino-candidate-pool-size", "0"]
        lines.append([*words, "--host", "127.0.0.1", "--port", "30000"])
        url = "http://127.0.0.1:30000"
    else:
        spec = {"method": "dflash", "model": str(path), "num_speculative_tokens": proposals}
        words = ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", model, *shared]  # so that it names its drafter and dtype
        words += ["--speculative-config", json.dumps(spec, separators=(",", ":"))]
        words += ["--per-request-spec-decode-metrics", "summary"]
        lines.append([*words, "--host", "127.0.0.1", "--port", "8000"])
        url = "http://127.0.0.1:8000"
        print(
            "note: --per-request-spec-decode-metrics counts every request, so tau gets intervals; vLLM up to 0.28.0 "
            "does not know it (vLLM#48915): leave it out there",
            file=sys.stderr,
        )
    print("\n".join(shlex.join(line) for line in lines))
    again = ["specauf", "eval", "--backend", backend, "--base-url", url, "--run", folder.name]
    again += [*runs_words(extra), *chosen]
    print(f"then: {shlex.join(again)}", file=sys.stderr)


def _check_export(path: Path) -> None:
    """InputError for an export whose blocks vLLM would run causally, as older versions of this tool wrote it."""
    if read_json(path / "config.json").get("sliding_window_non_causal", True) is not True:
        raise InputError(
            f"{path / 'config.json'}: sliding_window_non_causal must be true, else vLLM runs the block causally; move "
            "the folder away and export again"
        )


def _bare(value: Any) -> Any:
    """``value`` with every folder in it named by its last part alone: where it lies on a machine is nobody's
    business."""
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_bare(v) for v in value)
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _check_backend(name: str) -> None:
    if name not in FORMATS:
        raise InputError(f"unknown backend {name!r}; valid: {', '.join(FORMATS)}.{nearest(name, FORMATS)}")


def _settings(names: Sequence[str], benchmarks: str, extra: Sequence[str]) -> "tuple[Path | None, Config]":
    """The run whose drafter is served, and the settings; no run where the overrides name a target."""
    from specauf_cli.config import compose
    from specauf_cli.store import layout

    given = any(o.lstrip("+").startswith(("target=", "target.path=", "target.name=")) for o in extra)
    if given and not names:
        return None, with_benchmarks(compose.compose(extra), benchmarks)
    if len(names) > 1:
        raise InputError(f"--run is given {len(names)} times; a server has one drafter")
    if not list(Path(runs_folder(extra)).glob("*/finished.json")) and not names:
        raise InputError(
            "no finished run here to compare the server with; say which target it serves: target=... or --run"
        )
    (folder,) = layout.find(Path(runs_folder(extra)), names, every=False)
    return folder, configs(folder, extra, benchmarks)[1]


def _located(config: "Config", folder: Path | None) -> TargetConfig:
    """The target with its path. Errors: InputError when it is not on this machine."""
    from specauf_cli.interchange import drafters

    if config.target.path is not None:
        return config.target
    if folder is None:
        raise InputError(f"target {config.target.name} is trained here; name the run whose target is served: --run RUN")
    return replace(config.target, path=drafters.target_path(folder))


def _fingerprint(folder: Path | None) -> str:
    from specauf_cli.store import layout

    return str(layout.about_of(folder)["inputs"].get("target", "")) if folder else ""


def _rendered(chat: "Chat", turn: str) -> str:
    from specauf_cli.types import Message

    return chat.render([Message("user", turn)], generation=True)


def _check_model(served: "Served", expected: str, options: Options) -> None:
    """InputError when the server serves another target, naming both."""
    if options.served_model is not None:
        if options.served_model not in served.names:
            raise InputError(
                f"{options.base_url} serves {' = '.join(served.names)}, not {options.served_model!r} as --served-model "
                f"says.{nearest(options.served_model, served.names)}"
            )
    elif not any(_same_model(n, expected) for n in served.names):
        raise InputError(
            f"{options.base_url} serves {' = '.join(served.names)}, expected was the target {expected}; if that is the "
            f"same model by another name: --served-model {served.name}"
        )


def _check_drafter(served: "Served", folder: Path | None, options: Options) -> None:
    """InputError when the server drafts with something else than the run's drafter."""
    if options.served_drafter is not None and served.drafter not in (None, options.served_drafter):
        raise InputError(
            f"{options.base_url} drafts with {served.drafter}, not {options.served_drafter!r} as --served-drafter says"
        )
    if served.drafter is not None and folder is not None and options.served_drafter is None:
        places = [folder / "export" / FORMATS[options.backend], folder / "drafter"]
        own = [w for w in (_weights(str(p)) for p in places) if w]
        if not any(_same_model(served.drafter, str(p)) for p in places) and _weights(served.drafter) not in own:
            raise InputError(
                f"{options.base_url} drafts with {served.drafter}, expected was {places[0]}; if that is the drafter of "
                f"run {folder.name}: --served-drafter {served.drafter}; to measure it by itself: target=..."
            )


def _drafted(proposals: int, block_size: int) -> int:
    """Tokens that an engine drafts a round: at most a block without its anchor, whatever slots the drafter has."""
    return min(proposals, block_size - 1)


def _check_settings(served: "Served", config: "Config", folder: Path | None, options: Options) -> list[str]:
    """What of the server could not be compared with the settings, on stderr too; InputError for what is other."""
    url, precision = options.base_url, config.evaluation.precision
    if served.dtype not in (None, DTYPES[precision]):
        same = [f", or measure it so: evaluation.precision={p}" for p, d in DTYPES.items() if d == served.dtype]
        raise InputError(
            f"{url} runs the target in {served.dtype}, the settings say evaluation.precision={precision}: restart it "
            f"with --dtype {DTYPES[precision]}{''.join(same)}"
        )
    if folder is not None:
        wanted = _drafted(config.backbone.proposals, config.backbone.block_size)
        if served.algorithm is not None and served.algorithm.lower() != "dflash":
            raise InputError(
                f"{url} drafts by {served.algorithm}, the drafter of run {folder.name} by DFLASH; start it as `specauf "
                f"serve-command --backend {options.backend} --run {folder.name}` prints"
            )
        if served.proposals not in (None, wanted):
            flag = (
                f"--speculative-num-draft-tokens {wanted + 1}"
                if options.backend == "sglang"
                else f"num_speculative_tokens {wanted}"
            )
            raise InputError(
                f"{url} drafts {served.proposals} tokens a round, run {folder.name} {wanted}: restart it with {flag}"
            )
    told = {k: getattr(served, k) for k in ("drafter", "dtype", "proposals", "verification")}
    untold = [k for k, value in told.items() if value is None]
    alone = [k for k in ("drafter", "proposals") if folder is None and k not in untold]
    if untold:
        print(
            f"note: not checked, because {url} does not say its {', '.join(untold)}"
            + ("; a vLLM in developer mode does, VLLM_SERVER_DEV_MODE=1" if options.backend == "vllm" else ""),
            file=sys.stderr,
        )
    if alone:
        print(f"note: not checked, because no run is given to compare with: {', '.join(alone)}", file=sys.stderr)
    return sorted(untold + alone)


def _known(served: "Served", client: "Client", options: Options) -> dict[str, Any]:
    """What tells this server from another one. ``drafter`` is its name, else the server's start; None: neither."""
    from specauf_cli.engines.backends import started

    return {
        "served": [served.backend, served.version, served.name, served.drafter, served.algorithm, served.proposals],
        "flags": {
            k: v for k, v in served.flags.items() if isinstance(v, dict) or k.startswith("speculative_") or k in LASTING
        },
        "drafter": served.drafter or options.served_drafter or started(client),
    }


def _weights(path: str | None) -> str | None:
    """Hash of a drafter's weights, where its folder is on this machine: a path may hold another drafter tomorrow."""
    file = Path(path or "") / "model.safetensors"
    return file_sha256(file) if path and file.is_file() else None


def _same_model(served: str, expected: str) -> bool:
    """The same name, the same folder, or a hub id and its folder in the hub's cache."""
    a, b = served.rstrip("/"), expected.rstrip("/")
    if a == b or f"models--{b.replace('/', '--')}/" in a:
        return True
    return Path(a).exists() and Path(b).exists() and Path(a).samefile(b)


def _check_tokenizer(client: Any, served: "Served", chat: "Chat", text: str) -> str:
    """What could be checked of the server's vocabulary; InputError when it is another one than the target's."""
    from specauf_cli.engines.backends import tokenized

    rows = served.flags.get("vocab_size")
    if isinstance(rows, int) and rows < chat.vocab:
        raise InputError(f"{client.url} serves a model of {rows} tokens, the target's tokenizer has {chat.vocab}")
    theirs, ours = tokenized(client, served.name, text), tuple(chat.tokens([text])[0])
    if theirs is None:
        return "not checked: it gives no /tokenize"
    if theirs != ours:
        at = next(
            (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
        )
        raise InputError(
            f"{client.url} cuts the first prompt into {len(theirs)} tokens, the target's tokenizer into {len(ours)} "
            f"(they differ at token {at}): it serves another model than {served.name} or another vocabulary"
        )
    return "cuts the first prompt as the target's"


def _who(served: "Served") -> str:
    drafted = f" with {served.proposals} draft tokens" if served.proposals is not None else ""
    return f"drafter {served.drafter or 'unnamed'}{drafted}"


def _same(path: Path, record: dict[str, Any]) -> bool:
    """True when ``path`` already holds these results: a repeated command changes no record."""
    if not path.is_file():
        return False
    try:
        found = read_json(path)
    except InputError:  # a damaged one is written anew: the answers are there
        return False
    ours = json.loads(json.dumps(record["benchmarks"]))
    theirs = found.get("benchmarks") if isinstance(found, dict) else None
    if not isinstance(theirs, list):
        return False
    return [{**b, "seconds": 0} for b in theirs] == [{**b, "seconds": 0} for b in ours]
