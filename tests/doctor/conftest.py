"""A subject with which everything is fine, to break one thing of."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.drafters import target_of
from helpers.findings import Break, changed, configuration
from specauf_cli.data import offline
from specauf_cli.doctor.subject import Subject
from specauf_cli.models.target import Target
from specauf_cli.types import Corpus, PromptSet

__all__ = ["target_of"]


@pytest.fixture(scope="session")
def data() -> tuple[Corpus, Corpus]:
    return offline.conversations(24, seed=0), offline.heldout(6, seed=0)


@pytest.fixture(scope="session")
def prompts() -> list[tuple[PromptSet, PromptSet]]:
    made = offline.prompts("algebra", 4, seed=0)
    asked = tuple(replace(p, turns=tuple(f"{t}\nAnswer briefly." for t in p.turns)) for p in made)
    return [
        (PromptSet("algebra", "Algebra", p, 4, "sha", "offline"), PromptSet("algebra", "A", q, 4, "sha", "offline"))
        for p, q in [(made, asked)]
    ]


@pytest.fixture
def healthy(
    target: Target, data: tuple[Corpus, Corpus], prompts: list[tuple[PromptSet, PromptSet]], tmp_path: Path
) -> Break:
    """A subject with some settings, and some parts (``target``, ``data``, ``prompts``), replaced."""

    def make(backbone: str = "dflash", /, folder: Path | None = None, settings: Any = None, **parts: Any) -> Subject:
        config = changed(configuration(backbone), {"runs": str(tmp_path), **(settings or {})})
        parts = {"target": copy.copy(target), "data": data, "prompts": prompts, **parts}
        return Subject(config, folder, parts=parts)

    return make
