"""Evaluation by a running server, SGLang or vLLM.

runs/servers/<id>/             one server: its model, drafter, settings and version determine the id
runs/servers/<id>/answers.jsonl   every finished answer, appended at once; a second run of the command continues it
runs/servers/<id>/<hash>.json     the record: command, settings, code, what the server says of itself, what of it was
                                  not compared with the settings (``unchecked``), counts per request

A server that does not name its drafter is identified by its start time: answers are used again until it restarts.
"""

import json
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specauf_cli.config import compose
from specauf_cli.config.overrides import key_of, runs_folder
from specauf_cli.config.schema import Config, TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.engines import counts, summary
from specauf_cli.engines.answers import Answers
from specauf_cli.engines.checks import check_drafter, check_model, check_settings, check_tokenizer, weights_sha256
from specauf_cli.engines.client import Client
from specauf_cli.engines.conventions import target_fingerprint
from specauf_cli.engines.measure import Asking, Measured, measure
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.served import Served, started
from specauf_cli.engines.sglang import SGLang
from specauf_cli.engines.vllm import VLLM
from specauf_cli.errors import InputError
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.interchange.targets import target_path
from specauf_cli.store import layout
from specauf_cli.store.files import digest, lock, read_json, write_json
from specauf_cli.store.provenance import code_state, command_line, environment, now
from specauf_cli.store.trust import configs
from specauf_cli.types import Message, PromptSet

SCHEMA = 1
LASTING = ("dtype", "quantization", "kv_cache_dtype", "revision", "tp_size", "attention_backend")
"""Settings that tell one server from another; others (seeds, sizes of its memory) change when it is started again."""

KEY = "SPECAUF_API_KEY"
"""Environment variable with the server's key, where it wants one; it is never recorded."""

ASKED = ("drafts", "prompts", "temperatures", "seed", "max_new_tokens", "precision")
"""Evaluation settings that decide what a server is asked."""


@dataclass(frozen=True)
class Task:
    """What a server is measured on: ``prompts`` rendered by ``chat``, by the settings of ``config``.

    ``run`` is the folder of the run whose drafter is served, None where the settings name a target instead.
    """

    run: Path | None
    config: Config
    target: TargetConfig
    prompts: Sequence[PromptSet]
    chat: Chat

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that identify a record."""
        evaluation = {k: self.config.resolved["evaluation"][k] for k in ASKED}
        return {"evaluation": evaluation, "benchmark": self.config.resolved["benchmark"]}


@dataclass(frozen=True)
class Server:
    """A server that was checked against a task. ``identity`` distinguishes it from others; ``drafter`` in it is None
    where nothing identifies the drafter.

    ``unchecked``: what it did not report; ``tokenizer``: what could be checked of its vocabulary.
    """

    options: ServerOptions
    client: Client
    backend: SGLang | VLLM
    served: Served
    identity: dict[str, Any]
    unchecked: list[str]
    tokenizer: str


def evaluate_by_server(options: ServerOptions, runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> None:
    """Measures the drafter that a running server uses, on the benchmarks as rendered for the target, and prints tau.

    The settings are those of a run (the latest finished one by default), or with ``target=...`` those given. Errors:
    InputError for a server of another target, drafter, dtype, number of draft tokens or kind, or one that stops
    answering (what it answered is kept).
    """
    with Client(options.base_url, timeout=options.timeout, retries=options.retries, key=os.environ.get(KEY)) as client:
        task = _task(runs, benchmarks, overrides)
        server = _open_server(options, client, task)
        folder = _folder(server, task)
        _print_notes(server, folder.name)
        with lock(folder, f"server record {folder.name}"):
            results = _ask(server, task, folder)
            record = _record(server, task, folder.name, results, [*_words(server, task, benchmarks), *overrides])
            path = folder / f"{digest([task.settings, options.concurrency], 8)}.json"
            if not _holds(path, record):
                write_json(path, record)
    print("\n".join(summary.of_server(read_json(path))))
    print(f"  record: {path}")


def _task(runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> Task:
    """The task that the overrides describe. Errors: InputError for settings, benchmarks or a target that do not
    exist."""
    run, config = _settings(runs, benchmarks, overrides)
    target = _located(config, run)
    prompts = load_benchmarks(config)
    return Task(run, config, target, prompts, Chat.load(target))  # tokenizer and template: the weights are the server's


def _settings(runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> tuple[Path | None, Config]:
    """The run whose drafter is served, and the settings; no run where the overrides name a target."""
    names_target = any(key_of(w) in ("target", "target.path", "target.name") for w in overrides)
    if names_target and not runs:
        return None, compose.with_benchmarks(compose.compose(overrides), benchmarks)
    if len(runs) > 1:
        raise InputError(f"--run is given {len(runs)} times; a server has one drafter")
    local = Path(runs_folder(overrides))
    if not runs and not list(local.glob(f"*/{layout.FINISHED}")):
        raise InputError(
            "no finished run here to compare the server with; say which target it serves: target=... or --run"
        )
    (folder,) = layout.find(local, runs, every=False)
    return folder, configs(folder, overrides, benchmarks)[1]


def _located(config: Config, run: Path | None) -> TargetConfig:
    """The target with its path. Errors: InputError when it is not on this machine."""
    if config.target.path is not None:
        return config.target
    if run is None:
        raise InputError(f"target {config.target.name} is trained here; name the run whose target is served: --run RUN")
    return replace(config.target, path=target_path(run))


def _open_server(options: ServerOptions, client: Client, task: Task) -> Server:
    """Connects to the server and checks that it is the right one and counts its drafts. Errors: InputError naming what
    is not as expected."""
    stop_ids = sorted(task.chat.stop_ids)
    backend = SGLang(client, stop_ids) if options.backend == "sglang" else VLLM(client, stop_ids, options.served_model)
    served = backend.served()
    check_model(served, str(task.target.path), options)
    check_drafter(served, task.run, options)
    unchecked = check_settings(served, task.config, task.run, options)
    first_turn = Message("user", task.prompts[0].prompts[0].turns[0])
    text = task.chat.render([first_turn], generation=True)
    tokenizer = check_tokenizer(client, served, task.chat, text)
    backend.probe(task.chat.tokens([text])[0])
    return Server(options, client, backend, served, _identity(served, client, options), unchecked, tokenizer)


def _identity(served: Served, client: Client, options: ServerOptions) -> dict[str, Any]:
    """What distinguishes this server from others. ``drafter`` is its name, else the server's start; None: neither."""
    return {
        "served": [served.backend, served.version, served.name, served.drafter, served.algorithm, served.proposals],
        "flags": {
            k: v for k, v in served.flags.items() if isinstance(v, dict) or k.startswith("speculative_") or k in LASTING
        },
        "drafter": served.drafter or options.served_drafter or started(client),
    }


def _template_sha256(chat: Chat) -> str:
    return digest(chat.tokenizer.chat_template, 16)


def _folder(server: Server, task: Task) -> Path:
    """Where the answers of this server to this target's prompts are kept."""
    identity = {
        **server.identity,
        "run": task.run.name if task.run else None,
        "template": _template_sha256(task.chat),
        "vocabulary": task.chat.vocab,
        "stop": sorted(task.chat.stop_ids),
        # A server without an identity counts as another one every time.
        "drafter": [server.identity["drafter"] or secrets.token_hex(8), weights_sha256(server.served.drafter)],
    }
    subject = task.run.name if task.run else task.target.name
    return layout.server(Path(task.config.runs), f"{server.options.backend}-{subject}-{digest(identity, 8)}")


def _print_notes(server: Server, name: str) -> None:
    """Prints to stderr which server is measured, and what its answers do not contain."""
    options, served = server.options, server.served
    print(f"{name}: {served.name}, {served.drafter_in_words}, asked {options.concurrency} at a time", file=sys.stderr)
    if served.drafter is None and options.served_drafter is None:
        drafter = server.identity["drafter"]
        again = "until it is restarted" if drafter else "never, since it does not report its start time either"
        print(
            f"note: {server.client.url} does not name its drafter: answers are used again {again}; --served-drafter "
            "NAME keeps them",
            file=sys.stderr,
        )
    if server.backend.counts == "counters":
        print(
            f"{name}: answers carry no counts, so the server's counters are read around every {options.concurrency} "
            "requests; intervals need --concurrency 1, or a server with --per-request-spec-decode-metrics summary",
            file=sys.stderr,
        )


def _ask(server: Server, task: Task, folder: Path) -> list[Measured]:
    """Asks what is missing, benchmark after benchmark. Errors: InputError that says how many answers are kept."""
    evaluation, results = task.config.evaluation, []
    with closing(Answers(layout.answers_of(folder))) as answers:
        if answers.kept:
            torn = f", {answers.torn} torn lines left out" if answers.torn else ""
            print(f"{folder.name}: {len(answers.kept)} answers are there already{torn}", file=sys.stderr)
        asking = Asking(
            backend=server.backend,
            client=server.client,
            chat=task.chat,
            answers=answers,
            concurrency=server.options.concurrency,
            max_new_tokens=evaluation.max_new_tokens,
            seed=evaluation.seed,
            context=server.served.context,
        )
        try:
            for temperature in evaluation.temperatures:
                for prompts in task.prompts:
                    column = task.config.benchmark[prompts.name].column
                    results.append(measure(asking, prompts, column=column, temperature=temperature))
            _check_unchanged(server, answers)
        except InputError as error:
            kept = f"{len(answers.kept)} answers are kept; run the same command to continue"
            if server.identity["drafter"] is None:
                kept = (
                    "no answer is used again, for it names neither its drafter nor its start; --served-drafter NAME "
                    "keeps them"
                )
            raise InputError(f"{error}; {kept}") from error
    return results


def _check_unchanged(server: Server, answers: Answers) -> None:
    """Discards all answers, with an InputError, when the server is no longer the one that was opened."""
    served = server.backend.served()
    if _identity(served, server.client, server.options) != server.identity:
        answers.discard()
        raise InputError(
            f"{server.client.url} was restarted or changed during the measurement ({server.served.drafter_in_words}, "
            f"then {served.drafter_in_words}), so its answers may be from two drafters"
        )


def _words(server: Server, task: Task, benchmarks: str) -> list[str]:
    """The command as it is recorded: without the address, and with only the last part of each folder."""
    options = server.options
    words = ["eval", "--backend", options.backend, "--base-url", "URL", *(["--run", task.run.name] if task.run else [])]
    words += ["--served-model", _without_folders(options.served_model)] if options.served_model else []
    words += ["--served-drafter", _without_folders(options.served_drafter)] if options.served_drafter else []
    return [*words, "--concurrency", str(options.concurrency), "--benchmarks", benchmarks]


def _record(server: Server, task: Task, name: str, results: Sequence[Measured], words: Sequence[str]) -> dict[str, Any]:
    backend = server.options.backend
    return {
        "schema": SCHEMA,
        "kind": "server",
        "id": name,
        "backend": backend,
        "definition": backend,
        "definition_text": counts.DEFINITIONS[backend],
        "counts": server.backend.counts,
        "concurrency": server.options.concurrency,
        "unchecked": server.unchecked,
        "run": task.run.name if task.run else None,
        "profile": task.config.profile.name,
        "command": command_line(words),
        "config": {"target": task.config.resolved["target"], **task.settings},
        "code": code_state(),
        # Of the machine that sends the requests; the server's own is under "server".
        "environment": environment("cpu", 1),
        "server": _without_folders({**asdict(server.served), "tokenizer": server.tokenizer}),
        "inputs": {
            "template": _template_sha256(task.chat),
            "target": target_fingerprint(task.run) if task.run else "",
            "drafter": weights_sha256(server.served.drafter),
            **{f"prompts of {p.name}": p.sha256 for p in task.prompts},
        },
        "columns": counts.COLUMNS,
        "benchmarks": [asdict(r) for r in results],
        "cost": {"seconds": round(sum(r.seconds for r in results), 2)},
        "written": now(),
    }


def _without_folders(value: Any) -> Any:
    """``value`` with every folder in it reduced to its last part: where it is on a machine is private."""
    if isinstance(value, dict):
        return {k: _without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_folders(v) for v in value)
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _holds(path: Path, record: dict[str, Any]) -> bool:
    """True when ``path`` already holds these results: a repeated command changes no record."""
    if not path.is_file():
        return False
    try:
        existing = read_json(path)
    except InputError:  # a damaged one is written again from the answers
        return False
    theirs = existing.get("benchmarks") if isinstance(existing, dict) else None
    if not isinstance(theirs, list):
        return False
    ours = json.loads(json.dumps(record["benchmarks"]))
    return [{**b, "seconds": 0} for b in theirs] == [{**b, "seconds": 0} for b in ours]
