"""Names and counts of the two engines, where they differ from ours."""

from pathlib import Path

from specauf_cli.config.identity import upgraded
from specauf_cli.errors import InputError, nearest
from specauf_cli.store import layout

FORMATS = {"sglang": "hf", "vllm": "vllm"}
"""What ``specauf export`` writes for each engine; vLLM reads DSpark in DeepSpec's layout, ``hf``."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""The engines' names for the values of ``evaluation.precision``, the precision of replay."""


def check_backend(name: str) -> None:
    """InputError for an unknown engine."""
    if name not in FORMATS:
        raise InputError(f"unknown backend {name!r}; valid: {', '.join(FORMATS)}.{nearest(name, FORMATS)}")


def export_format(backend: str, kind: str) -> str:
    """What ``specauf export`` writes of a kind of drafter for an engine."""
    return "hf" if kind == "dspark" else FORMATS[backend]


def export_folder(run: Path, backend: str) -> Path:
    """Where ``serve-command`` expects a run's drafter in the engine's format."""
    kind = upgraded(layout.about_of(run)["config"])["backbone"].get("kind", "")
    return layout.export_of(run, export_format(backend, kind))


def method_of(kind: str) -> str:
    """The engines' name of how a kind of drafter drafts, in small letters: SGLang serves Domino as DFLASH."""
    return "dflash" if kind == "domino" else kind


def drafted_per_round(kind: str, proposals: int, block_size: int) -> int:
    """Tokens that an engine drafts per round: at most a block without its anchor, however many slots the drafter
    has; with DSpark the whole block."""
    return proposals if kind == "dspark" else min(proposals, block_size - 1)


def target_fingerprint(run: Path) -> str:
    """What identifies a run's target weights: the commit of a hub model, a hash of others; empty if unknown."""
    return str(layout.about_of(run)["inputs"].get("target", ""))
