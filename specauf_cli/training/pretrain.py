"""A small target trained from scratch: tokenizer and causal LM on the training conversations."""

import shutil
import sys
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from specauf_cli.config.schema import PretrainConfig, TargetConfig
from specauf_cli.config.settings import said
from specauf_cli.data.chat import Chat, encode
from specauf_cli.errors import InputError
from specauf_cli.models import target
from specauf_cli.runtime import ranks
from specauf_cli.runtime.products import autocast
from specauf_cli.store import layout
from specauf_cli.store.files import atomic_folder, digest, file_sha256, lock, read_json, remove_leftovers, write_json
from specauf_cli.store.provenance import now, peak_memory_mib
from specauf_cli.training.loop import Outcome, Training, run
from specauf_cli.types import Corpus

MARKER = "specauf.json"


def ensure(config: TargetConfig, corpus: Corpus, runs: Path, *, data: str, device: str) -> TargetConfig:
    """``config`` with ``path`` set: as it is when it names one, else the folder of the target trained here.

    A finished target is used as it is, an interrupted one continues. ``data`` is the fingerprint of ``corpus``.
    """
    if config.path is not None:
        return config
    if config.pretrain is None:
        raise InputError(
            f"target {config.name!r} names neither a path (hub id or folder) nor how to train it (target.pretrain)"
        )
    folder = place(config, runs, data=data)
    name = folder.name
    if not (folder / MARKER).is_file() and ranks.FIRST:
        with lock(layout.target_training(folder), f"target {name}", wait=True):
            if not (folder / MARKER).is_file():  # another process may have trained it meanwhile
                train(config, corpus, folder, data=data, device=device)
    ranks.wait()
    if describe(str(folder), whole=True)["files"] != _files(folder):
        raise InputError(
            f"target {folder} is not what was saved: its weights, sizes or tokenizer were altered or damaged; move the "
            "folder aside to train it again, with its drafters"
        )
    return replace(config, path=str(folder))


def place(config: TargetConfig, runs: Path, *, data: str) -> Path:
    """Where the target that ``config.pretrain`` describes lies once it is trained on ``data``; whole when it holds
    ``MARKER``."""
    assert config.pretrain is not None
    return layout.targets(runs) / f"{config.name}-{digest([said(config.pretrain), config.mask_token, data], 8)}"


def train(config: TargetConfig, corpus: Corpus, folder: Path, *, data: str, device: str) -> None:
    """Trains the tokenizer and the model on every token of the rendered conversations; writes a Hugging Face folder.

    Rows are cut from the shuffled corpus laid end to end, so every step has the same shape. The marker file, written
    last, holds the content fingerprint, the final loss and accuracy, and what it cost.
    """
    recipe = config.pretrain
    assert recipe is not None
    work = layout.target_training(folder)
    print(f"training target {config.title}: {recipe.steps} steps (once; kept in {folder})", file=sys.stderr)
    tokenizer = work / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        texts = (m.content for c in corpus.conversations for m in c.messages)
        with atomic_folder(tokenizer) as partial:  # an interrupted training continues with it
            Chat.build(texts, recipe.vocab_size).save(partial)
    chat = Chat.load(replace(config, path=str(tokenizer)))
    examples, counts = encode(chat, corpus, max_length=recipe.max_positions)
    tokens_of, answers_of = array("q"), array("b")  # 9 bytes of memory for every token of the corpus
    for example in examples:
        tokens_of.extend((*example.tokens, chat.pad_id))
        answers_of.extend((*example.supervised, False))
    stream, answers = torch.frombuffer(tokens_of, dtype=torch.long), torch.frombuffer(answers_of, dtype=torch.bool)
    model = target.create(recipe, chat).to(device)
    rows = Rows(stream, answers, recipe)
    kind = torch.device(device).type
    if kind == "cpu":  # the backward pass of the fused CPU kernel takes half of a step at these lengths
        model.set_attn_implementation("eager")

    def step(i: int) -> Outcome:
        tokens, supervised = (x.to(device) for x in rows.batch(i))
        with autocast(kind, recipe.precision):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        labels = tokens[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        torch.autograd.backward(loss)
        hits = (logits.detach().argmax(dim=-1) == labels) & supervised[:, 1:]
        sums = {"valid": supervised[:, 1:].sum(), "correct": hits.sum()}
        return Outcome(loss.detach(), sums, labels.numel())

    def summary(window: Mapping[str, float]) -> dict[str, float]:
        return {"accuracy": window["correct"] / max(1.0, window["valid"])}

    (ended,) = run(
        [
            Training(
                name=f"target {config.name}",
                folder=work,
                module=model,
                step=step,
                summary=summary,
                identity=digest([said(recipe), data]),
                steps=recipe.steps,
                lr=recipe.lr,
                betas=(0.9, 0.95),
                weight_decay=recipe.weight_decay,
                warmup=recipe.warmup,
                clip=recipe.clip,
                log_every=20,
                save_every=500,
            )
        ]
    )
    if ended.failure:
        raise ended.failure
    tokens_seen = recipe.steps * recipe.rows * recipe.row_length
    remove_leftovers(folder)
    try:
        with atomic_folder(folder) as final:
            model.save_pretrained(final, safe_serialization=True)
            chat.save(final)
            shutil.copy(layout.log_of(work), layout.log_of(final))
            marker = {
                "fingerprint": target.content_fingerprint(final),
                "files": _files(final),
                "parameters": sum(p.numel() for p in model.parameters()),
                "vocabulary": chat.vocab,
                "train": {**counts, "steps": recipe.steps, "tokens seen": tokens_seen},
                "last": {k: ended.line[k] for k in ("loss", "accuracy")},
                "seconds": round(ended.seconds, 1),
                "peak_memory_mib": peak_memory_mib(),
                "written": now(),
            }
            write_json(final / MARKER, marker)
    except InputError as error:
        raise InputError(f"{error}; the training is saved in {work}") from error
    shutil.rmtree(work)


class Rows:
    """Fixed-shape rows of row_length + 1 tokens; a new shuffle of the rows, and a new offset, for every epoch."""

    def __init__(self, stream: Int[Tensor, "tokens"], answers: Bool[Tensor, "tokens"], recipe: PretrainConfig) -> None:
        self.stream, self.answers, self.recipe = stream, answers, recipe
        self.count = (len(stream) - 1) // recipe.row_length - 1
        self.per_epoch = self.count // recipe.rows
        if self.per_epoch < 1:
            raise InputError(
                f"{len(stream)} tokens do not fill one step of {recipe.rows} rows x {recipe.row_length}; give more "
                "data or fewer rows"
            )

    def batch(self, step: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Tokens and answer mask of one step: B = ``rows``, T = ``row_length`` + 1."""
        epoch, position = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        offset = int(torch.randint(self.recipe.row_length, (), generator=generator))
        order = torch.randperm(self.count, generator=generator)
        chosen = (
            order[position * self.recipe.rows : (position + 1) * self.recipe.rows] * self.recipe.row_length + offset
        )
        index = chosen[:, None] + torch.arange(self.recipe.row_length + 1)
        return self.stream[index], self.answers[index]


def _files(folder: Path) -> dict[str, str]:
    """Content hash of every file of a target but the marker."""
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MARKER}


def describe(path: str, *, whole: bool = False) -> dict[str, Any]:
    """What the marker of a target trained here says of it; empty for any other target."""
    marker = Path(path) / MARKER
    contents = read_json(marker) if marker.is_file() else {}
    kinds = {"fingerprint": str, "files": dict, "parameters": int, "vocabulary": int, "train": dict, "last": dict}
    if not isinstance(contents, dict) or (
        contents and not all(isinstance(contents.get(k), v) for k, v in kinds.items())
    ):
        raise InputError(f"{marker} is damaged; move its folder aside to train the target again")
    return {k: v for k, v in contents.items() if k != "files"} if not whole else contents
