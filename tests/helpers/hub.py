"""Tiny checkpoints as the hub holds them, for tests of several files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from specauf_cli.data.chat import END, PAD, Chat

# As Qwen3's: behind the last user turn the answer opens with an empty think block, and so does the generation prompt.
QWEN3_STYLE = (
    "{%- set seen = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set seen.last = "
    "loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}{%- if "
    "m.role == 'assistant' and loop.index0 > seen.last and loop.last -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif "
    "-%}{{ m.content + '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' "
    "}}{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif "
    "-%}{%- endif -%}"
)
# As Llama 3's: a date in front of everything, that of the day where none is given.
LLAMA3_STYLE = (
    "{%- if date_string is not defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}"
    "{{ '<|im_start|>system\\nToday: ' + date_string + '<|im_end|>\\n' }}"
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
KINDS: dict[str, Any] = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def publish(folder: Path, chat: Chat, kind: str, *, tied: bool, padding: int = 0, layers: int = 6, **more: Any) -> Path:
    """An untrained causal LM of 32 dimensions in the hub's file layout: sharded safetensors with index, tokenizer,
    template.

    ``padding`` embedding rows more than the tokenizer has entries.
    """
    config_kind, model_kind = KINDS[kind]
    settings: dict[str, Any] = {
        "vocab_size": chat.vocab + padding,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "eos_token_id": chat.eos_id,
        "pad_token_id": chat.pad_id,
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    model = model_kind(config_kind(**settings | more)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="30KB")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat.tokenizer.backend_tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = QWEN3_STYLE if kind == "qwen3" else LLAMA3_STYLE
    tokenizer.save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rename(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    held = change(load_file(folder / "model.safetensors"))
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
