"""Credits and backbones by the names that yaml gives them; the user's own as ``package.module.name``."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specauf_cli.config.schema import BackboneConfig, CreditConfig
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.types import BlockStats, Credit

CREDITS = "specauf_cli.objectives.credits"
"""Its public functions are the credits that a bare name can mean."""
BACKBONES = {"dflash": "specauf_cli.models.dflash.DFlash", "domino": "specauf_cli.models.domino.Domino"}
"""What a bare ``backbone.kind`` means."""


def credit(config: CreditConfig, where: str = "credit") -> Credit:
    """The credit that a yaml names, its knobs bound. Errors: InputError for an unknown name or a wrong knob."""
    where_name, shipped = f"{where}.credit", _shipped_credits()
    if "." not in config.credit and config.credit not in shipped:
        raise _unknown(where_name, config.credit, shipped)
    function = _load(config.credit if "." in config.credit else f"{CREDITS}.{config.credit}", where_name)
    _check_knobs(function, config.knobs, where)
    return functools.partial(function, **config.knobs) if config.knobs else function


def backbone(config: BackboneConfig) -> Any:
    """The drafter's class that a yaml names. Errors: InputError for an unknown name, wrong knobs or impossible
    sizes."""
    if "." not in config.kind and config.kind not in BACKBONES:
        raise _unknown("backbone.kind", config.kind, list(BACKBONES))
    drafter = _load(BACKBONES.get(config.kind, config.kind), "backbone.kind")
    if not all(hasattr(drafter, a) for a in ("first", "branches")):
        raise InputError(f"backbone.kind={config.kind!r} is no drafter's class, see conf/backbone/dflash.yaml")
    _check_knobs(drafter, config.knobs, "backbone.knobs")
    slots = config.block_size - drafter.first
    if not 1 <= config.proposals <= slots:
        raise InputError(
            f"backbone.proposals={config.proposals} is out of range; valid: 1..{slots} at block_size "
            f"{config.block_size}"
        )
    for knob, value in config.knobs.items():
        low, high = (0, slots) if knob == "pure_draft_prefix_len" else (1, 2**20)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"backbone.knobs.{knob}={value!r} is out of range; valid: {low}..{high}")
    return drafter


def try_credit(config: CreditConfig, where: str) -> None:
    """Tries a credit on one block, so that a function of another kind is found before anything is trained.

    Errors: InputError when it fails, or gives anything but one weight for each block and slot.
    """
    import torch

    function = credit(config, where)
    yes = torch.ones(1, 2, dtype=torch.bool)
    try:
        weights = function(BlockStats(correct=yes, gold_logprob=torch.zeros(1, 2), mask=yes))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        raise InputError(f"{where}: {config.credit} is no credit, it fails on a block: {first_line(error)}") from error
    if not isinstance(weights, torch.Tensor) or weights.shape != yes.shape:
        raise InputError(
            f"{where}: {config.credit} is no credit: it must give one weight for each block and slot, [N, K]"
        )


def _shipped_credits() -> list[str]:
    """Names of the credits in ``objectives/credits.py``."""
    module = importlib.import_module(CREDITS)
    own = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == CREDITS}
    return [n for n in own if not n.startswith("_")]


def _load(path: str, where: str) -> Any:
    """The function or class at ``package.module.name``. Errors: InputError."""
    module, _, name = path.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError) as error:
        raise InputError(f"{where}={path!r} cannot be imported: {first_line(error)}") from error
    except AttributeError as error:
        raise InputError(f"{where}={path!r}: module {module} has no {name!r}") from error
    if not callable(loaded):
        raise InputError(f"{where}={path!r} is neither a function nor a class")
    return loaded


def _unknown(where: str, name: str, shipped: Sequence[str]) -> InputError:
    return InputError(
        f"{where}={name!r} is none of {', '.join(shipped)}; your own code is named package.module.name."
        f"{nearest(name, shipped)}"
    )


def _check_knobs(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """The keyword-only arguments of a function are its knobs, and must equal the keys of the yaml."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not say
        parameters = {}.values()
    kinds = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    knobs = list(kinds)
    for knob in sorted(set(knobs) ^ set(given)):
        if knob in knobs:
            raise InputError(f"{where}.{knob} is missing; its knobs are: {', '.join(knobs)}")
        raise InputError(
            f"{where}.{knob} is not one of its knobs: {', '.join(knobs) or 'it has none'}.{nearest(knob, knobs)}"
        )
    for knob, kind in kinds.items():
        numbers = isinstance(given[knob], int | float) and not isinstance(given[knob], bool)
        if kind in (int, float, int | float) and not numbers:
            raise InputError(f"{where}.{knob}={given[knob]!r} is not valid; expected a number")
