"""A second reader of public checkpoints, for tests: the rule of the published loaders in plain tensor operations.

It knows ``config.json`` and ``model.safetensors`` and the target's own transformers model, and nothing of this package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def frequencies(config: dict[str, Any]) -> Tensor:
    """Turns per position, from ``rope_theta`` and ``rope_scaling``: none, or Llama 3's, which slows what turns
    slowly."""
    half, scaling = config["head_dim"] // 2, config["rope_scaling"]
    plain = config["rope_theta"] ** (-torch.arange(half).float() / half)
    if scaling is None:
        return plain
    assert scaling["rope_type"] == "llama3"
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling["factor"]


def rotate(x: Tensor, positions: Tensor, per_position: Tensor) -> Tensor:
    """Rotary embedding of ``[heads, T, D]`` at ``positions``, halves turned against each other."""
    half, angles = x.shape[-1] // 2, positions[:, None].float() * per_position
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


@torch.no_grad()
def block_logits(folder: Path, model: Any, tokens: Tensor, anchor: int) -> Tensor:
    """Logits ``[slots, V]`` of the block anchored at ``anchor`` of ``tokens`` ``[T]``, what drafts from it: DFlash
    without the anchor's position, Domino and DSpark with the gold tokens before each slot, Medusa's heads as vLLM runs
    them, from the state that chose the anchor."""
    config, w = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    if config["model_type"] == "medusa":
        state = model.model(tokens[None]).last_hidden_state[0, anchor - 1]
        logits = []
        for i in range(config["num_heads"]):
            hidden = state
            for j in range(config["num_hidden_layers"]):
                hidden = hidden + torch.nn.functional.silu(w[f"blocks.{i}.layers.{j}.weight"] @ hidden)
            logits.append(w["lm_head.weight" if config["original_lm_head"] else f"lm_heads.{i}.weight"] @ hidden)
        return torch.stack(logits)
    special, size, eps = config["dflash_config"], config["block_size"], config["rms_norm_eps"]
    heads, shared, dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight

    # index 0 of hidden_states is the embedding's output, so layer i's output stands at i + 1
    states = model(tokens[None], output_hidden_states=True).hidden_states
    features = torch.cat([states[i + 1][0, :anchor] for i in special["target_layer_ids"]], dim=-1)
    context = norm(features @ w["fc.weight"].T, w["hidden_norm.weight"], eps)
    ids = torch.full((size,), special["mask_token_id"])
    ids[0] = tokens[anchor]
    hidden, places = embed[ids], torch.arange(anchor + size)
    for i in range(config["num_hidden_layers"]):
        part = {k.removeprefix(f"layers.{i}."): v for k, v in w.items() if k.startswith(f"layers.{i}.")}

        def project(name: str, x: Tensor, count: int, part: dict[str, Tensor] = part) -> Tensor:
            return (x @ part[f"self_attn.{name}_proj.weight"].T).view(len(x), count, dim).transpose(0, 1)

        x = norm(hidden, part["input_layernorm.weight"], eps)
        seen = torch.cat([context, x])
        q = norm(project("q", x, heads), part["self_attn.q_norm.weight"], eps)
        k = norm(project("k", seen, shared), part["self_attn.k_norm.weight"], eps)
        q, k = rotate(q, places[anchor:], frequencies(config)), rotate(k, places, frequencies(config))
        k, v = (y.repeat_interleave(heads // shared, dim=0) for y in (k, project("v", seen, shared)))
        mixed = (q @ k.transpose(1, 2) / dim**0.5).softmax(-1) @ v
        hidden = hidden + mixed.transpose(0, 1).reshape(size, -1) @ part["self_attn.o_proj.weight"].T
        x = norm(hidden, part["post_attention_layernorm.weight"], eps)
        gate, up = (x @ part[f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ part["mlp.down_proj.weight"].T
    hidden = norm(hidden, w["norm.weight"], eps)
    if "markov_rank" in config:
        before = w["markov_head.markov_w1.weight"][tokens[anchor : anchor + size]]
        return hidden @ head.T + before @ w["markov_head.markov_w2.weight"].T
    if special.get("projector_type") != "domino":
        return hidden[1:] @ head.T
    logits, state = hidden @ head.T, torch.zeros(special["gru_hidden_dim"])
    for slot in range(size):
        r, z, n = (w["prefix_gru.weight_ih_l0"] @ embed[tokens[anchor + slot]]).chunk(3)
        r_, z_, n_ = (w["prefix_gru.weight_hh_l0"] @ state).chunk(3)
        update = torch.sigmoid(z + z_)
        state = (1 - update) * torch.tanh(n + torch.sigmoid(r + r_) * n_) + update * state
        if slot >= special["pure_draft_prefix_len"]:
            inner = torch.nn.functional.silu(w["embed_proj.0.weight"] @ torch.cat([hidden[slot], state]))
            logits[slot] = logits[slot] + w["embed_proj.2.weight"] @ inner
    return logits
