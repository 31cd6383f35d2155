"""The frozen target: which ones are refused, that taps leave no trace, and that weights are named by content."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BambaConfig,
    FalconMambaConfig,
    Gemma2Config,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    RwkvConfig,
)

from helpers.sequences import ANCHORS, LENGTH, close, sequences
from specauf_cli.config.schema import TargetConfig
from specauf_cli.data.chat import Chat
from specauf_cli.errors import InputError
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.structure import check_cache
from specauf_cli.models.target import Target, check_taps, content_fingerprint

MakeTarget = Callable[..., Target]
MakeDrafter = Callable[..., DFlash]


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(num_hidden_layers=3),
        Qwen3Config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        Qwen2Config(num_hidden_layers=3),
        LlamaConfig(num_hidden_layers=3),
        MistralConfig(num_hidden_layers=3, sliding_window=None),
        MistralConfig(num_hidden_layers=3, sliding_window=64),
        Gemma2Config(num_hidden_layers=3),
        Qwen3Config(num_hidden_layers=2, use_sliding_window=True, max_window_layers=1),
    ],
    ids=lambda c: c.model_type,
)
def test_full_and_sliding_attention_are_accepted(config: Any) -> None:
    check_cache(config)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Qwen3NextConfig(num_hidden_layers=4), "linear_attention"),
        (Qwen3Config(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"]), "linear_attention"),
        (Qwen3Config(num_hidden_layers=1, layer_types=["chunked_attention"]), "chunked_attention"),
        (JambaConfig(), "linear_attention"),
        (BambaConfig(attn_layer_indices=[3]), "linear_attention"),
        (MambaConfig(), "linear_attention|recurrent"),
        (FalconMambaConfig(), "linear_attention|recurrent"),
        (RwkvConfig(), "linear_attention|recurrent"),
    ],
    ids=lambda x: getattr(x, "model_type", x),
)
def test_caches_that_cannot_be_rolled_back_are_refused_in_one_line(config: Any, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        check_cache(config)
    text = str(caught.value)
    assert "\n" not in text
    assert f"target of type {config.model_type!r} has" in text
    assert any(k in text for k in kind.split("|"))
    assert "cannot be rolled back after a rejected draft; choose a target with full or sliding attention" in text


def test_kinds_of_layers_are_named_without_the_harmless_ones() -> None:
    kinds = ["full_attention", "sliding_attention", "linear_attention"]
    with pytest.raises(InputError, match="has linear_attention layers"):
        check_cache(Qwen3Config(num_hidden_layers=3, layer_types=kinds))


def test_a_target_checks_its_cache_when_it_is_made(target: Target) -> None:
    sizes = {k: getattr(target.model.config, k) for k in ("vocab_size", "hidden_size", "intermediate_size")}
    model = Qwen3ForCausalLM(
        Qwen3Config(**sizes, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    )
    model.config.layer_types = ["linear_attention", *["full_attention"] * 3]
    with pytest.raises(InputError, match="linear_attention layers"):
        Target(model, target.chat, target.config, "x")


# --- taps ---


def hooks(target: Target) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return sum(len(getattr(m, k)) for m in target.model.modules() for k in kinds)


@contextmanager
def counted(target: Target) -> Iterator[list[int]]:
    """How often each decoder layer ran."""
    calls = [0] * len(target.model.model.layers)

    def count(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[index] += 1

        return hook

    handles = [layer.register_forward_pre_hook(count(i)) for i, layer in enumerate(target.model.model.layers)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_features_are_the_outputs_of_the_tapped_layers(make_target: MakeTarget, tokens: Tensor) -> None:
    target = make_target(taps=(2, 0))  # given in any order, read in ascending order
    with torch.no_grad():
        states = target.model.model(input_ids=tokens, output_hidden_states=True).hidden_states
    expected = torch.cat([states[1], states[3]], dim=-1)
    torch.testing.assert_close(target.features(tokens), expected)
    _, found = target.forward(tokens, target.new_cache())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("taps", [(0,), (0, 1), (0, 1, 2)])
def test_features_stop_behind_the_last_tap(make_target: MakeTarget, tokens: Tensor, taps: tuple[int, ...]) -> None:
    target = make_target(taps=taps)
    with counted(target) as calls:
        target.features(tokens)
        assert calls == [int(i <= taps[-1]) for i in range(4)]
    with counted(target) as calls:
        target.forward(tokens, target.new_cache())
        assert calls == [1] * 4


def test_no_hook_remains(make_target: MakeTarget, tokens: Tensor) -> None:
    target = make_target(taps=(0, 2))
    before = hooks(target)
    for _ in range(3):
        target.features(tokens)
        assert hooks(target) == before
        target.forward(tokens, target.new_cache())
        assert hooks(target) == before


@pytest.mark.parametrize("broken", [0, 1, 2], ids=["at a tap", "between taps", "at the last tap"])
@pytest.mark.parametrize("call", ["features", "forward"])
def test_no_hook_remains_after_an_exception(make_target: MakeTarget, tokens: Tensor, call: str, broken: int) -> None:
    target = make_target(taps=(0, 2))
    before, expected = hooks(target), target.features(tokens)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = target.model.model.layers[broken].register_forward_pre_hook(fail)
    act = target.features if call == "features" else lambda x: target.forward(x, target.new_cache())
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            act(tokens)
    finally:
        handle.remove()  # the target is shared by all tests
    assert hooks(target) == before
    assert torch.equal(target.features(tokens), expected)


def test_a_target_is_frozen(target: Target, tokens: Tensor) -> None:
    assert not target.model.training
    assert not any(p.requires_grad for p in target.model.parameters())
    assert not target.features(tokens).requires_grad
    assert isinstance(target.model, nn.Module)


# --- fingerprints ---


def folder(path: Path, target: Target, change: Callable[[dict[str, Tensor]], object] = lambda _: None) -> Path:
    path.mkdir()
    weights = copy.deepcopy(target.model.model.state_dict())
    change(weights)
    save_file(weights, path / "model.safetensors")
    target.chat.tokenizer.save_pretrained(path)
    return path


def test_fingerprint_names_the_content_not_the_place(target: Target, tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", target), folder(tmp_path / "two", target)
    (two / "log.jsonl").write_text("{}")
    found = content_fingerprint(one)
    assert len(found) == 16
    assert int(found, 16)
    assert content_fingerprint(two) == found


def test_fingerprint_changes_with_one_weight(target: Target, tmp_path: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["layers.3.mlp.down_proj.weight"][5, 5] += 1e-4

    one, two = folder(tmp_path / "one", target), folder(tmp_path / "two", target, change)
    assert content_fingerprint(one) != content_fingerprint(two)


def test_fingerprint_changes_with_the_tokenizer(target: Target, tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", target), folder(tmp_path / "two", target)
    text = (two / "tokenizer.json").read_text()
    (two / "tokenizer.json").write_text(text.replace('"version"', ' "version"', 1))
    assert content_fingerprint(one) != content_fingerprint(two)


def test_padding_on_the_right_does_not_change_features_before_it(target: Target, tokens: Tensor) -> None:
    padded = torch.cat([tokens, torch.full((2, 9), target.chat.pad_id)], dim=1)
    assert close(target.features(padded)[:, :LENGTH], target.features(tokens))


def test_greedy_labels_are_the_targets_own_choices(target: Target, tokens: Tensor) -> None:
    labels = target.greedy_labels(tokens)
    assert torch.equal(labels[:, 0], tokens[:, 0])
    for t in range(1, LENGTH):
        assert torch.equal(labels[:, t], target.model(tokens[:, :t]).logits[:, -1].argmax(dim=-1))


@pytest.fixture(scope="module")
def padded(chat: Chat, target_config: TargetConfig) -> Target:
    """An untied target whose head has 32 more rows than the tokenizer has tokens, and likes those best."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=chat.vocab + 32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=chat.eos_id,
            pad_token_id=chat.pad_id,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[: chat.vocab] *= 1e-4
        model.lm_head.weight[chat.vocab :] *= 100
    return Target(model, chat, target_config, "padded")


def test_padded_vocabulary_rows_are_never_drafted_nor_emitted(padded: Target, make_drafter: MakeDrafter) -> None:
    drafter, vocab = make_drafter(of=padded), padded.chat.vocab
    tokens = sequences(vocab)
    raw = padded.model(tokens).logits
    assert raw.shape[-1] == vocab + 32
    assert (raw.argmax(dim=-1) >= vocab).float().mean() > 0.9
    anchors = torch.tensor([ANCHORS] * 2)
    context = drafter.context(padded.features(tokens))
    assert drafter.draft(padded, context, tokens.gather(1, anchors), anchors).max() < vocab
    logits, _ = padded.forward(tokens, padded.new_cache())
    assert torch.equal(logits, raw[..., :vocab])
    assert padded.greedy_labels(tokens).max() < vocab
    assert drafter.config.vocab_size == vocab + 32


def test_an_untied_target_uses_its_head_not_its_embedding(padded: Target) -> None:
    hidden = torch.randn(5, 32)
    assert torch.equal(padded.head(hidden), (hidden @ padded.model.lm_head.weight.T)[:, : padded.chat.vocab])
    assert torch.equal(padded.embed(torch.tensor([[3]]))[0, 0], padded.model.model.embed_tokens.weight[3])


@pytest.mark.parametrize(
    ("taps", "problem"),
    [
        ((), "is empty"),
        ((0, 3), r"taps the last layer \(3\)"),
        ((0, 4), "layer 4 is out of range"),
        ((-1, 2), "layer -1 is out of range"),
        ((1, 2, 1), "names a layer twice"),
    ],
)
def test_taps_that_cannot_be_are_refused(make_target: MakeTarget, taps: tuple[int, ...], problem: str) -> None:
    with pytest.raises(InputError, match=rf"target\.taps.*{problem}.*0\.\.2 of a target with 4 layers"):
        make_target(taps=taps)


def test_taps_are_sorted() -> None:
    assert check_taps((33, 1, 9), 36) == (1, 9, 33)


def test_a_mask_token_without_an_embedding_is_refused(chat: Chat, target: Target, target_config: TargetConfig) -> None:
    weight = target.model.get_input_embeddings().weight
    before = weight[chat.mask_id].clone()
    try:
        weight[chat.mask_id] = 0
        with pytest.raises(InputError, match=r"embedding row of mask token '<\|mask\|>' .*is all\s+zero"):
            Target(target.model, chat, target_config, "test")
    finally:
        weight[chat.mask_id] = before
    outside = Chat(chat.tokenizer, chat.vocab + 7)
    with pytest.raises(InputError, match=f"id {chat.vocab + 7}, outside the {chat.vocab} embedding rows"):
        Target(target.model, outside, target_config, "test")
