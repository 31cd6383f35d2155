"""Where a causal language model of transformers keeps what a drafter needs, and what it does before and after its
layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from specauf_cli.errors import InputError

NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
"""Names under which configurations keep the epsilon of their norms."""

RECURRENT = ("mamba", "mamba2", "rwkv", "falcon_mamba", "recurrent_gemma", "falcon_h1")
"""Model types whose configuration names no kinds of layers, but which carry a state from token to token."""


def text_config(config: Any) -> Any:
    """The configuration of the language model, where a model reads pictures too."""
    return config.get_text_config(decoder=True)


@dataclass(frozen=True)
class AfterHead:
    """What a model does to the product with its head: logits = cap(scale x product), cap(x) = c tanh(x / c)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Float[Tensor, "*X V"]) -> Float[Tensor, "*X V"]:
        """The logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def after_head(config: Any) -> AfterHead:
    """As the configuration says: ``logit_scale`` (Cohere), ``logits_scaling`` (Granite), ``final_logit_softcapping``
    (Gemma)."""
    text = text_config(config)
    scale = getattr(text, "logit_scale", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    return AfterHead(scale / divisor, getattr(text, "final_logit_softcapping", None))


def embedding_factor(config: Any) -> float:
    """What a model multiplies its embeddings by outside of the embedding module (Granite); Gemma's module does it
    itself."""
    return float(getattr(text_config(config), "embedding_multiplier", None) or 1.0)


def decoder(model: Any) -> Any:
    """The module that turns token ids into the last hidden state."""
    return model.get_decoder()


def layers(model: Any) -> nn.ModuleList:
    """The decoder layers: the one list in the decoder that is as long as the configuration says.

    Errors: InputError for a model without such a list.
    """
    count = text_config(model.config).num_hidden_layers
    lists = [m for m in decoder(model).children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise InputError(
            f"target of type {model.config.model_type!r} has no list of its {count} decoder layers, and a drafter "
            "reads the outputs of some of them; choose a target that is one stack of layers"
        )
    return lists[0]


def final_norm(model: Any) -> Any:
    """The norm after the last layer, by the names that transformers gives it; None where it has none of them."""
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
    return next((n for name in names if (n := getattr(decoder(model), name, None)) is not None), None)


def norm_eps(config: Any) -> float:
    """The epsilon of a model's norms: draft layers take it over."""
    text = text_config(config)
    return float(next((v for n in NORM_EPS if (v := getattr(text, n, None)) is not None), 1e-6))


def rope(config: Any) -> dict[str, Any]:
    """The rotary embedding of a draft layer: that of the target's layers with full attention, over the whole head.

    Without any (learnt positions, as in GPT-2): base 10,000.
    """
    given: Mapping[str, Any] = getattr(text_config(config), "rope_parameters", None) or {}
    if isinstance(given.get("full_attention"), Mapping):  # Gemma 3 turns its layers with a window by another base
        given = given["full_attention"]
    kept = {k: v for k, v in given.items() if k != "partial_rotary_factor"}
    return {"rope_type": "default", "rope_theta": 10_000.0} | kept


def check_cache(config: Any) -> None:
    """InputError for a target whose cache cannot be rolled back after a rejected draft.

    Recurrent layers (linear attention, state space) fold tokens into one state, so neither live decoding nor replay
    would be lossless. Layers with a sliding window can serve: their keys are all kept here, and masked.
    """
    text = text_config(config)
    stated = set(getattr(text, "layer_types", None) or [])
    kinds = stated - {"full_attention", "sliding_attention"}
    if not stated:  # then the cache that transformers would build shows it
        built = {type(x).__name__ for x in DynamicCache(config=config).layers}
        kinds = built - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    if kinds or config.model_type in RECURRENT:
        raise InputError(
            f"target of type {config.model_type!r} has {', '.join(sorted(kinds)) or 'recurrent'} layers, whose cache "
            "cannot be rolled back after a rejected draft; choose a target with full or sliding attention in every "
            "layer"
        )


def check_parts(model: Any) -> None:
    """InputError for a model without a head of its own, its layers in one list, or a known longest context."""
    layers(model)
    kind = model.config.model_type
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise InputError(f"target of type {kind!r} has no linear output head, which a drafter shares; choose another")
    if getattr(text_config(model.config), "max_position_embeddings", None) is None:
        raise InputError(f"target of type {kind!r} does not say its longest context (max_position_embeddings)")
