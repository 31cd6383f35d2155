"""Sizes of a target and its drafter, computed without their weights."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from specauf_cli.config import names
from specauf_cli.config.schema import BackboneConfig, PretrainConfig, SizesConfig, TargetConfig
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.models.structure import text_config

UNGATED = ("gpt_neox", "gpt2", "gptj", "gpt_bigcode", "opt", "phi", "starcoder2", "falcon", "bloom", "mpt")
"""Model types whose MLP has two matrices; that of all others has a gate, three."""


def of_model(config: Any) -> SizesConfig:
    """The sizes in a Hugging Face configuration."""
    text = text_config(config)
    experts = _first(text, "num_experts", "num_local_experts", "n_routed_experts") or 0
    inner = _first(text, "intermediate_size", "n_inner", "ffn_hidden_size") or 4 * text.hidden_size
    return SizesConfig(
        hidden_size=text.hidden_size,
        intermediate_size=inner,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
        gated=text.model_type not in UNGATED,
        experts=experts,
        experts_per_token=(_first(text, "num_experts_per_tok", "experts_per_token") or 1) if experts else 0,
        expert_size=(_first(text, "moe_intermediate_size") or inner) if experts else 0,
    )


def _first(config: Any, *names: str) -> int | None:
    """The first of these that a configuration has."""
    return next((v for n in names if (v := getattr(config, n, None)) is not None), None)


def of_recipe(recipe: PretrainConfig) -> SizesConfig:
    """The sizes of a target that is trained here, with the vocabulary size of its recipe. Errors: as
    ``recipe_config``."""
    return of_model(recipe_config(recipe))


def recipe_config(recipe: PretrainConfig, **more: Any) -> Any:
    """The configuration of a target that is trained here; ``more`` are further keys, or others.

    Errors: InputError for a key of ``recipe.more`` that the architecture's configuration does not have.
    """
    sizes = SizesConfig(
        recipe.hidden_size,
        recipe.intermediate_size,
        recipe.layers,
        recipe.heads,
        recipe.kv_heads,
        recipe.head_dim,
        recipe.vocab_size,
        tied=True,
    )
    return architecture(recipe.architecture, sizes, recipe.more, **more)


def of(target: TargetConfig, *, local: bool = False) -> SizesConfig:
    """The sizes of a target before it is loaded: from its yaml, its recipe, or its ``config.json`` (in a folder or on
    the hub).

    ``local``: use only hub files that are already on this machine. Errors: InputError when no source can be read.
    """
    if target.path is None and target.pretrain is not None:
        return of_recipe(target.pretrain)
    if target.sizes is not None:
        return target.sizes
    try:
        config = AutoConfig.from_pretrained(
            target.path,
            revision=target.revision,
            trust_remote_code=target.trust_remote_code,
            local_files_only=local,
        )
        return of_model(config)
    except Exception as error:  # any error of transformers in a foreign folder
        raise InputError(f"the sizes of target {target.path!r} cannot be read: {first_line(error)}") from error


def check(target: TargetConfig, real: SizesConfig) -> None:
    """Errors: InputError when the sizes stated in the yaml of ``target`` differ from those of the loaded model."""
    assert target.sizes is not None
    ours, theirs = asdict(target.sizes), asdict(real)
    other = [f"{k} is {theirs[k]}, not {ours[k]}" for k in ours if ours[k] != theirs[k]]
    if other:
        raise InputError(
            f"target {target.path!r} does not have the sizes of target={target.name}: {'; '.join(other)}; for another "
            "model use target=hf target.path=DIR"
        )


def layer_parameters(sizes: SizesConfig, *, active: bool = False) -> int:
    """Weights of one decoder layer's matrices: attention, MLP and router (without norms and biases, a few thousand).

    ``active``: only those that a token is multiplied with, of a mixture of experts.
    """
    attention = 2 * sizes.hidden_size * sizes.head_dim * (sizes.heads + sizes.kv_heads)
    matrices = 2 + sizes.gated
    if not sizes.experts:
        return attention + matrices * sizes.hidden_size * sizes.intermediate_size
    used = sizes.experts_per_token if active else sizes.experts
    return attention + sizes.hidden_size * (sizes.experts + matrices * used * sizes.expert_size)


def target_parameters(sizes: SizesConfig, *, active: bool = False) -> int:
    """Weights of a target: layers, embedding and, if it is not tied, head. ``active``: as in ``layer_parameters``."""
    rows = (2 - sizes.tied) * sizes.vocab_size * sizes.hidden_size
    return sizes.layers * layer_parameters(sizes, active=active) + rows


def architecture(kind: str, sizes: SizesConfig, knobs: Mapping[str, Any], **more: Any) -> Any:
    """The configuration of a model of the type ``kind`` in these sizes.

    ``knobs`` are keys that this type of model alone has; ``more`` are set wherever the type has them.
    Errors: InputError for a knob that it does not have.
    """
    known = AutoConfig.for_model(kind).to_dict()
    for name in knobs:
        if name not in known:
            raise InputError(
                f"target.pretrain.more.{name}: the configuration of a {kind} has no such key.{nearest(name, known)}"
            )
    values = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "tie_word_embeddings": sizes.tied,
        **more,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in knobs.items()},
    }
    optional = {
        "intermediate_size": sizes.intermediate_size,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
    }
    values |= {k: v for k, v in optional.items() if k in known}
    rope = known.get("rope_parameters") or {}
    if isinstance(rope.get("full_attention"), Mapping) and "rope_parameters" in values:  # one for each kind of layer
        values["rope_parameters"] = dict.fromkeys(rope, values["rope_parameters"])
    return AutoConfig.for_model(kind, **values)


def qwen3(sizes: SizesConfig, **more: Any) -> Qwen3Config:
    """The Qwen3 architecture in these sizes; ``more`` are further keys of its configuration."""
    config = architecture("qwen3", sizes, {}, **more)
    assert isinstance(config, Qwen3Config)
    return config


def draft_sizes(sizes: SizesConfig, backbone: BackboneConfig) -> SizesConfig:
    """Sizes of a draft layer: the target's own, as the public DFlash recipe does, with ``backbone.layers`` layers; one
    gated MLP, whatever the target has."""
    return replace(sizes, layers=backbone.layers, tied=False, gated=True, experts=0)


def draft_layer(sizes: SizesConfig, backbone: BackboneConfig, **more: Any) -> Qwen3Config:
    """``draft_sizes`` as a configuration."""
    return qwen3(draft_sizes(sizes, backbone), **more)


def drafter_parameters(sizes: SizesConfig, backbone: BackboneConfig, taps: int) -> dict[str, int]:
    """Trainable weights of the drafter by part (``fc``, ``layers``, ...), counted on the module without allocating
    it."""
    with torch.device("meta"):
        drafter = names.backbone(backbone)(draft_layer(sizes, backbone), backbone, taps, 0, **backbone.knobs)
    counts: dict[str, int] = {}
    for name, parameter in drafter.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def random_target(sizes: SizesConfig, context: int, *, dtype: torch.dtype, device: str) -> nn.Module:
    """A Qwen3 causal LM of these sizes with random weights, for timing only; without experts, but as large as those
    that one token passes."""
    if sizes.experts:
        sizes = replace(sizes, intermediate_size=sizes.experts_per_token * sizes.expert_size, experts=0)
    with torch.device(device):
        model: nn.Module = Qwen3ForCausalLM(qwen3(sizes, max_position_embeddings=context)).to(dtype)
    return model
