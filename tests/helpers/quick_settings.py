"""Reading yaml and composing settings takes Hydra longer than most commands take for all the rest: here, once each.

Both are functions of what they are given, so what a test sees is the same. ``install`` comes before the package's own
imports.
"""

from __future__ import annotations

import functools
import io
import pickle
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

_load = OmegaConf.load
_compose = hydra.compose


@functools.cache
def _loaded(text: str) -> bytes:
    return pickle.dumps(_load(io.StringIO(text)))


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> bytes:
    return pickle.dumps(_compose(name, overrides=list(overrides)))


def load(file: Any) -> Any:
    """``OmegaConf.load``: a text that was parsed before is not parsed again."""
    text = Path(file).read_text("utf-8") if isinstance(file, str | Path) else file.read()
    return pickle.loads(_loaded(text))  # a copy, several times faster than copy.deepcopy


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """``hydra.compose`` of the shipped yaml files; a folder of the user's own may change between two calls."""
    if any("hydra.searchpath" in o for o in overrides):
        return _compose(config_name, overrides=overrides)
    copied: DictConfig = pickle.loads(_composed(config_name, tuple(overrides)))
    return copied


def install() -> None:
    """For the rest of this process."""
    OmegaConf.load = staticmethod(load)
    hydra.compose = compose
