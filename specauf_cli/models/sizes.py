"""Sizes of a target and its drafter, computed without their weights."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from specauf_cli.config import names
from specauf_cli.config.schema import BackboneConfig, PretrainConfig, SizesConfig, TargetConfig
from specauf_cli.errors import InputError, first_line


def of_model(config: Any) -> SizesConfig:
    """The sizes in a Hugging Face configuration."""
    return SizesConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def of_recipe(recipe: PretrainConfig) -> SizesConfig:
    """The sizes of a target that is trained here, with the vocabulary size of its recipe."""
    return SizesConfig(
        recipe.hidden_size,
        recipe.intermediate_size,
        recipe.layers,
        recipe.heads,
        recipe.kv_heads,
        recipe.head_dim,
        recipe.vocab_size,
        tied=True,
    )


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


def layer_parameters(sizes: SizesConfig) -> int:
    """Weights of one decoder layer's matrices: attention and gated MLP (without norms and biases, a few thousand)."""
    attention = 2 * sizes.hidden_size * sizes.head_dim * (sizes.heads + sizes.kv_heads)
    return attention + 3 * sizes.hidden_size * sizes.intermediate_size


def target_parameters(sizes: SizesConfig) -> int:
    """Weights of a target: layers, embedding and, if it is not tied, head."""
    return sizes.layers * layer_parameters(sizes) + (2 - sizes.tied) * sizes.vocab_size * sizes.hidden_size


def qwen3(sizes: SizesConfig, **more: Any) -> Qwen3Config:
    """The Qwen3 architecture in these sizes; ``more`` are further keys of its configuration."""
    return Qwen3Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        tie_word_embeddings=sizes.tied,
        **more,
    )


def draft_layer(sizes: SizesConfig, backbone: BackboneConfig, **more: Any) -> Qwen3Config:
    """Sizes of a draft layer: the target's own, as the public DFlash recipe does, with ``backbone.layers`` layers."""
    return qwen3(replace(sizes, layers=backbone.layers, tied=False), **more)


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
    """A Qwen3 causal LM of these sizes with random weights, for timing only."""
    with torch.device(device):
        model: nn.Module = Qwen3ForCausalLM(qwen3(sizes, max_position_embeddings=context)).to(dtype)
    return model
