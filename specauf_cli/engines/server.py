"""A running server, opened: checked against what it should serve, known by what distinguishes it, and asked.

A server that does not name its drafter is identified by its start time: answers are used again until it restarts.
"""

import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from specauf_cli.config import compose
from specauf_cli.config.overrides import key_of, runs_folder
from specauf_cli.config.schema import Config, TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.engines.answers import Answers
from specauf_cli.engines.checks import (
    check_model,
    check_tokenizer,
    other_drafter,
    other_dtype,
    other_settings,
    unchecked,
    weights_sha256,
)
from specauf_cli.engines.client import Client
from specauf_cli.engines.measure import Asking
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.served import Served, started
from specauf_cli.engines.sglang import SGLang
from specauf_cli.engines.vllm import NGRAM, VLLM
from specauf_cli.errors import InputError
from specauf_cli.evaluation.evaluate import load_benchmarks
from specauf_cli.interchange.targets import target_path
from specauf_cli.store import layout
from specauf_cli.store.files import digest
from specauf_cli.store.referee import Subject
from specauf_cli.store.trust import configs
from specauf_cli.types import Message, PromptSet

T = TypeVar("T")

LASTING = ("dtype", "quantization", "kv_cache_dtype", "revision", "tp_size", "attention_backend")
"""Settings that tell one server from another; others (seeds, sizes of its memory) change when it is started again."""

KEY = "SPECAUF_API_KEY"
"""Environment variable with the server's key, where it wants one; it is never recorded."""

TOLD: dict[Subject, tuple[str, ...]] = {
    "drafter": ("drafter", "dtype", "proposals", "verification"),
    "lookup": ("dtype", "verification"),
    "plain": ("dtype",),
}
"""What is compared with what a server says of itself, by what it drafts with."""

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

    ``unchecked``: what it did not report; ``tokenizer``: what could be checked of its vocabulary; ``reported``: in
    which settings it says that it differs; ``subject``: what it drafts with.
    """

    options: ServerOptions
    client: Client
    backend: SGLang | VLLM
    served: Served
    identity: dict[str, Any]
    unchecked: list[str]
    tokenizer: str
    reported: tuple[str, ...] = ()
    subject: Subject = "drafter"


def task_of(runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> Task:
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


def open_server(
    options: ServerOptions, client: Client, task: Task, *, subject: Subject = "drafter", strict: bool = True
) -> Server:
    """Connects to the server and checks that it is the right one and counts its drafts.

    ``subject``: what it should draft with. ``strict``: settings in which it says that it differs are errors; else they
    are in ``Server.reported``, and one that says it drafts by prompt lookup is opened as such. Errors: InputError
    naming what is not as expected.
    """
    plain = subject == "plain"
    stop_ids = sorted(task.chat.stop_ids)
    backend: SGLang | VLLM
    if options.backend == "sglang":
        backend = SGLang(client, stop_ids, plain=plain)
    else:
        backend = VLLM(client, stop_ids, options.served_model, plain=plain)
    served = backend.served()
    check_model(served, str(task.target.path), options)
    if served.algorithm == NGRAM and not strict:
        subject = "lookup"
    elif subject == "lookup" and served.algorithm is not None:
        raise InputError(f"{client.url} drafts by {served.algorithm}, not by {NGRAM} as --lookup says; leave it out")
    reported = _differences(served, task, options, subject)
    if strict:
        for difference in reported:
            raise InputError(difference)
    unknown = unchecked(served, task.run, options, TOLD[subject])
    first_turn = Message("user", task.prompts[0].prompts[0].turns[0])
    text = task.chat.render([first_turn], generation=True)
    tokenizer = check_tokenizer(client, served, task.chat, text)
    backend.probe(task.chat.tokens([text])[0])
    identity = _identity(served, client, options, plain)
    return Server(options, client, backend, served, identity, unknown, tokenizer, tuple(reported), subject)


def _differences(served: Served, task: Task, options: ServerOptions, subject: Subject) -> list[str]:
    """In which settings the server says that it differs."""
    if subject != "drafter":
        return other_dtype(served, task.config, options)
    return [
        *other_drafter(served, task.run, options),
        *other_settings(served, task.config, task.run, options),
    ]


def _identity(served: Served, client: Client, options: ServerOptions, plain: bool) -> dict[str, Any]:
    """What distinguishes this server from others. ``drafter`` is its name, else the server's start; None: neither."""
    return {
        "served": [served.backend, served.version, served.name, served.drafter, served.algorithm, served.proposals],
        "flags": {
            k: v for k, v in served.flags.items() if isinstance(v, dict) or k.startswith("speculative_") or k in LASTING
        },
        "drafter": "none" if plain else served.drafter or options.served_drafter or started(client),
    }


def template_sha256(chat: Chat) -> str:
    """What identifies the chat template."""
    return digest(chat.tokenizer.chat_template, 16)


def server_folder(server: Server, task: Task) -> Path:
    """Where the answers of this server to this target's prompts are kept."""
    identity = {
        **server.identity,
        "run": task.run.name if task.run else None,
        "template": template_sha256(task.chat),
        "vocabulary": task.chat.vocab,
        "stop": sorted(task.chat.stop_ids),
        # A server without an identity counts as another one every time.
        "drafter": [server.identity["drafter"] or secrets.token_hex(8), weights_sha256(server.served.drafter)],
    }
    subject = task.run.name if task.run else task.target.name
    return layout.server(Path(task.config.runs), f"{server.options.backend}-{subject}-{digest(identity, 8)}")


def print_notes(server: Server, name: str) -> None:
    """Prints to stderr which server is measured, and what its answers do not contain."""
    options, served = server.options, server.served
    print(f"{name}: {served.name}, {served.drafter_in_words}, asked {options.concurrency} at a time", file=sys.stderr)
    if served.drafter is None and options.served_drafter is None and server.subject != "plain":
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


def ask_all(server: Server, task: Task, folder: Path, ask: Callable[[Asking], T]) -> T:
    """What ``ask`` returns: it asks everything, the answers that are kept first.

    Errors: InputError that says how many answers are kept, when the server stops answering or is no longer the one that
    was opened.
    """
    evaluation = task.config.evaluation
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
            results = ask(asking)
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
    """Discards the answers since it was opened, with an InputError, when the server is no longer the same."""
    served = server.backend.served()
    if _identity(served, server.client, server.options, server.subject == "plain") != server.identity:
        answers.discard()
        raise InputError(
            f"{server.client.url} was restarted or changed during the measurement ({server.served.drafter_in_words}, "
            f"then {served.drafter_in_words}), so its answers may be from two drafters"
        )


def command_words(command: str, server: Server, task: Task, benchmarks: str) -> list[str]:
    """The command as it is recorded: without the address, and with only the last part of each folder."""
    options = server.options
    run = ["--run", task.run.name] if task.run else []
    words = [command, "--backend", options.backend, "--base-url", "URL", *run]
    words += ["--served-model", without_folders(options.served_model)] if options.served_model else []
    words += ["--served-drafter", without_folders(options.served_drafter)] if options.served_drafter else []
    return [*words, "--concurrency", str(options.concurrency), "--benchmarks", benchmarks]


def without_folders(value: Any) -> Any:
    """``value`` with every folder in it reduced to its last part: where it is on a machine is private."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_folders(v) for v in value)
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value
