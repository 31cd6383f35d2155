"""Trajectories: the target's own output for every request, generated once and kept on disk.

With greedy drafts and a lossless rule the emitted stream does not depend on the drafter, so every drafter is measured
against the same trajectories.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specauf_cli.config.schema import Draw
from specauf_cli.errors import InputError
from specauf_cli.evaluation.batching import answers
from specauf_cli.evaluation.turns import Turns
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.runtime.progress import track
from specauf_cli.store.files import atomic, digest, file_sha256, write_json
from specauf_cli.store.records import skips
from specauf_cli.types import Prompt, PromptSet, Trajectory

LAYOUT = 1
COLUMNS = ["prompt id", "turn", "prompt tokens", "tokens with tail", "completion tokens", "ended"]


@dataclass(frozen=True)
class Generated:
    """Trajectories of a benchmark in prompt and turn order; ``skipped`` counts requests left out, by reason."""

    trajectories: tuple[Trajectory, ...]
    skipped: dict[str, int]
    temperature: float


def get(
    target: Target,
    prompts: PromptSet,
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    tail: int,
    batch_size: int,
    cache: Path,
    draw: Draw = "inverse_cdf",
    show: Callable[[str], None] = lambda _: None,
    shared: bool = False,
    empty: bool = False,
) -> Generated:
    """The benchmark's trajectories, from ``cache`` if they match this target, these prompts and settings.

    ``tail`` tokens are generated past the end of every completion. A stale or damaged file is generated again.
    ``shared``: every rank calls this and generates its part. Errors: InputError when no request fits the target's
    context, unless ``empty``.
    """
    identity = _identity(target, prompts, temperature, seed, max_new_tokens, tail, draw)
    path = cache / f"{prompts.name}-t{temperature:g}-{digest(identity, 12)}.json"
    cached = _cached(path, identity, target, shared=shared)
    if cached is not None:
        return cached
    turns = sum(len(p.turns) for p in prompts.prompts)
    most = 4e-6 * turns * (max_new_tokens + tail)  # int32 tokens, the prompts' own not counted
    show(
        f"{prompts.title}: the target's own answers at T={temperature:g} (once; about {most:.1f} MB at most in {cache})"
    )
    generated = generate(
        target,
        ranks.share(prompts.prompts) if shared else prompts.prompts,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        tail=tail,
        batch_size=batch_size,
        draw=draw,
    )
    if shared and ranks.WORLD > 1:
        generated = _of_all_ranks(path, identity, generated, prompts.prompts)
    if not generated.trajectories and not empty:
        raise InputError(
            f"{prompts.title}: no prompt fits the target ({skips(generated.skipped)}); its context holds "
            f"{target.context_length} tokens, evaluation.max_new_tokens={max_new_tokens} among them"
        )
    if not shared or ranks.FIRST:
        _write(path, identity, generated)
    return generated


def _identity(
    target: Target, prompts: PromptSet, temperature: float, seed: int, max_new_tokens: int, tail: int, draw: Draw
) -> dict[str, object]:
    """Everything that the trajectories depend on."""
    identity: dict[str, object] = {
        "layout": LAYOUT,
        "target": target.fingerprint,
        "template": digest(target.chat.tokenizer.chat_template, 16),
        "prompts": prompts.sha256,
        "temperature": temperature,
        "seed": seed if temperature > 0 else None,
        "max_new_tokens": max_new_tokens,
        "tail": tail,
        "dtype": str(target.model.dtype),
        "stop": sorted(target.chat.stop_ids),
    }
    if temperature > 0 and draw != "inverse_cdf":  # answers cached before there was a choice are drawn by that
        identity["draw"] = draw
    # Answers cached before such prompts were skipped must not be read again.
    if target.chat.control_token(*(turn for p in prompts.prompts for turn in p.turns)) is not None:
        identity["control tokens"] = "skipped"
    return identity


def _cached(path: Path, identity: dict[str, object], target: Target, *, shared: bool) -> Generated | None:
    """The cached trajectories; None when they must be generated, by every rank if any rank lacks them."""
    cached = _read(path, identity)
    lacking = int(cached is None)
    if shared:  # ranks read the file at different times, but must come to the same conclusion
        lacking = ranks.largest(lacking, target.device)
    return None if lacking else cached


def _of_all_ranks(path: Path, identity: dict[str, object], own: Generated, prompts: Sequence[Prompt]) -> Generated:
    """The parts of all ranks in the order of the prompts. Each rank writes its part next to ``path`` for the others
    to read."""
    parts = [path.with_name(f"{path.stem}.part{rank}.json") for rank in range(ranks.WORLD)]
    _write(parts[ranks.RANK], identity, own)
    ranks.wait()
    known = [part for part in (_read(p, identity) for p in parts) if part is not None]
    assert len(known) == ranks.WORLD, "every rank has written its part"
    ranks.wait()
    for suffix in (".json", ".safetensors"):
        parts[ranks.RANK].with_suffix(suffix).unlink()
    order = {p.id: i for i, p in enumerate(prompts)}
    trajectories = sorted((t for part in known for t in part.trajectories), key=lambda t: (order[t.prompt_id], t.turn))
    skipped: dict[str, int] = {}
    for part in known:
        for reason, count in part.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + count
    return Generated(tuple(trajectories), skipped, own.temperature)


def generate(
    target: Target,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    tail: int,
    batch_size: int,
    draw: Draw = "inverse_cdf",
) -> Generated:
    """Generates turn after turn: the second turn of a prompt follows the target's own first answer.

    A request whose prompt and answer do not fit the target's context is skipped and counted, and so are the turns after
    it.
    """
    done: dict[str, list[Trajectory]] = {p.id: [] for p in prompts}
    turns = Turns(prompts, target.chat, target.context_length - max_new_tokens - tail, "target")
    for turn, requests in enumerate(turns):
        requests.sort(key=lambda r: (len(r.prompt), r.id))
        with track(f"the target's own answers, turn {turn + 1}", len(requests)) as show:
            answered = answers(
                target,
                requests,
                temperature=temperature,
                seed=seed,
                max_new_tokens=max_new_tokens,
                tail=tail,
                batch_size=batch_size,
                draw=draw,
            )
            for count, (request, trajectory) in enumerate(answered, 1):
                done[request.prompt_id].append(trajectory)
                turns.answer(request, target.chat.text(trajectory.tokens[: trajectory.length]))
                show(count, "")
    return Generated(tuple(t for p in prompts for t in done[p.id]), turns.skipped, temperature)


def _write(path: Path, identity: dict[str, object], generated: Generated) -> None:
    """Tokens as safetensors, then the JSON that names them; the JSON is written last, so it never names an incomplete
    file."""
    rows = [torch.tensor([*t.prompt, *t.tokens], dtype=torch.int32) for t in generated.trajectories]
    rows = rows or [torch.empty(0, dtype=torch.int32)]
    with atomic(path.with_suffix(".safetensors")) as temporary:
        save_file({"tokens": torch.cat(rows)}, temporary)
    requests = [[t.prompt_id, t.turn, len(t.prompt), len(t.tokens), t.length, t.ended] for t in generated.trajectories]
    body = {"skipped": generated.skipped, "columns": COLUMNS, "requests": requests}
    checks = {"requests": digest(body), "tokens": file_sha256(path.with_suffix(".safetensors"))}
    write_json(path, {"identity": identity, "sha256": checks, **body})


def _read(path: Path, identity: dict[str, object]) -> Generated | None:
    """The cached trajectories, or None when they are missing, of another identity, or damaged."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        body = {k: raw[k] for k in ("skipped", "columns", "requests")}
        checks = {"requests": digest(body), "tokens": file_sha256(path.with_suffix(".safetensors"))}
        if raw["identity"] != identity or raw["sha256"] != checks:
            return None
        tokens = load_file(path.with_suffix(".safetensors"))["tokens"].tolist()
        trajectories, at = [], 0
        for prompt_id, turn, prompt, emitted, length, ended in raw["requests"]:
            own, after = tuple(tokens[at : at + prompt]), tuple(tokens[at + prompt : at + prompt + emitted])
            trajectories.append(Trajectory(prompt_id, turn, own, after, length, ended))
            at += prompt + emitted
        temperature = identity["temperature"]
        assert isinstance(temperature, float)
        return Generated(tuple(trajectories), raw["skipped"], temperature)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
