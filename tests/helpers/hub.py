"""Tiny checkpoints as the hub holds them, for tests of several files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.published import divided
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
# As Gemma 3's: a system message opens the first user turn, turns alternate, texts are stripped.
GEMMA3_STYLE = (
    "{{- bos_token -}}{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for m in (messages[1:] if first else messages) -%}{%- if (m.role == 'assistant') != (loop.index0 % 2 == 1) -%}"
    "{{ raise_exception('turns must alternate') }}{%- endif -%}{{ '<|im_start|>' + ('model' if m.role == 'assistant' "
    "else 'user') + '\\n' + (first if loop.first else '') + m.content | trim + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>model\\n' }}{%- endif -%}"
)
# As Mistral's: no generation prompt, turns alternate, a system message opens the last message if that is the user's.
MISTRAL_STYLE = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else none -%}{{- bos_token -}}"
    "{%- for m in (messages if system is none else messages[1:]) -%}"
    "{%- if (m.role == 'assistant') != (loop.index0 % 2 == 1) -%}{{ raise_exception('turns must alternate') }}"
    "{%- endif -%}{%- if m.role == 'user' -%}{{ '[INST] ' + (system + '\\n\\n' if loop.last and system is not none "
    "else '') + m.content + '[/INST]' }}{%- else -%}{{ ' ' + m.content | trim + eos_token }}{%- endif -%}{%- endfor -%}"
)
# As OLMo 2's: the end of a turn has no line break behind it in the last one.
OLMO2_STYLE = (
    "{{- bos_token -}}{%- for m in messages -%}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "{%- if m.role != 'assistant' -%}{{ '\\n' }}{%- else -%}{{ eos_token + ('' if loop.last else '\\n') }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
# As gpt-oss's: the day in front, an answer in a channel that the generation prompt leaves open, another end in the last
# answer than in earlier ones.
HARMONY_STYLE = (
    "{{- '<|im_start|>system<|message|>Date: ' + strftime_now('%Y-%m-%d') + '<|im_end|>' -}}{%- for m in messages -%}"
    "{%- if m.role != 'assistant' -%}{{ '<|im_start|>' + m.role + '<|message|>' + m.content + '<|im_end|>' }}"
    "{%- else -%}{{ '<|im_start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last and "
    "not add_generation_prompt else '<|im_end|>') }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant' }}{%- endif -%}"
)
KINDS: dict[str, Any] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


@dataclass(frozen=True)
class Format:
    """A kind of chat template, with the special tokens that its tokenizer has beside those of the tests' ChatML."""

    template: str
    added: tuple[str, ...] = ()
    """in the order of their ids"""
    eos: str = END
    ends: tuple[str, ...] = (END,)
    """as ``eos_token_id`` of the generation config names them; one: an id, not a list"""


FORMATS = {
    "qwen3": Format(QWEN3_STYLE, ends=(END, PAD)),
    "qwen3_moe": Format(QWEN3_STYLE, ends=(END, PAD)),
    "llama": Format(LLAMA3_STYLE, ("<|eom_id|>", "<|reserved_special_token_0|>"), ends=(PAD, "<|eom_id|>", END)),
    "gemma3": Format(GEMMA3_STYLE, ("<eos>", "<unused0>", "<image_soft_token>"), "<eos>", ("<eos>", END)),
    "gemma3_text": Format(GEMMA3_STYLE, ("<eos>", "<unused0>", "<image_soft_token>"), "<eos>", ("<eos>", END)),
    "mistral": Format(MISTRAL_STYLE, ("</s>", "[INST]", "[/INST]", "[control_8]"), "</s>", ("</s>",)),
    "olmo2": Format(OLMO2_STYLE, ("<|pad|>",), PAD, (PAD,)),
    "gpt_oss": Format(
        HARMONY_STYLE,
        ("<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|reserved_200000|>"),
        "<|return|>",
        ("<|return|>", PAD, "<|call|>"),
    ),
}


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
    tokenizer_of(chat, Format(FORMATS[kind].template)).save_pretrained(folder)
    return folder


def tokenizer_of(chat: Chat, kind: Format) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with the special tokens, the template and the end of turn of a format."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(chat.tokenizer.backend_tokenizer.to_str()),
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(kind.added)})
    tokenizer.eos_token = kind.eos
    if "bos_token" in kind.template:
        tokenizer.bos_token = PAD
    tokenizer.chat_template = kind.template
    return tokenizer


def publish_like(folder: Path, chat: Chat, published: Mapping[str, Any], *, padding: int) -> Path:
    """A small untrained model as a public one is given: its ``config.json`` with the sizes divided, in the public keys,
    weights of the same class in as many layers, MXFP4 experts where it has them, as many end tokens.

    ``padding``: as in ``publish``; below 0: special tokens without a row, the last ones.
    """
    form = FORMATS[published["model_type"]]
    tokenizer = tokenizer_of(chat, form)
    ids = [tokenizer.convert_tokens_to_ids(t) for t in form.ends]
    named = {
        "eos_token_id": ids if len(ids) > 1 else ids[0],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
    }
    config = divided(dict(published), len(tokenizer) + padding, named)
    plain = {k: v for k, v in config.items() if k not in ("quantization_config", "architectures", "model_type")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain), dtype=torch.bfloat16)
    assert [type(model).__name__] == config["architectures"]
    model.save_pretrained(folder, max_shard_size="100KB")
    if "quantization_config" in config:
        pack(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(named))
    tokenizer.save_pretrained(folder)
    return folder


def pack(folder: Path) -> None:
    """Replaces the weights of the experts in ``folder`` by random ones in MXFP4: two values a byte, a scale for 32."""
    places = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(places["weight_map"].values())):
        held = load_file(folder / file)
        for name in [n for n in held if n.endswith(("gate_up_proj", "down_proj"))]:
            experts, inner, outer = held.pop(name).shape
            shape = (experts, outer, inner // 32)
            held[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            held[f"{name}_scales"] = torch.randint(120, 123, shape, dtype=torch.uint8)
            del places["weight_map"][name]
            places["weight_map"] |= {f"{name}_blocks": file, f"{name}_scales": file}
        save_file(held, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rename(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    held = change(load_file(folder / "model.safetensors"))
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
