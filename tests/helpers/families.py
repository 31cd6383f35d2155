"""Untrained models of many types, small: what transformers calls a causal language model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from specauf_cli.config.schema import SizesConfig, TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.models.sizes import architecture
from specauf_cli.models.target import Target

WINDOW = 8
"""Shorter than the sequences that these models read."""
HALF = ("sliding_attention", "full_attention", "sliding_attention", "full_attention")

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mistral, window": ("mistral", {"sliding_window": WINDOW, "tie_word_embeddings": False}),
    "gemma": ("gemma", {}),
    "gemma2, soft-capped": (
        "gemma2",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5, "layer_types": HALF},
    ),
    "gemma3": ("gemma3_text", {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": HALF}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "gpt_oss": (
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW, "layer_types": HALF},
    ),
    "granite": ("granite", {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.5}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "gpt2": ("gpt2", {}),
}
"""The type of the model, and keys of its configuration beside the sizes."""


def of_family(name: str, chat: Chat, config: TargetConfig) -> Target:
    """A target of four layers and 32 dimensions whose greedy output is varied: large random weights."""
    kind, knobs = FAMILIES[name]
    sizes = SizesConfig(
        hidden_size=32,
        intermediate_size=64,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab_size=chat.vocab,
        tied=True,
    )
    common = {"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": chat.eos_id}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        architecture(kind, sizes, knobs, **common, pad_token_id=chat.pad_id), dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "head" not in name:
                parameter.mul_(25.0)
    return Target(made, chat, config, name)
