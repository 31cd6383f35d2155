"""Drafters on disk: bit-exact round trip, and one clear line for everything that does not fit or is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.errors import InputError
from specauf_cli.models import checkpoint
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target

MakeTarget = Callable[..., Target]
MakeDrafter = Callable[..., DFlash]


@pytest.fixture
def saved(tmp_path: Path, target: Target, make_drafter: MakeDrafter) -> Path:
    checkpoint.save(make_drafter(5), target, tmp_path / "drafter", run="a")
    return tmp_path / "drafter"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads((folder / "config.json").read_text())
    change(stored)
    (folder / "config.json").write_text(json.dumps(stored))


def test_a_round_trip_is_bit_exact(
    saved: Path, target: Target, make_drafter: MakeDrafter, backbone: BackboneConfig
) -> None:
    torch.manual_seed(0)
    loaded, original = checkpoint.load(saved, target, backbone), make_drafter(5)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == torch.float32
    tokens, anchors = torch.randint(4, 300, (1, 12)), torch.tensor([[0, 7]])
    drafts = [
        d.hidden(target, d.context(target.features(tokens)), tokens.gather(1, anchors), anchors)
        for d in (loaded, original)
    ]
    assert torch.equal(*drafts)


def test_files_are_those_of_the_public_layout(saved: Path, target: Target) -> None:
    assert {p.name for p in saved.iterdir()} == {"config.json", "model.safetensors"}
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == 3 + 11 * 2
    stored = json.loads((saved / "config.json").read_text())
    assert stored["architectures"] == ["DFlashDraftModel"]
    assert stored["block_size"] == 8
    assert stored["dflash_config"] == {"mask_token_id": target.chat.mask_id, "target_layer_ids": [0, 1, 2]}
    assert (stored["num_hidden_layers"], stored["num_target_layers"]) == (2, 4)
    assert stored["rope_theta"] == 10_000.0
    assert stored["specauf"]["target_fingerprint"] == "test"


def test_another_target_is_refused(saved: Path, make_target: MakeTarget, backbone: BackboneConfig) -> None:
    with pytest.raises(InputError, match="its target is test, here it is another"):
        checkpoint.load(saved, make_target(fingerprint="another"), backbone)


def test_other_taps_are_refused(saved: Path, make_target: MakeTarget, backbone: BackboneConfig) -> None:
    with pytest.raises(InputError, match=r"its tapped layers is \[0, 1, 2\], here it is \[0, 2\]"):
        checkpoint.load(saved, make_target(taps=(0, 2)), backbone)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"block_size": 16}, "its block size is 8, here it is 16"),
        ({"layers": 5}, "its number of draft layers is 2, here it is 5"),
    ],
)
def test_another_backbone_is_refused(
    saved: Path, target: Target, backbone: BackboneConfig, changes: dict[str, int], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        checkpoint.load(saved, target, replace(backbone, **changes))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(hidden_size=64), "its hidden size is 64, here it is 32"),
        (lambda c: c["dflash_config"].update(mask_token_id=0), "its mask token id is 0, here it is"),
        (lambda c: c.pop("block_size"), "'block_size' is missing"),
        (lambda c: c.pop("specauf"), "'specauf' is missing"),
        (lambda c: c.update(dflash_config=None), "not a drafter's configuration"),
    ],
)
def test_a_foreign_configuration_is_refused(
    saved: Path, target: Target, backbone: BackboneConfig, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    edit(saved, change)
    with pytest.raises(InputError, match=problem):
        checkpoint.load(saved, target, backbone)


def test_a_drafter_of_another_run_is_refused(saved: Path, target: Target, backbone: BackboneConfig) -> None:
    assert checkpoint.load(saved, target, backbone, run="a")
    with pytest.raises(InputError, match="its run is a, here it is b"):
        checkpoint.load(saved, target, backbone, run="b")


@pytest.mark.parametrize("left", [0, 7, 100, 0.5, -1])
def test_truncated_weights_are_refused(saved: Path, target: Target, backbone: BackboneConfig, left: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if left == 0.5 else int(left)])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        checkpoint.load(saved, target, backbone)


def test_missing_files_and_broken_json_are_refused(saved: Path, target: Target, backbone: BackboneConfig) -> None:
    (saved / "model.safetensors").rename(saved / "elsewhere")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        checkpoint.load(saved, target, backbone)
    (saved / "config.json").write_text('{\n"block_size": 8,\n')
    with pytest.raises(InputError, match=r"config\.json:\d+: not valid JSON"):
        checkpoint.load(saved, target, backbone)
    (saved / "config.json").unlink()
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        checkpoint.load(saved, target, backbone)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_other_tensors_are_refused(saved: Path, target: Target, backbone: BackboneConfig, damage: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    if damage == "missing":
        del tensors["norm.weight"]
    elif damage == "surplus":
        tensors["extra.weight"] = torch.zeros(3)
    else:
        tensors["fc.weight"] = torch.zeros(32, 32)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match=r"it is not what was saved, but altered or damaged"):
        checkpoint.load(saved, target, backbone)
    edit(saved, lambda c: c["specauf"].pop("weights"))  # as a file from elsewhere, which names no hash
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        checkpoint.load(saved, target, backbone)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"proposals": 8}, r"proposals=8 is out of range; valid: 1\.\.7 at block_size 8"),
        ({"proposals": 0}, r"proposals=0 is out of range"),
    ],
)
def test_sizes_that_cannot_work_are_refused(make_drafter: MakeDrafter, changes: dict[str, int], problem: str) -> None:
    with pytest.raises(InputError, match=rf"backbone\.{problem}"):
        make_drafter(**changes)


def test_saving_over_a_drafter_replaces_it(
    saved: Path, target: Target, make_drafter: MakeDrafter, backbone: BackboneConfig
) -> None:
    checkpoint.save(make_drafter(6), target, saved, run="a")
    loaded = checkpoint.load(saved, target, backbone).state_dict()
    assert torch.equal(loaded["fc.weight"], make_drafter(6).state_dict()["fc.weight"])
