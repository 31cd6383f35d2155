"""``specauf data fetch``: the public sets of the hub as local JSON Lines, in the layout the other sources read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from specauf_cli.config.schema import BenchmarkConfig, DataConfig
from specauf_cli.data import conversations
from specauf_cli.data.benchmarks import hub_prompts
from specauf_cli.errors import InputError
from specauf_cli.store.files import atomic


def fetch(
    out: Path, benchmarks: Mapping[str, BenchmarkConfig], data: DataConfig, *, echo: Callable[[str], None]
) -> None:
    """Write ``out/benchmarks/<file>`` (all rows, raw turns) and ``out/train/<name>.jsonl`` from the hub.

    Existing files are kept; each file is written completely or not at all. ``echo`` gets one line per set. If a set
    fails the others are still fetched; ``InputError`` at the end names those that failed.
    """
    failed: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out} cannot be written")

    def attempt(name: str, path: Path, rows: Callable[[], tuple[Iterable[object], str]]) -> None:
        try:
            if path.exists():
                echo(f"{name}: already there, {path}")
                return
            fetched, summary = rows()
            _write(path, fetched)
            echo(f"{name}: {summary} -> {path}")
        except (InputError, OSError) as error:
            failed.append(name)
            echo(f"{name}: FAILED, {' '.join(str(error).split())}")

    for name, config in benchmarks.items():
        if config.source != "hub":
            echo(f"{name}: source {config.source}, nothing to fetch")
        elif not config.file:
            failed.append(name)
            echo(f"{name}: FAILED, it has no 'file' to write to")
        else:
            attempt(name, out / "benchmarks" / config.file, partial(_benchmark, config))
    if data.source != "hub" or not data.hub_id:
        echo(f"{data.name}: source {data.source}, nothing to fetch")
    else:
        attempt(data.name, out / "train" / f"{data.name}.jsonl", partial(_training, data))
    if failed:
        raise InputError(
            f"{len(failed)} of the sets could not be fetched: {', '.join(failed)}; "
            f"{f'what was fetched is in {out}' if out.exists() else 'nothing was written'}"
        )


def _benchmark(config: BenchmarkConfig) -> tuple[Iterable[object], str]:
    prompts, commit = hub_prompts(config)
    rows = (
        {"id": prompt.id, "turns": prompt.turns, "reference": prompt.reference, "category": prompt.category}
        for prompt in prompts
    )
    return rows, f"{len(prompts)} prompts of {config.hub_id}@{commit}"


def _training(data: DataConfig) -> tuple[Iterable[object], str]:
    assert data.hub_id is not None
    corpus = conversations.load_hub(data.hub_id, revision=data.revision, files=data.files)

    def rows() -> Iterator[object]:
        for conversation in corpus.conversations:
            turns = [{"role": message.role, "content": message.content} for message in conversation.messages]
            yield {"id": conversation.id, "source": conversation.source, "conversations": turns}

    dropped = ", ".join(f"{count} {reason}" for reason, count in corpus.dropped.items()) or "none"
    return rows(), f"{len(corpus.conversations)} conversations of {corpus.name} (dropped: {dropped})"


def _write(path: Path, rows: Iterable[object]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
