"""Layouts of others, read: what is accepted, and one line for whatever does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.drafters import every_exported
from helpers.hub import edit, rename
from specauf_cli.errors import InputError
from specauf_cli.interchange import formats
from specauf_cli.models import checkpoint
from specauf_cli.models.target import Target

BACKBONES = every_exported
WRITTEN = {"hf": ("dflash", "hf"), "vllm": ("dflash", "vllm"), "medusa": ("medusa", "vllm")}
"""A drafter and its layout, by the name that the tests here give them."""


@BACKBONES
def test_prefixes_and_shards_are_accepted(
    exported: Any, of: Any, target_of: Callable[[str], Target], name: str
) -> None:
    folder, original = exported(name)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    prefixes = {"prefix_gru": "logit_head.", "embed_proj": "logit_head.", "blocks": "medusa_heads."}
    named = {f"{prefixes.get(k.split('.')[0], 'model.')}{k}": v for k, v in tensors.items()}
    parts = dict(list(named.items())[:5]), dict(list(named.items())[5:])
    for i, part in enumerate(parts):
        save_file(part, folder / f"model-{i}.safetensors")
    save_file({"exp_avg": torch.zeros(3)}, folder / "optimizer.safetensors")
    index = {k: f"model-{i}.safetensors" for i, part in enumerate(parts) for k in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    made, _ = formats.drafter(formats.read(folder), target_of(name), of(name))
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
        (lambda t: t | {"model.norm.weight": torch.ones(32)}, r"norm\.weight occurs twice"),
        (lambda t: t | {"lm_head.weight": torch.ones(320, 32)}, r"lm_head\.weight is not that of target tiny"),
    ],
)
def test_other_tensors_are_named(exported: Any, of: Any, target: Target, change: Any, problem: str) -> None:
    folder, _ = exported()
    rename(folder, change)
    with pytest.raises(InputError, match=problem) as caught:
        formats.drafter(formats.read(folder), target, of("dflash"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, r"of this medusa: missing lm_head\.weight"),
        (lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1}, r"lm_head\.weight is not that of target tiny"),
        (lambda t: t | {"lm_head.weight": t["lm_head.weight"][:9]}, r"lm_head\.weight is not that of target tiny"),
        (lambda t: t | {"blocks.0.layers.0.bias": torch.zeros(32)}, r"unknown blocks\.0\.layers\.0\.bias"),
        (lambda t: t | {"blocks.7.layers.0.weight": torch.zeros(32, 32)}, r"unknown blocks\.7\.layers\.0\.weight"),
        (lambda t: t | {"token_map": torch.zeros(9, dtype=torch.long)}, "unknown token_map"),
    ],
)
def test_other_medusa_heads_are_named(exported: Any, of: Any, target: Target, change: Any, problem: str) -> None:
    folder, _ = exported("medusa")
    rename(folder, change)
    with pytest.raises(InputError, match=problem) as caught:
        formats.drafter(formats.read(folder), target, of("medusa"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shared", [True, False])
def test_every_medusa_head_may_repeat_that_of_the_target(
    exported: Any, of: Any, target_of: Callable[[str], Target], shared: bool
) -> None:
    """``original_lm_head``: one for all blocks, which vLLM also finds under the first one's name."""
    folder, original = exported("medusa")
    edit(folder, lambda c: c.update(original_lm_head=shared))
    names = [f"lm_heads.{i}.weight" for i in range(1 if shared else 7)]
    rename(folder, lambda t: {n: t["lm_head.weight"].clone() for n in names} | {k: t[k] for k in t if "lm" not in k})
    target = target_of("medusa")
    made, copies = formats.drafter(formats.read(folder), target, of("medusa"))
    assert copies == (["lm_head.weight"] if shared else names)
    assert all(torch.equal(made.state_dict()[k], v) for k, v in original.state_dict().items())
    last = names[-1]
    rename(folder, lambda t: t | {last: t[last] + 1})
    with pytest.raises(InputError, match=r"weight is not that of target tiny; drafters here use the target's own"):
        formats.drafter(formats.read(folder), target, of("medusa"))


def test_copies_of_the_targets_own_tensors_are_left_out(exported: Any, of: Any, target: Target) -> None:
    folder, _ = exported(layout="vllm", dtype="bf16")
    own = target.model.get_input_embeddings().weight.detach().bfloat16()
    rename(folder, lambda t: t | {"embed_tokens.weight": own.clone(), "lm_head.weight": own.clone()})
    made, copies = formats.drafter(formats.read(folder), target, of("dflash"))
    assert sorted(copies) == ["embed_tokens.weight", "lm_head.weight"]
    assert len(made.state_dict()) == 3 + 11 * 2


@pytest.mark.parametrize(
    ("which", "change", "problem"),
    [
        ("hf", lambda c: c.pop("dflash_config"), "is not a drafter's"),
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
        ("vllm", lambda c: c.update(speculators_model_type="eagle3"), "'eagle3' cannot be read .*; valid: dflash"),
        ("vllm", lambda c: c.update(draft_vocab_size=100), "draft_vocab_size=100 cannot be read here; valid: 320"),
        ("vllm", lambda c: c.update(sample_from_anchor=True), "sample_from_anchor=True"),
        ("vllm", lambda c: c.update(aux_hidden_state_layer_ids=[0, 1]), "hidden state 0, the embedding"),
        ("vllm", lambda c: c.update(transformer_layer_config=None), "not a drafter's configuration"),
        ("medusa", lambda c: c.update(num_hidden_layers=2), "num_hidden_layers=2 cannot be read here; a block of Med"),
        ("medusa", lambda c: c.update(truncated_vocab_size=100), "truncated_vocab_size=100 cannot be read here"),
        ("medusa", lambda c: c.update(medusa_fc_bias=True), "medusa_fc_bias=true cannot be read here"),
        ("medusa", lambda c: c.update(num_heads="7"), "num_heads='7' must be a whole number"),
        ("medusa", lambda c: c.pop("num_heads"), "'num_heads' is missing"),
        ("medusa", lambda c: c.pop("model_type"), "is not a drafter's: .* nor model_type medusa"),
    ],
)
def test_a_foreign_configuration_is_refused(exported: Any, which: str, change: Any, problem: str) -> None:
    folder, _ = exported(*WRITTEN[which])
    edit(folder, change)
    with pytest.raises(InputError, match=problem):
        formats.read(folder)


@pytest.mark.parametrize(
    ("which", "change", "problem"),
    [
        (
            "hf",
            lambda c: c["dflash_config"].update(target_layer_ids=[0, 1, 3]),
            r"taps layer 3 of 0\.\.3; target_layer_ids count decoder layers from 0",
        ),
        (
            "vllm",
            lambda c: c.update(aux_hidden_state_layer_ids=[1, 2, 4]),
            r"taps layer 3 of 0\.\.3; aux_hidden_state_layer_ids count hidden states",
        ),
        ("hf", lambda c: c.update(num_target_layers=36), "its num_target_layers is 36, the target's 4"),
        ("hf", lambda c: c.update(hidden_size=64), "its hidden_size is 64, the target's 32"),
        ("hf", lambda c: c.update(rope_theta=5e5), "its rope is .*500000"),
        ("hf", lambda c: c.update(rope_scaling={"type": "yarn", "factor": 4.0}), "its rope is .*yarn"),
        ("hf", lambda c: c["dflash_config"].update(mask_token_id=7), r"mask token id 7, .*; give target\.mask_token=7"),
        ("medusa", lambda c: c.update(hidden_size=64), "its hidden_size is 64, the target's 32"),
        (
            "medusa",
            lambda c: c.update(vocab_size=319, truncated_vocab_size=None),
            "its vocab_size is 319, the target's 320",
        ),
    ],
)
def test_another_target_is_refused(
    exported: Any, of: Any, target: Target, which: str, change: Any, problem: str
) -> None:
    folder, _ = exported(*WRITTEN[which])
    edit(folder, change)
    with pytest.raises(InputError, match=problem):
        formats.drafter(formats.read(folder), target, of(WRITTEN[which][0]))


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
    heads, _ = exported("medusa")
    edit(heads, lambda c: c.update(topk=10, logit_scale=2.0))
    assert formats.read(heads).ignored == ("logit_scale", "topk")


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
