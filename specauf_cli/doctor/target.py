"""Checks of the target: tapped layers, head, embedding row of the mask token, tokenizer size against embedding rows."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from specauf_cli.doctor.subject import FAIL, OK, WARN, Finding, Subject, close
from specauf_cli.models import structure
from specauf_cli.models.target import Target
from specauf_cli.store import layout
from specauf_cli.store.files import read_json


@torch.no_grad()
def layers(subject: Subject) -> Finding:
    """The feature of tap ``id`` is ``hidden_states[id + 1]`` of the model's own pass, live and in training; never the
    last.

    With a run, its ``target_layer_ids`` must be the taps: serving engines count one higher internally (vllm#40727).
    """
    target = subject.target()
    tokens, count = subject.tokens(), target.depth
    if max(target.taps) >= count - 1 and target.config.taps != "last":
        return Finding(
            FAIL,
            f"taps {list(target.taps)} include layer {max(target.taps)}, the last of {count}, stored after the final "
            "norm",
            f"target.taps below {count - 1}",
        )
    states = structure.decoder(target.model)(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    views = {"training": target.features(tokens), "decoding": target.forward(tokens, target.new_cache())[1]}
    for view, features in views.items():
        for tap, part in zip(target.taps, torch.split(features, target.hidden_size, dim=-1), strict=True):
            apart = [float((part.float() - s.float().to(part.device)).abs().max()) for s in states]
            nearest = min(range(len(states)), key=lambda i: apart[i])
            if nearest != tap + 1 or not close(part, states[tap + 1].to(part.device)):
                what = "the embedding" if nearest == 0 else f"the output of layer {nearest - 1}"
                what = what if close(part, states[nearest].to(part.device)) else "the output of no layer"
                return Finding(
                    FAIL,
                    f"in {view}, the feature of tap {tap} is {what}, not hidden_states[{tap + 1}]",
                    "a tap counts decoder layers from 0 and is that layer's output; check target.taps and the model's "
                    "layers",
                )
    if subject.folder is not None:
        ids = _layer_ids(layout.drafter_of(subject.folder) / "config.json")
        if ids != list(target.taps):
            return Finding(FAIL, *_other_ids(ids, list(target.taps)))
    names = ", ".join(str(t) for t in target.taps)
    return Finding(OK, f"taps {names} of {count} layers are hidden_states[id + 1], in training and in decoding")


def _layer_ids(path: Path) -> object:
    stored = read_json(path)
    part = stored.get("dflash_config") if isinstance(stored, dict) else None
    return part.get("target_layer_ids") if isinstance(part, dict) else None


def _other_ids(ids: object, taps: list[int]) -> tuple[str, str]:
    """What is wrong with a drafter's ``target_layer_ids``, and the fix."""
    if isinstance(ids, list) and ids == [t + 1 for t in taps]:
        return (
            f"target_layer_ids {ids} are one higher than the taps {taps}: counted as SGLang and vLLM do internally",
            f'in config.json write "target_layer_ids": {taps}',
        )
    if isinstance(ids, list) and ids == [t - 1 for t in taps]:
        return (
            f"target_layer_ids {ids} are one lower than the taps {taps}",
            f'in config.json write "target_layer_ids": {taps}',
        )
    return f"target_layer_ids {ids} are not the taps {taps}", f"target.taps={ids}, if the drafter was trained on those"


@torch.no_grad()
def head(subject: Subject) -> Finding:
    """Embedding and head are the target's own and frozen, the drafter has neither, and in a tied target they are one
    matrix.

    An untied head that was not saved is random (SpecForge#473, #455).
    """
    target, drafter = subject.target(), subject.drafter()
    rows, table = target.model.get_output_embeddings().weight, target.model.get_input_embeddings().weight
    trainable = [n for n, p in target.model.named_parameters() if p.requires_grad]
    if trainable:
        return Finding(
            FAIL, f"{trainable[0]} of the target would be trained", "freeze the target: requires_grad_(False)"
        )
    own = [
        n
        for n, x in drafter.state_dict().items()
        if "embed_tokens" in n or "lm_head" in n or (x.shape == table.shape and not n.startswith("embed_proj"))
    ]
    if own:
        return Finding(FAIL, f"the drafter has {own[0]} of its own", "remove it: embedding and head are the target's")
    hidden = torch.randn(1, drafter.slots, target.hidden_size, generator=torch.Generator().manual_seed(0))
    hidden = hidden.to(rows.device, rows.dtype)
    previous = torch.zeros(1, drafter.slots, dtype=torch.long, device=target.device)
    expected = target.model.get_output_embeddings()(hidden)[..., : target.chat.vocab]
    expected = structure.after_head(target.model.config)(expected.to(target.device))
    drafted = drafter.logits(target, hidden, previous)["base"] if drafter.base_is_head else expected
    if not torch.equal(target.head(hidden), expected) or not torch.equal(drafted, expected):
        return Finding(FAIL, "the base branch drafts through another head than the target's", "use Target.head")
    tied = bool(getattr(target.model.config.get_text_config(decoder=True), "tie_word_embeddings", False))
    shared = rows.data_ptr() == table.data_ptr() or torch.equal(rows.to(table.device), table)
    if tied and not shared:
        return Finding(
            FAIL,
            "the target says tie_word_embeddings, but head and embedding differ: the head may be random",
            "load it with a transformers that ties them, or set tie_word_embeddings to false if lm_head was saved",
        )
    if not tied and not shared and _head_missing(target):
        return Finding(
            FAIL,
            "tie_word_embeddings is false and no file of the target holds lm_head.weight: the head is random",
            "set tie_word_embeddings to true in the target's config.json, or get the missing weights",
        )
    kind = "one matrix with the embedding" if shared else "apart from the embedding"
    return Finding(OK, f"the target's own, frozen, {kind}; the drafter has neither embedding nor head")


def _head_missing(target: Target) -> bool:
    """True when the target's weights are in a local folder and contain no head (``False`` if that cannot be
    determined)."""
    files = sorted(Path(target.config.path).glob("*.safetensors")) if target.config.path is not None else []
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as content:
                names |= set(content.keys())
        except (OSError, SafetensorError):
            return False
    return bool(files) and not any("lm_head" in n or "output" in n for n in names)


def mask_row(subject: Subject) -> Finding:
    """The embedding row of the mask token is finite, not zero, and has a usual norm (sglang#27924: a zero row)."""
    target = subject.target()
    table, chat = target.model.get_input_embeddings().weight, target.chat
    norms = table[: chat.vocab].norm(dim=1, dtype=torch.float32)
    own, usual = float(table[chat.mask_id].float().norm()), float(norms.median())
    name = f"mask token {target.config.mask_token or 'of no text'!r} (id {chat.mask_id})"
    other = "another target.mask_token: one with a trained or initialised row"
    if not own or own != own or own == float("inf"):
        return Finding(FAIL, f"the embedding row of {name} has norm {own:g}", other)
    if not 0.2 <= own / usual <= 5:
        return Finding(WARN, f"the embedding row of {name} has norm {own:.3g}, the median row {usual:.3g}", other)
    return Finding(OK, f"{name} has norm {own:.3g}, the median row {usual:.3g}")


@torch.no_grad()
def vocabulary(subject: Subject) -> Finding:
    """Every token of the tokenizer has a row in embedding and head; padding rows are cut off (vllm#46435)."""
    target = subject.target()
    model, chat = target.model, target.chat
    rows = min(model.get_output_embeddings().weight.shape[0], model.get_input_embeddings().weight.shape[0])
    every, last = len(chat.tokenizer), max(chat.tokenizer.get_vocab().values())
    length = chat.vocab if chat.vocab == rows < every else every  # without special tokens that have no row
    if length > rows or last >= max(rows, every):
        return Finding(
            FAIL,
            f"the tokenizer has {max(every, last + 1):,} tokens, the target {rows:,} rows: ids from {rows} on have "
            "none",
            "use the tokenizer that belongs to the target, or resize the target's embedding",
        )
    weight = model.get_output_embeddings().weight
    cut = target.head(weight.new_zeros(1, target.hidden_size)).shape[-1]
    if cut != length:
        return Finding(
            FAIL,
            f"{cut:,} logits for {length:,} tokens: padding rows could be drafted, or some tokens never",
            "cut the head to the tokenizer's length",
        )
    if last >= every:
        return Finding(
            WARN,
            f"the tokenizer has {length:,} tokens but ids up to {last}: those from {length} on are never drafted",
            "use a tokenizer without gaps in its ids, if those tokens occur in your data",
        )
    padded = f", {rows - length:,} of them padding that is cut off" if rows > length else ""
    left = f"; {every - length} special tokens of the tokenizer have none and are left out" if every > length else ""
    return Finding(OK, f"{length:,} tokens, {rows:,} rows{padded}{left}")
