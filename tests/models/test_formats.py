"""Layouts of others: bit-exact round trips, what two independent readers see, and one line for whatever does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Config

from hub import publish
from public_reader import block_logits
from specauf_cli.compose import compose
from specauf_cli.data.chat import MASK, Chat
from specauf_cli.models import checkpoint, formats
from specauf_cli.models import target as targets
from specauf_cli.models.blocks import previous_tokens
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.domino import Domino
from specauf_cli.models.target import Target
from specauf_cli.schema import InputError
from specauf_cli.settings import BackboneConfig

MakeTarget = Callable[..., Target]
DOMINO = partial(Domino, gru_hidden_dim=6, emb_dim=5, pure_draft_prefix_len=1)
BACKBONES = pytest.mark.parametrize("name", ["dflash", "domino"])


@pytest.fixture
def of(backbone: BackboneConfig) -> Callable[..., BackboneConfig]:
    def make(name: str, **changes: Any) -> BackboneConfig:
        own = {"model": DOMINO, "title": "Domino"} if name == "domino" else {}
        return replace(backbone, name=name, **(own | changes))

    return make


@pytest.fixture
def exported(tmp_path: Path, target: Target, of: Callable[..., BackboneConfig]) -> Callable[..., tuple[Path, DFlash]]:
    """A drafter saved as a run's and written for others: the folder, and the drafter itself."""

    def make(name: str = "dflash", layout: str = "hf", dtype: str = "fp32", **changes: Any) -> tuple[Path, DFlash]:
        made = checkpoint.create(target, of(name, **changes))
        made.initialise(5)
        checkpoint.save(made, target, tmp_path / name / "drafter", run="a")
        out = tmp_path / f"{name}-{layout}-{dtype}"
        formats.write(tmp_path / name / "drafter", out, layout=layout, dtype=dtype, verifier="ORG/NAME")
        return out, made.eval()

    return make


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rename(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def sequence() -> Tensor:
    return torch.randint(4, 300, (32,), generator=torch.Generator().manual_seed(0))


def final_logits(drafter: DFlash, target: Target, tokens: Tensor, anchor: int) -> Tensor:
    """Logits ``[K, V]`` of the branch that drafts, for one block of ``tokens`` ``[1, T]``, with gold tokens before each slot."""
    anchors = torch.tensor([[anchor]])
    hidden = drafter.hidden(target, drafter.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
    previous = previous_tokens(tokens, anchors, drafter.slots)
    return drafter.logits(target, hidden.flatten(0, 1), previous.flatten(0, 1))[drafter.branches[-1]][0]


@pytest.mark.parametrize(("name", "layout"), [("dflash", "hf"), ("domino", "hf"), ("dflash", "vllm")])
def test_a_round_trip_is_bit_exact(exported: Any, of: Any, target: Target, name: str, layout: str) -> None:
    folder, original = exported(name, layout)
    found = formats.read(folder)
    assert (found.backbone, found.layout, found.block_size, found.layers, found.taps) == (name, layout, 8, 2, (0, 1, 2))
    made, copies = formats.drafter(found, target, of(name))
    assert copies == []
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
def test_bf16_is_rounded_once(exported: Any, of: Any, target: Target, tmp_path: Path, name: str) -> None:
    folder, original = exported(name, dtype="bf16")
    made, _ = formats.drafter(formats.read(folder), target, of(name))
    assert torch.equal(made.fc.weight, original.fc.weight.bfloat16().float())
    checkpoint.save(made, target, tmp_path / "again" / "drafter", run="b")
    formats.write(tmp_path / "again" / "drafter", tmp_path / "out", layout="hf", dtype="bf16")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()


@BACKBONES
def test_what_is_written_is_what_public_loaders_read_and_nothing_else(exported: Any, name: str) -> None:
    folder, _ = exported(name, layers=5)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    tensors = load_file(folder / "model.safetensors")
    correction = {"prefix_gru.weight_ih_l0", "prefix_gru.weight_hh_l0", "embed_proj.0.weight", "embed_proj.2.weight"}
    assert len(set(tensors) - correction) == 58
    assert set(tensors) & correction == (correction if name == "domino" else set())
    config = json.loads((folder / "config.json").read_text())
    own = {"emb_dim"} if name == "domino" else set()
    assert set(config) == own | {
        "architectures", "model_type", "block_size", "dflash_config", "num_target_layers", "num_hidden_layers", "hidden_size",
        "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "layer_types",
        "sliding_window", "max_position_embeddings", "rope_theta", "rope_scaling", "rms_norm_eps", "vocab_size",
        "tie_word_embeddings", "attention_bias", "dtype",
    }  # fmt: skip
    assert config["layer_types"] == ["full_attention"] * 5
    if name == "domino":
        expected = {"projector_type": "domino", "shift_label": True, "pure_draft_prefix_len": 1, "emb_dim": 5}
        assert config["dflash_config"].items() >= (expected | {"gru_hidden_dim": 6}).items()
        assert config["emb_dim"] == 5


@BACKBONES
def test_an_independent_reader_sees_the_same_logits(exported: Any, target: Target, name: str) -> None:
    folder, drafter = exported(name)
    tokens = sequence()
    for anchor in (1, 9, 20):
        ours = final_logits(drafter, target, tokens[None], anchor)
        theirs = block_logits(folder, target.model, tokens, anchor)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@BACKBONES
def test_the_scaled_rotary_embedding_of_a_llama_target_is_what_readers_find(
    of: Any, chat: Chat, tmp_path: Path, name: str
) -> None:
    """Llama 3.1's, with factors small enough that a few dozen positions tell them from none."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    rope = scaling | {"rope_theta": 5e5}
    place = publish(tmp_path / "target", chat, "llama", tied=False, rope_parameters=rope)
    config = replace(
        compose(["target=hf", f"target.path={place}", "target.taps=3"]).target, dtype="fp32", mask_token=MASK
    )
    target = targets.load(config, device="cpu")
    drafter = checkpoint.create(target, of(name)).eval()
    drafter.initialise(5)
    checkpoint.save(drafter, target, tmp_path / "run" / "drafter", run="a")
    for layout in ("hf",) if name == "domino" else formats.LAYOUTS:
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


@BACKBONES
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
    assert formats.read(folder).verifier == "ORG/NAME"


def test_domino_has_no_speculators_layout(exported: Any) -> None:
    with pytest.raises(InputError, match=r"--format vllm: .* Domino"):
        exported("domino", "vllm")


@pytest.mark.parametrize(("layout", "dtype"), [("hf2", "fp32"), ("hf", "fp8")])
def test_another_layout_or_dtype_is_refused(exported: Any, layout: str, dtype: str) -> None:
    with pytest.raises(InputError, match="valid formats hf, vllm; dtypes fp32, bf16"):
        exported("dflash", layout, dtype)


def test_an_altered_drafter_is_not_written(exported: Any, tmp_path: Path) -> None:
    exported()
    rename(tmp_path / "dflash" / "drafter", lambda t: t | {"norm.weight": t["norm.weight"] + 1})
    with pytest.raises(InputError, match="altered or damaged"):
        formats.write(tmp_path / "dflash" / "drafter", tmp_path / "x", layout="hf", dtype="fp32")


@BACKBONES
def test_prefixes_and_shards_are_accepted(exported: Any, of: Any, target: Target, name: str) -> None:
    folder, original = exported(name)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = ("prefix_gru", "embed_proj")
    named = {f"{'logit_head.' if k.startswith(head) else 'model.'}{k}": v for k, v in tensors.items()}
    parts = dict(list(named.items())[:9]), dict(list(named.items())[9:])
    for i, part in enumerate(parts):
        save_file(part, folder / f"model-{i}.safetensors")
    save_file({"exp_avg": torch.zeros(3)}, folder / "optimizer.safetensors")
    index = {k: f"model-{i}.safetensors" for i, part in enumerate(parts) for k in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    made, _ = formats.drafter(formats.read(folder), target, of(name))
    assert all(torch.equal(made.state_dict()[k], v) for k, v in original.state_dict().items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "norm.weight"}, r"missing norm\.weight"),
        (lambda t: t | {"extra.weight": torch.zeros(3)}, r"unknown extra\.weight"),
        (lambda t: t | {"fc.weight": torch.zeros(32, 32)}, r"misshapen fc\.weight \[32, 32\] instead of \[32, 96\]"),
        (
            lambda t: {k.replace("hidden_norm", "hiden_norm"): v for k, v in t.items()},
            r"missing hidden_norm\.weight; unknown hiden_norm\.weight\. Did you mean 'hidden_norm\.weight'",
        ),
        (lambda t: {k: v for k, v in t.items() if "layers.1" not in k}, r"missing layers\.1\..* and 7 more"),
        (lambda t: t | {"norm.weight": torch.full((32,), torch.nan)}, r"norm\.weight has values that are not finite"),
        (lambda t: t | {"norm.weight": torch.ones(32, dtype=torch.int8)}, r"norm\.weight is torch\.int8; valid"),
        (lambda t: t | {"model.norm.weight": torch.ones(32)}, r"norm\.weight is there twice"),
        (lambda t: t | {"lm_head.weight": torch.ones(320, 32)}, r"lm_head\.weight is not that of target tiny"),
    ],
)
def test_other_tensors_are_named(exported: Any, of: Any, target: Target, change: Any, problem: str) -> None:
    folder, _ = exported()
    rename(folder, change)
    with pytest.raises(InputError, match=problem) as caught:
        formats.drafter(formats.read(folder), target, of("dflash"))
    assert "\n" not in str(caught.value)


def test_copies_of_the_targets_own_tensors_are_left_out(exported: Any, of: Any, target: Target) -> None:
    folder, _ = exported(layout="vllm", dtype="bf16")
    own = target.model.get_input_embeddings().weight.detach().bfloat16()
    rename(folder, lambda t: t | {"embed_tokens.weight": own.clone(), "lm_head.weight": own.clone()})
    made, copies = formats.drafter(formats.read(folder), target, of("dflash"))
    assert sorted(copies) == ["embed_tokens.weight", "lm_head.weight"]
    assert len(made.state_dict()) == 3 + 11 * 2


@pytest.mark.parametrize(
    ("layout", "change", "problem"),
    [
        ("hf", lambda c: c.pop("dflash_config"), "is no drafter's"),
        ("hf", lambda c: c.pop("rope_theta"), "'rope_theta' is missing"),
        ("hf", lambda c: c.update(architectures=["LlamaForCausalLM"]), "valid are DFlashDraftModel"),
        ("hf", lambda c: c["dflash_config"].update(projector_type="markov"), "projector_type 'markov'"),
        ("hf", lambda c: c["dflash_config"].update(shift_label=True), "shift_label must be false for DFlash"),
        ("hf", lambda c: c["dflash_config"].update(projector_type="domino"), "shift_label must be true for Domino"),
        ("hf", lambda c: c["dflash_config"].update(target_layer_ids=[2, 1, 0]), "ascending order"),
        ("hf", lambda c: c["dflash_config"].update(target_layer_ids=[]), "ascending order"),
        ("hf", lambda c: c.update(block_size="8"), "block_size='8' must be a whole number"),
        ("hf", lambda c: c.update(layer_types=["sliding_attention", "full_attention"]), "sliding_attention"),
        ("hf", lambda c: c.update(attention_bias=True), "attention_bias=true"),
        ("hf", lambda c: c.update(hidden_act="gelu"), "hidden_act='gelu'"),
        ("vllm", lambda c: c.update(speculators_model_type="eagle3"), "'eagle3' is none .*; valid: dflash"),
        ("vllm", lambda c: c.update(draft_vocab_size=100), "draft_vocab_size=100 cannot be read here; valid: 320"),
        ("vllm", lambda c: c.update(sample_from_anchor=True), "sample_from_anchor=True"),
        ("vllm", lambda c: c.update(aux_hidden_state_layer_ids=[0, 1]), "hidden state 0, the embedding"),
        ("vllm", lambda c: c.update(transformer_layer_config=None), "not a drafter's configuration"),
    ],
)
def test_a_foreign_configuration_is_refused(exported: Any, layout: str, change: Any, problem: str) -> None:
    folder, _ = exported(layout=layout)
    edit(folder, change)
    with pytest.raises(InputError, match=problem):
        formats.read(folder)


@pytest.mark.parametrize(
    ("layout", "change", "problem"),
    [
        ("hf", lambda c: c["dflash_config"].update(target_layer_ids=[0, 1, 3]), r"taps layer 3 of 0\.\.3; target_layer_ids count decoder layers from 0"),
        ("vllm", lambda c: c.update(aux_hidden_state_layer_ids=[1, 2, 4]), r"taps layer 3 of 0\.\.3; aux_hidden_state_layer_ids count hidden states"),
        ("hf", lambda c: c.update(num_target_layers=36), "its num_target_layers is 36, the target's 4"),
        ("hf", lambda c: c.update(hidden_size=64), "its hidden_size is 64, the target's 32"),
        ("hf", lambda c: c.update(rope_theta=5e5), "its rope is .*500000"),
        ("hf", lambda c: c.update(rope_scaling={"type": "yarn", "factor": 4.0}), "its rope is .*yarn"),
        ("hf", lambda c: c["dflash_config"].update(mask_token_id=7), r"mask token id 7, .*; give target\.mask_token=7"),
    ],
)  # fmt: skip
def test_another_target_is_refused(
    exported: Any, of: Any, target: Target, layout: str, change: Any, problem: str
) -> None:
    folder, _ = exported(layout=layout)
    edit(folder, change)
    with pytest.raises(InputError, match=problem):
        formats.drafter(formats.read(folder), target, of("dflash"))


def test_all_spellings_of_a_rotary_embedding_mean_the_same(exported: Any) -> None:
    folder, _ = exported()
    plain = formats.read(folder).sizes["rope"]
    edit(folder, lambda c: c.update(rope_parameters={"rope_theta": c.pop("rope_theta"), "rope_type": "default"}))
    assert formats.read(folder).sizes["rope"] == plain
    edit(
        folder,
        lambda c: (c.pop("rope_parameters"), c.update(rope_theta=10_000, rope_scaling={"type": "linear", "factor": 2})),
    )
    assert formats.read(folder).sizes["rope"] == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2}


def test_a_scaled_rotary_embedding_of_the_target_is_written(target: Target, of: Any, tmp_path: Path) -> None:
    drafter = checkpoint.create(target, of("dflash"))
    drafter.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    assert checkpoint.public_config(drafter, target)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_sizes_of_the_correction_may_stand_at_the_top(exported: Any) -> None:
    folder, _ = exported("domino")
    edit(folder, lambda c: (c["dflash_config"].pop("emb_dim"), c["dflash_config"].pop("pure_draft_prefix_len")))
    assert formats.read(folder).knobs == {"gru_hidden_dim": 6, "emb_dim": 5, "pure_draft_prefix_len": 0}


def test_keys_that_mean_nothing_here_are_named(exported: Any) -> None:
    folder, _ = exported()
    edit(folder, lambda c: c["dflash_config"].update(temperature=1))
    assert formats.read(folder).ignored == ("dflash_config.temperature",)


def test_only_safetensors_are_read(exported: Any, of: Any, target: Target) -> None:
    folder, _ = exported()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no \*\.safetensors"):
        formats.drafter(formats.read(folder), target, of("dflash"))


def test_a_hub_id_is_fetched_without_pickles(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = exported()
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    asked: dict[str, Any] = {}

    def fetch(repository: str, **words: Any) -> str:
        asked.update(words, repository=repository)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert formats.locate("ORG/NAME", "v1") == formats.Located(snapshot, "ORG/NAME", "0123abc")
    assert (asked["repository"], asked["revision"]) == ("ORG/NAME", "v1")
    assert asked["allow_patterns"] == ["config.json", "*.safetensors", "*.safetensors.index.json"]


@pytest.mark.parametrize(
    ("source", "revision", "problem"),
    [
        ("nowhere", None, "'nowhere' is neither a folder nor a hub id"),
        ("./no/where", None, "neither a folder nor a hub id"),
        ("ORG/NAME", "v1", "ORG/NAME at v1 cannot be fetched from the hub"),  # tests are offline
        (".", "v1", r"--revision v1: \. is a local folder"),
    ],
)
def test_a_source_that_gives_nothing_is_one_line(source: str, revision: str | None, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        formats.locate(source, revision)
    assert "\n" not in str(caught.value)
