"""What the doctor says of a subject, and ways to break a target, for tests of several files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from helpers.drafters import KNOBS
from specauf_cli.config import compose
from specauf_cli.config.schema import Config
from specauf_cli.data.chat import MASK, Chat
from specauf_cli.doctor import examination
from specauf_cli.doctor.subject import FAIL, WARN, Finding, Subject
from specauf_cli.models.target import Target

BACKBONES = tuple(KNOBS)
BLOCK = ("backbone.block_size=8", "backbone.proposals=7", "trainer.max_length=512")
Patch = pytest.MonkeyPatch
Break = Callable[..., Subject]


@functools.cache
def configuration(backbone: str) -> Config:
    return compose.compose(["profile=smoke", *BLOCK, f"backbone={backbone}"])


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with settings such as ``backbone.attention`` replaced, without composing anew."""
    for key, value in settings.items():
        group, _, name = key.partition(".")
        value = replace(getattr(config, group), **{name: value}) if name else value
        config = replace(config, **{group: value})
    return config


def found(of: Subject) -> dict[str, Finding]:
    return dict(examination.examine(of))


def wrong(of: Subject) -> dict[str, str]:
    """Lines that are not ok, checks left out not counted: what the doctor says is broken."""
    return {n: examination.line(n, f) for n, f in found(of).items() if f.verdict in (FAIL, WARN)}


def only(of: Subject, name: str, *words: str) -> str:
    """Asserts that exactly the check ``name`` finds something, in these words, with a fix, in one line."""
    said = wrong(of)
    assert list(said) == [name], said
    assert all(w in said[name] for w in words), said[name]
    assert "\n" not in said[name]
    return said[name]


def weights_of(target: Target) -> Target:
    """The target with weights of its own, to be broken."""
    return Target(copy.deepcopy(target.model), target.chat, target.config, target.fingerprint)


def with_chat(target: Target, change: Callable[[Any], object]) -> Target:
    tokenizer = copy.deepcopy(target.chat.tokenizer)
    change(tokenizer)
    return Target(target.model, Chat(tokenizer, MASK), target.config, target.fingerprint)


def with_template(target: Target, template: str) -> Target:
    return with_chat(target, lambda t: setattr(t, "chat_template", template))
