"""Benchmark prompts: read from JSON Lines, from the hub, or made by the procedural corpus; templated and subsampled.

A benchmark is data only (``conf/benchmark``). Reading gives *raw* prompts, as their authors wrote them; ``load`` then
keeps the first ``limit`` of a seeded permutation and puts every turn into the template.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from specauf_cli.config.schema import BenchmarkConfig
from specauf_cli.data.rows import Row, hub_rows, is_unicode, json_rows, kind, names
from specauf_cli.errors import InputError, nearest
from specauf_cli.types import Prompt, PromptSet

# Field names used by the sets on the hub (MATH-500, HumanEval, MBPP, MT-Bench, GSM8K, Alpaca), in order of preference.
ID_FIELDS = ("id", "unique_id", "task_id", "question_id", "prompt_id")
REFERENCE_FIELDS = ("reference", "answer", "canonical_solution", "code", "output")
CATEGORY_FIELDS = ("category", "subject")


def load(config: BenchmarkConfig, *, root: Path | None) -> PromptSet:
    """The prompts of one benchmark as evaluated: the first ``limit`` of a seeded permutation, in its template.

    ``root`` (``benchmark_root``) is a folder of JSON Lines files to read instead of the hub. ``total`` counts all rows
    of the source; fewer than ``limit`` is not an error. ``sha256`` is over the canonical JSON of the prompts returned,
    ``origin`` is ``offline``, ``jsonl`` or ``hub:ID@COMMIT``. Raises ``InputError`` for a template
    without ``{turn}``, a bad row (naming file and line), an empty benchmark, and a hub that cannot be reached.
    """
    if "{turn}" not in config.template:
        raise InputError(f"benchmark {config.name}: the template {config.template!r} does not contain {{turn}}")
    if config.source == "offline":
        from specauf_cli.data import offline

        chosen = offline.prompts(config.family or "", config.limit, seed=config.seed)
        total, origin = len(chosen), "offline"
    else:
        if root is None:
            prompts, commit = hub_prompts(config)
            origin = f"hub:{config.hub_id}@{commit}"
        else:
            prompts, origin = file_prompts(_file(config, root), name=config.name), "jsonl"
        order = list(range(len(prompts)))
        random.Random(f"{config.seed}-{config.name}").shuffle(order)
        chosen, total = tuple(prompts[index] for index in order[: config.limit]), len(prompts)
    # str.replace: prompts may contain braces, which str.format would read as fields
    chosen = tuple(
        replace(prompt, turns=tuple(config.template.replace("{turn}", turn) for turn in prompt.turns))
        for prompt in chosen
    )
    if not chosen:
        raise InputError(f"benchmark {config.name}: no prompts")
    return PromptSet(config.name, config.title, chosen, total, _content_hash(chosen), origin)


def load_raw(config: BenchmarkConfig, *, root: Path | None) -> PromptSet:
    """The same prompts as ``load`` without the template: what ``conversations.remove_prompts`` compares with."""
    return load(replace(config, template="{turn}"), root=root)


def file_prompts(path: Path, *, name: str) -> tuple[Prompt, ...]:
    """All raw prompts of a JSON Lines file: ``{"id","turns":[str, ...]}``, optional ``reference`` and ``category``.

    A row without an id is ``NAME-LINE``. Raises ``InputError`` naming file and line for anything else.
    """
    prompts = []
    for number, where, row in json_rows(path):
        turns = row.get("turns")
        if not isinstance(turns, list):
            raise InputError(f"{where}: expected 'turns', a list of strings (the row has: {names(row)})")
        prompts.append(
            Prompt(
                id=_identity(row, ("id",), name=name, number=number),
                turns=_checked(turns, where),
                category=_optional(row, "category", where),
                reference=_optional(row, "reference", where),
            )
        )
    return _distinct(prompts, str(path))


def hub_prompts(config: BenchmarkConfig) -> tuple[tuple[Prompt, ...], str]:
    """``(all raw prompts, commit)`` of a benchmark on the Hugging Face hub; ids are taken from the rows if present.

    Raises ``InputError`` when the hub cannot be reached, has no such set, or its rows lack a field of ``turns``.
    """
    if not config.hub_id and config.file:
        raise InputError(
            f"benchmark {config.name}: its prompts are read from the file {config.file} only; give its folder: "
            "benchmark_root=DIR"
        )
    if not config.hub_id or not config.turns:
        raise InputError(f"benchmark {config.name}: source hub needs hub_id and turns")
    rows, commit = hub_rows(
        config.hub_id,
        subset=config.subset,
        split=config.split,
        revision=config.revision,
        files=None,
        instead=f"use local files: benchmark_root=DIR with DIR/{config.file}",
    )
    prompts = [
        Prompt(
            id=_identity(row, ID_FIELDS, name=config.name, number=number),
            turns=_checked(
                _turns(row, config.turns, f"{config.hub_id}, row {number}"), f"{config.hub_id}, row {number}"
            ),
            category=_first_text(row, CATEGORY_FIELDS),
            reference=_first_text(row, REFERENCE_FIELDS),
        )
        for number, row in enumerate(rows)
    ]
    if not prompts:
        raise InputError(f"benchmark {config.name}: {config.hub_id} has no rows in split {config.split!r}")
    return _distinct(prompts, config.hub_id), commit


def _file(config: BenchmarkConfig, root: Path) -> Path:
    if config.file is None:
        raise InputError(f"benchmark {config.name}: with benchmark_root the benchmark needs a 'file' below it")
    if not root.is_dir():
        raise InputError(f"benchmark_root={root}: no such folder; 'specauf data fetch --out DIR' writes DIR/benchmarks")
    path = root / config.file
    if not path.is_file():
        there = sorted(file.name for file in root.glob("*.jsonl"))
        raise InputError(
            f"benchmark {config.name}: no file {path}; in that folder: {', '.join(there) or 'no *.jsonl'}."
            f"{nearest(config.file, there)}"
        )
    return path


def _turns(row: Row, specs: Sequence[str], where: str) -> list[object]:
    turns: list[object] = []
    for spec in specs:
        if "{" in spec:
            turns.append(_fill(row, spec, where))
            continue
        value = _field(row, spec, where)
        turns.extend(value if isinstance(value, list) else [value])
    return turns


def _fill(row: Row, pattern: str, where: str) -> str:
    """``{field}`` is the field's text; a part in ``[...]`` is left out when a field in it is empty."""

    def text(match: re.Match[str]) -> str:
        return str(_field(row, match[1], where) or "")

    filled = ""
    for index, part in enumerate(re.split(r"\[([^\[\]]*)\]", pattern)):
        fields = re.findall(r"\{(\w+)\}", part)
        if index % 2 and not all(str(_field(row, field, where) or "").strip() for field in fields):
            continue
        filled += re.sub(r"\{(\w+)\}", text, part)
    return filled


def _field(row: Row, name: str, where: str) -> object:
    if name not in row:
        raise InputError(f"{where}: no field {name!r}; it has: {', '.join(row)}.{nearest(name, row)}")
    return row[name]


def _checked(turns: Sequence[object], where: str) -> tuple[str, ...]:
    if not turns:
        raise InputError(f"{where}: no turns")
    texts: list[str] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, str):
            raise InputError(f"{where}, turn {number}: expected a string, found {kind(turn)}")
        if not turn.strip():
            raise InputError(f"{where}, turn {number}: empty")
        if not is_unicode(turn):
            raise InputError(f"{where}, turn {number}: not valid Unicode (half a surrogate pair)")
        texts.append(turn)
    return tuple(texts)


def _identity(row: Row, fields: Sequence[str], *, name: str, number: int) -> str:
    """The row's id. A number, or the row's number if there is no id, is prefixed with the benchmark's name."""
    own = next((row[field] for field in fields if row.get(field) not in (None, "")), number)
    return own if isinstance(own, str) else f"{name}-{own}"


def _first_text(row: Row, fields: Sequence[str]) -> str | None:
    value = next((row[field] for field in fields if row.get(field) is not None), None)
    if isinstance(value, list):  # MT-Bench: one reference per turn, or none
        value = "\n\n".join(str(item) for item in value if item)
    return str(value) if value is not None and value != "" else None


def _optional(row: Row, field: str, where: str) -> str | None:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {field!r} must be a string or null, found {kind(value)}")
    return value


def _distinct(prompts: Iterable[Prompt], where: str) -> tuple[Prompt, ...]:
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        if not is_unicode(prompt.id):
            raise InputError(f"{where}: the id {prompt.id!r} is not valid Unicode (half a surrogate pair)")
        if prompt.id in kept:  # a prompt is a statistical cluster: two with the same id would be paired wrongly
            raise InputError(f"{where}: the id {prompt.id!r} occurs twice; ids must differ")
        kept[prompt.id] = prompt
    return tuple(kept.values())


def _content_hash(prompts: Sequence[Prompt]) -> str:
    canonical = json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
