"""Drafters on disk, in the public Hugging Face layout: ``config.json`` and ``model.safetensors``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specauf_cli.config import names
from specauf_cli.config.schema import BackboneConfig
from specauf_cli.errors import InputError
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks, sharding
from specauf_cli.store.files import atomic, file_sha256, read_json, write_json


def create(target: Target, backbone: BackboneConfig) -> DFlash:
    """A drafter for ``target`` with uninitialised weights. Errors: InputError for sizes that cannot work."""
    kind = names.backbone(backbone)
    sizes = target.draft_config(backbone)
    drafter: DFlash = kind(sizes, backbone, len(target.taps), target.chat.mask_id, **backbone.knobs)
    return drafter.to(target.device)


def save(drafter: DFlash, target: Target, folder: Path, *, run: str) -> None:
    """Writes weights under the public tensor names and the public configuration keys: the first rank does, and all must
    call it where draft layers are spread over them.

    Also writes which target and ``run`` it belongs to, and the hash of the weights.
    """
    tensors = {k: sharding.whole(v).contiguous() for k, v in drafter.state_dict().items()}
    if not ranks.FIRST:
        return
    weights = folder / "model.safetensors"
    with atomic(weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    config = public_config(drafter, target)
    config["specauf"] |= {"run": run, "weights": file_sha256(weights)}
    write_json(folder / "config.json", config)


def public_config(drafter: DFlash, target: Target) -> dict[str, Any]:
    """The keys that public loaders read (names and meaning as in the published checkpoints)."""
    sizes, own = drafter.config, drafter.public(target.taps)
    return {
        "architectures": [drafter.architecture],
        "model_type": "qwen3",
        "block_size": drafter.backbone.block_size,
        "dflash_config": {"mask_token_id": drafter.mask_id, "target_layer_ids": list(target.taps), **own.inside},
        **own.beside,
        "num_target_layers": target.depth,
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
        "rope_scaling": _rope_scaling(sizes.rope_parameters),
        "rms_norm_eps": sizes.rms_norm_eps,
        "vocab_size": sizes.vocab_size,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "dtype": "float32",
        "specauf": {
            "target": target.config.name,
            "target_fingerprint": target.fingerprint,
            "target_architectures": [type(target.model).__name__],
        },
    }


def _rope_scaling(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Keys that public loaders need besides ``rope_theta`` for a scaled rotary embedding (Llama 3, YaRN)."""
    scaling = {k: v for k, v in parameters.items() if k != "rope_theta"}
    return None if scaling.get("rope_type", "default") == "default" else scaling


def load(folder: Path, target: Target, backbone: BackboneConfig, *, run: str | None = None) -> DFlash:
    """The drafter in ``folder``, which must belong to ``target`` and, if given, to ``run``.

    Errors: InputError when it was trained for another target, block size, depth or set of tapped layers, or in another
    run, or when the files are missing, damaged or altered.
    """
    stored = read_json(folder / "config.json")
    weights = folder / "model.safetensors"
    try:
        expected = {
            "target": (stored["specauf"]["target_fingerprint"], target.fingerprint),
            "architecture": (stored["architectures"], [names.backbone(backbone).architecture]),
            "block size": (stored["block_size"], backbone.block_size),
            "tapped layers": (stored["dflash_config"]["target_layer_ids"], list(target.taps)),
            "number of draft layers": (stored["num_hidden_layers"], backbone.layers),
            "hidden size": (stored["hidden_size"], target.hidden_size),
            "mask token id": (stored["dflash_config"]["mask_token_id"], target.chat.mask_id),
            "run": (stored["specauf"].get("run"), run or stored["specauf"].get("run")),
        }
        saved = stored["specauf"]["weights"] if run else stored["specauf"].get("weights")
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / 'config.json'} is not a drafter's configuration: {reason}") from error
    for what, (theirs, ours) in expected.items():
        if theirs != ours:
            raise InputError(f"drafter {folder} does not match: its {what} is {theirs}, here it is {ours}")
    drafter = create(target, backbone)
    try:
        if saved is not None and saved != file_sha256(weights):
            raise InputError(f"{weights} cannot be read: it is not what was saved, but altered or damaged")
        drafter.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        raise InputError(f"{weights} cannot be read: {' '.join(str(error).split())}") from error
    return drafter.to(target.device).eval()
