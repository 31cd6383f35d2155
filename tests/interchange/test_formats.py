"""Layouts of others, written: bit-exact round trips and what two independent readers see."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config

from helpers.drafters import EXPORTED, every_exported, every_layered
from helpers.hub import edit, publish, rename
from helpers.public_reader import block_logits
from specauf_cli.config.compose import compose
from specauf_cli.data.chat import MASK, Chat
from specauf_cli.errors import InputError
from specauf_cli.interchange import formats
from specauf_cli.models import checkpoint
from specauf_cli.models import target as targets
from specauf_cli.models.blocks import previous_tokens
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target

MakeTarget = Callable[..., Target]
TargetOf = Callable[[str], Target]
BACKBONES = every_exported


DSPARK_KEYS = {
    "mask_token_id",
    "target_layer_ids",
    "markov_rank",
    "markov_head_type",
    "enable_confidence_head",
    "confidence_head_with_markov",
}
"""What DeepSpec's configuration of a drafter has beside DFlash's keys."""


def sequence() -> Tensor:
    return torch.randint(4, 300, (32,), generator=torch.Generator().manual_seed(0))


def final_logits(drafter: DFlash, target: Target, tokens: Tensor, anchor: int) -> Tensor:
    """Logits ``[K, V]`` of the branch that drafts, for one block of ``tokens`` ``[1, T]``, with gold tokens before each
    slot."""
    anchors = torch.tensor([[anchor]])
    hidden = drafter.hidden(target, drafter.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
    previous = previous_tokens(tokens, anchors, drafter.slots)
    return drafter.logits(target, hidden.flatten(0, 1), previous.flatten(0, 1))[drafter.branches[-1]][0]


@pytest.mark.parametrize(("name", "layout"), [(name, x) for name, layouts in EXPORTED.items() for x in layouts])
def test_a_round_trip_is_bit_exact(exported: Any, of: Any, target_of: TargetOf, name: str, layout: str) -> None:
    folder, original = exported(name, layout)
    found, target = formats.read(folder), target_of(name)
    reads = (1, "last") if name == "medusa" else (2, (0, 1, 2))
    assert (found.backbone, found.layout, found.block_size, found.layers, found.taps) == (name, layout, 8, *reads)
    made, copies = formats.drafter(found, target, of(name))
    assert copies == (["lm_head.weight"] if name == "medusa" else [])
    assert not made.training
    for key, tensor in original.state_dict().items():
        assert torch.equal(made.state_dict()[key], tensor), key
        assert made.state_dict()[key].dtype == torch.float32
    tokens, anchors = sequence()[None], torch.tensor([[0, 7, 20]])
    drafts = [
        d.draft(target, d.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
        for d in (made, original)
    ]
    assert torch.equal(*drafts)


@BACKBONES
def test_bf16_is_rounded_once(exported: Any, of: Any, target_of: TargetOf, tmp_path: Path, name: str) -> None:
    folder, original = exported(name, dtype="bf16")
    target, layout = target_of(name), EXPORTED[name][0]
    made, _ = formats.drafter(formats.read(folder), target, of(name))
    for key, tensor in original.state_dict().items():
        assert torch.equal(made.state_dict()[key], tensor.bfloat16().float()), key
    checkpoint.save(made, target, tmp_path / "again" / "drafter", run="b")
    head = formats.own_head(target)
    formats.write(tmp_path / "again" / "drafter", tmp_path / "out", layout=layout, dtype="bf16", head=head)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()


@every_layered
def test_what_is_written_is_what_public_loaders_read_and_nothing_else(exported: Any, name: str) -> None:
    folder, _ = exported(name, layers=5)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    tensors = load_file(folder / "model.safetensors")
    parts = {
        "dflash": set[str](),
        "domino": {"prefix_gru.weight_ih_l0", "prefix_gru.weight_hh_l0", "embed_proj.0.weight", "embed_proj.2.weight"},
        "dspark": {
            "markov_head.markov_w1.weight",
            "markov_head.markov_w2.weight",
            "confidence_head.proj.weight",
            "confidence_head.proj.bias",
        },
    }
    assert parts[name] <= set(tensors)
    assert len(set(tensors) - parts[name]) == 58
    config = json.loads((folder / "config.json").read_text())
    own = {"dflash": set[str](), "domino": {"emb_dim"}, "dspark": DSPARK_KEYS}[name]
    assert set(config) == own | {
        "architectures",
        "model_type",
        "block_size",
        "dflash_config",
        "num_target_layers",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "layer_types",
        "sliding_window",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "vocab_size",
        "tie_word_embeddings",
        "attention_bias",
        "dtype",
    }
    assert config["layer_types"] == ["full_attention"] * 5
    if name == "domino":
        expected = {"projector_type": "domino", "shift_label": True, "pure_draft_prefix_len": 1, "emb_dim": 5}
        assert config["dflash_config"].items() >= (expected | {"gru_hidden_dim": 6}).items()
        assert config["emb_dim"] == 5


def test_medusa_heads_are_written_as_vllm_reads_them(exported: Any, target: Target) -> None:
    folder, _ = exported("medusa")
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == {"lm_head.weight", *(f"blocks.{i}.layers.0.weight" for i in range(7))}
    assert torch.equal(tensors["lm_head.weight"], target.model.get_output_embeddings().weight)
    assert json.loads((folder / "config.json").read_text()) == {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": 32,
        "vocab_size": 320,
        "truncated_vocab_size": 320,
        "num_heads": 7,
        "num_hidden_layers": 1,
        "medusa_fc_bias": False,
        "original_lm_head": True,
        "dtype": "float32",
    }


@BACKBONES
def test_an_independent_reader_sees_the_same_logits(exported: Any, target_of: TargetOf, name: str) -> None:
    folder, drafter = exported(name)
    tokens, target = sequence(), target_of(name)
    for anchor in (1, 9, 20):
        ours = final_logits(drafter, target, tokens[None], anchor)
        theirs = block_logits(folder, target.model, tokens, anchor)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@every_layered
def test_the_scaled_rotary_embedding_of_a_llama_target_is_what_readers_find(
    of: Any, chat: Chat, tmp_path: Path, name: str
) -> None:
    """Llama 3.1's, with factors small enough that a few dozen positions tell them from none."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    rope = scaling | {"rope_theta": 5e5}
    place = publish(tmp_path / "target", chat, "llama", tied=False, rope_parameters=rope)
    config = replace(
        compose(["target=hf", f"target.path={place}", "target.taps=3"]).target, dtype="fp32", mask_token=MASK
    )
    target = targets.load(config, device="cpu")
    drafter = checkpoint.create(target, of(name)).eval()
    drafter.initialise(5)
    checkpoint.save(drafter, target, tmp_path / "run" / "drafter", run="a")
    for layout in formats.LAYOUTS if name == "dflash" else ("hf",):
        out = tmp_path / layout
        formats.write(tmp_path / "run" / "drafter", out, layout=layout, dtype="fp32", verifier="ORG/NAME")
        stored = json.loads((out / "config.json").read_text())
        inner = stored.get("transformer_layer_config", stored)
        assert Qwen3Config(**inner).rope_parameters == rope
        back, _ = formats.drafter(formats.read(out), target, of(name))
        assert torch.equal(back.rotary.inv_freq, target.model.model.rotary_emb.inv_freq)
        assert all(torch.equal(x, back.state_dict()[k]) for k, x in drafter.state_dict().items())
    tokens = sequence()
    ours = final_logits(drafter, target, tokens[None], 20).detach()
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))
    close(ours, block_logits(tmp_path / "hf", target.model, tokens, 20))
    edit(tmp_path / "hf", lambda c: c.update(rope_scaling=None))
    with pytest.raises(AssertionError):
        close(ours, block_logits(tmp_path / "hf", target.model, tokens, 20))


def test_the_independent_reader_tells_one_layer_from_the_next(exported: Any, target: Target) -> None:
    folder, drafter = exported()
    edit(folder, lambda c: c["dflash_config"].update(target_layer_ids=[1, 2, 3]))
    ours, theirs = (
        final_logits(drafter, target, sequence()[None], 9),
        block_logits(folder, target.model, sequence(), 9),
    )
    assert not torch.allclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("layout", formats.LAYOUTS)
def test_the_speculators_package_sees_the_same_logits(
    exported: Any, target: Target, tmp_path: Path, layout: str
) -> None:
    """Of both layouts: the public one goes through its own converter, so its counting of layers is checked too."""
    pytest.importorskip("speculators", reason="pip install .[peers]")
    from speculators.convert.dflash import DFlashConverter
    from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig

    target.model.save_pretrained(tmp_path / "target")
    folder, drafter = exported("dflash", layout)
    if layout == "hf":
        DFlashConverter().convert(folder, tmp_path / "converted", str(tmp_path / "target"), validate=False)
        folder = tmp_path / "converted"
    else:
        edit(folder, lambda c: c["speculators_config"]["verifier"].update(name_or_path=str(tmp_path / "target")))
    config = DFlashSpeculatorConfig.from_pretrained(folder)
    assert config.sliding_window_non_causal or layout == "hf", (
        "a block is not causal; its own converter writes the default"
    )
    config.transformer_layer_config._attn_implementation = "eager"  # the default is compiled, for GPUs
    peer = DFlashDraftModel.from_pretrained(folder, config=config).eval()
    tokens = sequence()[None]
    with torch.no_grad():
        states = target.model(tokens, output_hidden_states=True).hidden_states
        features = torch.cat([states[i] for i in config.aux_hidden_state_layer_ids], dim=-1)
        ones = torch.ones_like(tokens)
        _, logits, _, _, places = peer._backbone_forward(features, tokens, ones, states[-1], ones * 0, max_anchors=3)
        anchors = places.view(3, 8)[:, 0][None]
        hidden = drafter.hidden(target, drafter.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
        ours = drafter.logits(target, hidden[0], tokens[:0])["base"]
    theirs = logits.view(3, 8, -1)[:, 1:]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("layout", formats.LAYOUTS)
def test_vllm_runs_the_block_without_a_causal_mask(exported: Any, layout: str) -> None:
    """By its own reader of configurations, and its own rule of what a layer of the drafter sees."""
    pytest.importorskip("vllm", reason="an environment of its own: its pins conflict with ours")
    from vllm.model_executor.models.qwen3_dflash import dflash_has_any_non_causal
    from vllm.transformers_utils.config import get_config

    folder, _ = exported(layout=layout)
    config = get_config(str(folder), trust_remote_code=False)
    assert config.dflash_config["target_layer_ids"] == [0, 1, 2]
    assert not config.dflash_config.get("causal", False)
    assert dflash_has_any_non_causal(config)
    edit(folder, lambda c: c.update(sliding_window_non_causal=False))
    causal = not dflash_has_any_non_causal(get_config(str(folder), trust_remote_code=False))
    assert causal == (layout == "vllm"), "the key alone decides in the speculators layout"


def test_vllm_finds_every_medusa_head(exported: Any) -> None:
    """By its own reader of configurations; it has no number of attention heads to take for that of the heads."""
    pytest.importorskip("vllm", reason="an environment of its own: its pins conflict with ours")
    from vllm.transformers_utils.config import get_config

    config = get_config(str(exported("medusa")[0]), trust_remote_code=False)
    assert (config.num_heads, config.num_hidden_layers, config.vocab_size, config.truncated_vocab_size) == (
        *(7, 1),
        *(320, 320),
    )
    assert config.original_lm_head


@pytest.mark.parametrize("name", ["dflash", "domino"])
def test_the_specforge_package_sees_the_same_logits(exported: Any, target: Target, name: str) -> None:
    """Its wheel pins torch, so it is no extra: pip install --no-deps specforge, and what it then asks for."""
    specforge = pytest.importorskip("specforge.modeling.draft", exc_type=ImportError)
    folder, drafter = exported(name)
    kind = specforge.DominoDraftModel if name == "domino" else specforge.DFlashDraftModel
    peer = kind.from_pretrained(folder, attn_implementation="eager").eval()
    tokens, anchor, embed, head = sequence()[None], 9, target.model.get_input_embeddings(), target.model.lm_head
    with torch.no_grad():
        states = target.model(tokens, output_hidden_states=True).hidden_states
        features = specforge.extract_context_feature(states, peer.target_layer_ids)[:, :anchor]
        block = torch.full((1, 8), peer.mask_token_id)
        block[0, 0] = tokens[0, anchor]
        places = torch.arange(anchor + 8)[None]
        out = peer(position_ids=places, noise_embedding=embed(block), target_hidden=features)[:, drafter.first :]
        gold = embed(tokens[:, anchor : anchor + drafter.slots])[:, None]
        theirs = peer.apply_logits_head(head(out)[:, None], prev_token_embeddings=gold, hidden_states=out[:, None])[0]
        ours = final_logits(drafter, target, tokens, anchor)
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_the_speculators_layout_names_hidden_states_and_its_target(exported: Any) -> None:
    folder, _ = exported(layout="vllm")
    config = json.loads((folder / "config.json").read_text())
    assert (config["speculators_model_type"], config["block_size"], config["draft_vocab_size"]) == ("dflash", 8, 320)
    assert config["aux_hidden_state_layer_ids"] == [1, 2, 3], "hidden state 0 is the embedding"
    assert config["speculators_config"]["verifier"] == {"name_or_path": "ORG/NAME", "architectures": []}
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 7
    assert config["transformer_layer_config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert config["sliding_window_non_causal"] is True, "vLLM reads false as a causal block"
    assert formats.read(folder).verifier == "ORG/NAME"


@pytest.mark.parametrize(
    ("name", "layout", "says"),
    [
        ("domino", "vllm", "Domino"),
        ("dspark", "vllm", "DSpark .* --format hf"),
        ("medusa", "hf", "Medusa .* --format vllm"),
    ],
)
def test_a_layout_that_a_drafter_does_not_have_is_refused(exported: Any, name: str, layout: str, says: str) -> None:
    with pytest.raises(InputError, match=rf"--format {layout}: .* {says}"):
        exported(name, layout)


@pytest.mark.parametrize("layout", formats.LAYOUTS)
@pytest.mark.parametrize("taps", [(0, 1, 2), (2,)])
def test_medusa_heads_on_tapped_layers_have_no_layout(
    make_target: MakeTarget, of: Any, tmp_path: Path, layout: str, taps: tuple[int, ...]
) -> None:
    target = make_target(taps=taps)
    drafter = checkpoint.create(target, of("medusa"))
    drafter.initialise(5)
    checkpoint.save(drafter, target, tmp_path / "drafter", run="a")
    with pytest.raises(
        InputError, match=r"layers (0, 1, )?2, and .* last hidden state; train one with target.taps=last"
    ):
        formats.write(tmp_path / "drafter", tmp_path / "x", layout=layout, dtype="fp32")


def test_a_head_with_a_bias_is_not_written(target: Target) -> None:
    biased = copy.deepcopy(target)
    biased.model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(320))
    with pytest.raises(InputError, match="the head of target tiny has a bias"):
        formats.own_head(biased)


@pytest.mark.parametrize(("layout", "dtype"), [("hf2", "fp32"), ("hf", "fp8")])
def test_another_layout_or_dtype_is_refused(exported: Any, layout: str, dtype: str) -> None:
    with pytest.raises(InputError, match="valid formats hf, vllm; dtypes fp32, bf16"):
        exported("dflash", layout, dtype)


def test_an_altered_drafter_is_not_written(exported: Any, tmp_path: Path) -> None:
    exported()
    rename(tmp_path / "dflash" / "drafter", lambda t: t | {"norm.weight": t["norm.weight"] + 1})
    with pytest.raises(InputError, match="altered or damaged"):
        formats.write(tmp_path / "dflash" / "drafter", tmp_path / "x", layout="hf", dtype="fp32")
