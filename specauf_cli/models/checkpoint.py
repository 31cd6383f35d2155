"""Drafters on disk, in the public Hugging Face layout: ``config.json`` and ``model.safetensors``."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specauf_cli.models.dflash import ATTENTION, DFlash
from specauf_cli.models.target import Target
from specauf_cli.records import atomic, read_json, write_json
from specauf_cli.schema import BackboneConfig, InputError, nearest


def check(backbone: BackboneConfig) -> None:
    """Errors: InputError for sizes that no drafter can have."""
    if backbone.block_size < 2:
        raise InputError(
            f"backbone.block_size={backbone.block_size} is too small; a block is the anchor and at least one slot, so 2 or more"
        )
    slots = backbone.block_size - backbone.drafter.first
    if not 1 <= backbone.proposals <= slots:
        raise InputError(
            f"backbone.proposals={backbone.proposals} is out of range; valid: 1..{slots} at block_size {backbone.block_size}"
        )
    for knob, value in getattr(backbone.model, "keywords", {}).items():
        low, high = (0, slots) if knob == "pure_draft_prefix_len" else (1, math.inf)
        if not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"backbone.model.{knob}={value!r} is out of range; valid: {low}..{high}")
    if backbone.layers < 1:
        raise InputError(f"backbone.layers={backbone.layers} is out of range; a drafter has at least 1 layer")
    if backbone.attention not in ATTENTION:
        raise InputError(
            f"backbone.attention={backbone.attention!r} is none of {', '.join(ATTENTION)}.{nearest(backbone.attention, ATTENTION)}"
        )


def create(target: Target, backbone: BackboneConfig) -> DFlash:
    """A drafter for ``target`` with uninitialised weights. Errors: InputError for sizes that cannot work."""
    check(backbone)
    drafter: DFlash = backbone.model(target.draft_config(backbone), backbone, len(target.taps), target.chat.mask_id)
    return drafter.to(target.device)


def save(drafter: DFlash, target: Target, folder: Path) -> None:
    """Writes weights under the public tensor names and the public configuration keys, plus which target it belongs to."""
    with atomic(folder / "model.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in drafter.state_dict().items()}, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", public_config(drafter, target))


def public_config(drafter: DFlash, target: Target) -> dict[str, Any]:
    """The keys that public DFlash and Domino loaders read (names and meaning as in the published checkpoints)."""
    sizes, special = drafter.config, drafter.public()
    return {
        "architectures": [drafter.architecture],
        "model_type": "qwen3",
        "block_size": drafter.backbone.block_size,
        "dflash_config": {"mask_token_id": drafter.mask_id, "target_layer_ids": list(target.taps), **special},
        **({"emb_dim": special["emb_dim"]} if special else {}),
        "num_target_layers": target.model.config.num_hidden_layers,
        "num_hidden_layers": sizes.num_hidden_layers,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": sizes.hidden_act,
        "layer_types": ["full_attention"] * sizes.num_hidden_layers,
        "sliding_window": None,
        "max_position_embeddings": sizes.max_position_embeddings,
        "rope_theta": sizes.rope_parameters["rope_theta"],
        "rms_norm_eps": sizes.rms_norm_eps,
        "vocab_size": sizes.vocab_size,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "dtype": "float32",
        "specauf": {"target": target.config.name, "target_fingerprint": target.fingerprint},
    }


def load(folder: Path, target: Target, backbone: BackboneConfig) -> DFlash:
    """The drafter in ``folder`` for ``target``.

    Errors: InputError when it was trained for another target, block size, depth or set of tapped layers, or when the
    files are missing or damaged.
    """
    stored = read_json(folder / "config.json")
    try:
        expected = {
            "target": (stored["specauf"]["target_fingerprint"], target.fingerprint),
            "architecture": (stored["architectures"], [backbone.drafter.architecture]),
            "block size": (stored["block_size"], backbone.block_size),
            "tapped layers": (stored["dflash_config"]["target_layer_ids"], list(target.taps)),
            "number of draft layers": (stored["num_hidden_layers"], backbone.layers),
            "hidden size": (stored["hidden_size"], target.hidden_size),
            "mask token id": (stored["dflash_config"]["mask_token_id"], target.chat.mask_id),
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} is not a drafter's configuration: {error} is missing") from error
    for what, (theirs, ours) in expected.items():
        if theirs != ours:
            raise InputError(f"drafter {folder} does not match: its {what} is {theirs}, here it is {ours}")
    drafter = create(target, backbone)
    try:
        drafter.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'model.safetensors'} cannot be read: {' '.join(str(error).split())}") from error
    return drafter.to(target.device).eval()
