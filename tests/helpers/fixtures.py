"""Shared by all tests: shape checks at run time, a tiny random target and drafters for it."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from helpers import quick_settings, typechecker

quick_settings.install()

# Before anything imports these modules: their tensor signatures are then checked on every call.
install_import_hook(
    ["specauf_cli.objectives", "specauf_cli.models", "specauf_cli.training", "specauf_cli.evaluation"],
    f"{typechecker.__name__}.checked",
)

import torch  # noqa: E402

from helpers.commands import specauf  # noqa: E402
from specauf_cli.config import compose  # noqa: E402
from specauf_cli.config.schema import BackboneConfig, PretrainConfig, TargetConfig  # noqa: E402
from specauf_cli.data import offline  # noqa: E402
from specauf_cli.data.chat import MASK, Chat  # noqa: E402
from specauf_cli.models import checkpoint  # noqa: E402
from specauf_cli.models import target as targets  # noqa: E402
from specauf_cli.models.dflash import DFlash  # noqa: E402
from specauf_cli.models.target import Target  # noqa: E402
from specauf_cli.runtime.machine import keep_freed_memory  # noqa: E402
from specauf_cli.types import Corpus  # noqa: E402

keep_freed_memory()  # as every command does that runs a model
torch.set_num_threads(1)  # the tensors here are tiny, and the machine is shared
gc.freeze()  # the modules stay; looking at their objects again and again takes a few per cent of the time
gc.set_threshold(100_000, 50, 100)

MakeTarget = Callable[..., Target]
MakeDrafter = Callable[..., DFlash]


@pytest.fixture(autouse=True)
def _checked_anew() -> None:
    typechecker.again()


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device of tests marked ``gpu``: cuda; or what SPECAUF_GPU_TESTS names, to see them run without one."""
    return os.environ.get("SPECAUF_GPU_TESTS", "cuda")


@pytest.fixture(scope="session")
def small_corpus() -> Corpus:
    return offline.conversations(200, seed=0)


@pytest.fixture(scope="session")
def chat(small_corpus: Corpus) -> Chat:
    return Chat.build([m.content for c in small_corpus.conversations for m in c.messages], 320)


@pytest.fixture(scope="session")
def target_config() -> TargetConfig:
    return TargetConfig("tiny", "tiny", None, None, (0, 1, 2), MASK, False, None)


@pytest.fixture(scope="session")
def target(chat: Chat, target_config: TargetConfig) -> Target:
    """Four untrained layers whose greedy output is varied: the weights are scaled up until layers outweigh the
    input."""
    sizes = PretrainConfig(
        vocab_size=320,
        hidden_size=32,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_positions=512,
        rope_theta=10_000.0,
        steps=1,
        rows=1,
        row_length=1,
        lr=1.0,
        warmup=0.0,
        weight_decay=0.0,
        clip=1.0,
        precision="fp32",
        seed=0,
    )
    model = targets.create(sizes, chat)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0 if "embed" in name else 20.0)
    return Target(model, chat, target_config, "test")


@pytest.fixture(scope="session")
def make_target(target: Target) -> MakeTarget:
    """The tiny target with something changed: further stop tokens, taps, context length or fingerprint."""

    def make(
        *, stop_ids: Iterable[int] = (), context_length: int | None = None, fingerprint: str = "test", **config: Any
    ) -> Target:
        chat = Chat(target.chat.tokenizer, MASK, stop_ids)
        made = Target(target.model, chat, replace(target.config, **config), fingerprint)
        if context_length is not None:
            made.context_length = context_length
        return made

    return make


@pytest.fixture(scope="session")
def backbone() -> BackboneConfig:
    """Weights wide enough that every part of the drafter matters to its output."""
    return BackboneConfig(
        "dflash", "DFlash", "dflash", block_size=8, layers=2, proposals=7, init_std=0.3, attention="auto"
    )


@pytest.fixture(scope="session")
def make_drafter(target: Target, backbone: BackboneConfig) -> MakeDrafter:
    def make(seed: int = 0, *, of: Target = target, **changes: Any) -> DFlash:
        drafter = checkpoint.create(of, replace(backbone, **changes))
        drafter.initialise(seed)
        return drafter.eval()

    return make


@pytest.fixture
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes longer than all the rest of most commands, and many commands of a test file have the same
    settings."""
    monkeypatch.setattr(compose, "compose", lambda overrides: _composed(tuple(overrides)))


_composed = functools.cache(compose.compose)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the smoke table was made, and what the command printed. Workers make it once and copy it."""
    folder = tmp_path_factory.mktemp("smoke")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke-table"
    with open(shared.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (shared / "printed").is_file():
            shared.mkdir()
            (shared / "printed").write_text(specauf(shared, "table", "table2", "profile=smoke").stdout)
    shutil.copytree(shared / "runs", folder / "runs")
    return folder, (shared / "printed").read_text()
