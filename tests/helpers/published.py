"""The public ``config.json`` of every real target in ``conf/target``, as far as it says sizes, layers and end tokens.

Read from copies in public repositories and on the hub's own pages (of OLMo 2 7B: the base model's). Keys are left out
as they are there (Gemma 3 4B and 12B name few), and have the names of the transformers that wrote them.
"""

from __future__ import annotations

from typing import Any

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}
LLAMA3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "vision_config": VISION,
}
HALF = ["sliding_attention", "full_attention"]

PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen3_0_6b": QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "tie_word_embeddings": True,
    },
    "qwen3_1_7b": QWEN3
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "tie_word_embeddings": True,
    },
    "qwen3_4b": QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "tie_word_embeddings": True,
    },
    "qwen3_8b": QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36},
    "qwen3_14b": QWEN3
    | {"hidden_size": 5120, "intermediate_size": 17408, "num_attention_heads": 40, "num_hidden_layers": 40},
    "qwen3_32b": QWEN3
    | {"hidden_size": 5120, "intermediate_size": 25600, "num_attention_heads": 64, "num_hidden_layers": 64},
    "qwen3_30b_a3b": QWEN3
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
    },
    "llama3_1_8b": LLAMA3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rope_scaling": LLAMA3["rope_scaling"] | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
    "llama3_2_1b": LLAMA3
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
    },
    "llama3_2_3b": LLAMA3
    | {
        "head_dim": 128,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
    },
    "gemma3_1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "gemma3_4b": GEMMA3
    | {
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        }
    },
    "gemma3_12b": GEMMA3
    | {
        "text_config": {
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "model_type": "gemma3_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        }
    },
    "mistral_7b": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 32768,
    },
    "olmo2_7b": {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "attention_bias": False,
        "eos_token_id": 100257,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 100277,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "vocab_size": 100352,
    },
    "gpt_oss_20b": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": True,
        "eos_token_id": [200002, 199999, 200012],
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "intermediate_size": 2880,
        "layer_types": HALF * 12,
        "max_position_embeddings": 131072,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
    },
}
"""End tokens (``eos_token_id``) are those of ``generation_config.json`` where that names more of them."""

BILLIONS = {
    "qwen3_0_6b": 0.596,
    "qwen3_1_7b": 1.72,
    "qwen3_4b": 4.02,
    "qwen3_8b": 8.19,
    "qwen3_14b": 14.8,
    "qwen3_32b": 32.8,
    "qwen3_30b_a3b": 30.5,
    "llama3_1_8b": 8.03,
    "llama3_2_1b": 1.23,
    "llama3_2_3b": 3.21,
    "gemma3_1b": 0.99989,
    "gemma3_4b": 3.8801,
    "gemma3_12b": 11.766,
    "mistral_7b": 7.25,
    "olmo2_7b": 7.30,
    "gpt_oss_20b": 20.9,
}
"""Parameters by the model cards; of Gemma 3 those of the language model, by KerasHub's presets."""

ACTIVE = {"qwen3_30b_a3b": 3.3, "gpt_oss_20b": 3.6}
"""Billions of parameters that a token passes, by the model cards. That of gpt-oss does not count the embedding."""


def divided(published: dict[str, Any], vocab_size: int, ids: dict[str, Any]) -> dict[str, Any]:
    """``published`` with every size divided: as many layers of the same kinds, as many heads to a key head, a few
    experts, windows shorter than a sequence of the tests.

    ``ids``: the ids of special tokens, for the keys that it has.
    """
    if "text_config" not in published:
        return _small(published, vocab_size, ids)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    pictures = ("boi_token_index", "eoi_token_index", "image_token_index")
    return (
        published
        | {k: v for k, v in ids.items() if k in published}
        | {
            "text_config": _small(published["text_config"], vocab_size, {}),
            "vision_config": VISION | vision | {"image_size": 28},
            "mm_tokens_per_image": 4,
        }
        | dict.fromkeys(pictures, vocab_size - 1)
    )


def _small(text: dict[str, Any], vocab_size: int, ids: dict[str, Any]) -> dict[str, Any]:
    heads, kv_heads = text.get("num_attention_heads", 8), text.get("num_key_value_heads", 4)
    few = 4 if heads == kv_heads else 2
    smaller = {
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "experts_per_token": 2,
        "head_dim": 8,
    }
    given = {k: v for k, v in (smaller | ids).items() if text.get(k) is not None}
    if text["model_type"] == "gemma3_text":  # whose default is 256, whatever its width
        given["head_dim"] = 8
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 8 * few * heads // kv_heads,
        "intermediate_size": 64,
        "num_attention_heads": few * heads // kv_heads,
        "num_key_value_heads": few,
    }
    return text | given | sizes
