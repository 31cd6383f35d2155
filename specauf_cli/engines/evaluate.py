"""Evaluation by a running server, SGLang or vLLM.

runs/servers/<id>/             one server: its model, drafter, settings and version determine the id
runs/servers/<id>/answers.jsonl   every finished answer, appended at once; a second run of the command continues it
runs/servers/<id>/<hash>.json     the record: command, settings, code, what the server says of itself, what of it was
                                  not compared with the settings (``unchecked``), counts per request
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specauf_cli.engines import counts, summary
from specauf_cli.engines.checks import weights_sha256
from specauf_cli.engines.client import Client
from specauf_cli.engines.conventions import target_fingerprint
from specauf_cli.engines.measure import Asking, Measured, measure
from specauf_cli.engines.options import ServerOptions
from specauf_cli.engines.server import (
    KEY,
    Server,
    Task,
    ask_all,
    command_words,
    open_server,
    print_notes,
    server_folder,
    task_of,
    template_sha256,
    without_folders,
)
from specauf_cli.errors import InputError
from specauf_cli.store.files import digest, lock, read_json, write_json
from specauf_cli.store.provenance import code_state, command_line, environment, now

SCHEMA = 1


def evaluate_by_server(options: ServerOptions, runs: Sequence[str], benchmarks: str, overrides: Sequence[str]) -> None:
    """Measures the drafter that a running server uses, on the benchmarks as rendered for the target, and prints tau.

    The settings are those of a run (the latest finished one by default), or with ``target=...`` those given. Errors:
    InputError for a server of another target, drafter, dtype, number of draft tokens or kind, or one that stops
    answering (what it answered is kept).
    """
    with Client(options.base_url, timeout=options.timeout, retries=options.retries, key=os.environ.get(KEY)) as client:
        task = task_of(runs, benchmarks, overrides)
        server = open_server(options, client, task)
        folder = server_folder(server, task)
        print_notes(server, folder.name)
        with lock(folder, f"server record {folder.name}"):
            results = ask_all(server, task, folder, lambda asking: _measured(asking, task))
            record = _record(
                server, task, folder.name, results, [*command_words("eval", server, task, benchmarks), *overrides]
            )
            path = folder / f"{digest([task.settings, options.concurrency], 8)}.json"
            if not _holds(path, record):
                write_json(path, record)
    print("\n".join(summary.of_server(read_json(path))))
    print(f"  record: {path}")


def _measured(asking: Asking, task: Task) -> list[Measured]:
    """Every benchmark at every temperature."""
    return [
        measure(asking, prompts, column=task.config.benchmark[prompts.name].column, temperature=temperature)
        for temperature in task.config.evaluation.temperatures
        for prompts in task.prompts
    ]


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
        "server": without_folders({**asdict(server.served), "tokenizer": server.tokenizer}),
        "inputs": {
            "template": template_sha256(task.chat),
            "target": target_fingerprint(task.run) if task.run else "",
            "drafter": weights_sha256(server.served.drafter),
            **{f"prompts of {p.name}": p.sha256 for p in task.prompts},
        },
        "columns": counts.COLUMNS,
        "benchmarks": [asdict(r) for r in results],
        "cost": {"seconds": round(sum(r.seconds for r in results), 2)},
        "written": now(),
    }


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
