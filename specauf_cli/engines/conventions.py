"""How the two engines name and count things, where that differs from here."""

from pathlib import Path

from specauf_cli.errors import InputError, nearest
from specauf_cli.store import layout

FORMATS = {"sglang": "hf", "vllm": "vllm"}
"""What ``specauf export`` writes for each engine."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""How the engines name what ``evaluation.precision`` says, the precision of replay here."""


def check_backend(name: str) -> None:
    """InputError for an engine that is none."""
    if name not in FORMATS:
        raise InputError(f"unknown backend {name!r}; valid: {', '.join(FORMATS)}.{nearest(name, FORMATS)}")


def export_folder(run: Path, backend: str) -> Path:
    """Where ``serve-command`` expects a run's drafter in the engine's format."""
    return layout.export_of(run, FORMATS[backend])


def drafted_per_round(proposals: int, block_size: int) -> int:
    """Tokens that an engine drafts a round: at most a block without its anchor, whatever slots the drafter has."""
    return min(proposals, block_size - 1)


def target_fingerprint(run: Path) -> str:
    """What a run says of its target's weights: the commit of one from the hub, a hash of any other; empty where
    unknown."""
    return str(layout.about_of(run)["inputs"].get("target", ""))
