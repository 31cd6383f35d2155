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
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from specauf_cli.config.overrides import key_of

GROUPS = {folder.name for folder in (Path(__file__).resolve().parents[2] / "conf").iterdir() if folder.is_dir()}

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
    """``hydra.compose`` of the shipped yaml files; a folder of the user's own may change between two calls.

    Yaml files are merged once for all calls that choose the same ones; Hydra's own function applies values to that.
    """
    if any("hydra." in o for o in overrides):
        return _compose(config_name, overrides=overrides)
    values = [o for o in overrides if key_of(o) not in GROUPS]
    copied: DictConfig = pickle.loads(_composed(config_name, tuple(o for o in overrides if o not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), copied)
    return copied


def install() -> None:
    """For the rest of this process."""
    OmegaConf.load = staticmethod(load)
    hydra.compose = compose
