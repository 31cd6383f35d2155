"""Credits and backbones by the names that yaml gives them; the user's own as ``package.module.name``."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from specauf_cli.config.schema import BackboneConfig, CreditConfig
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.types import BlockStats, Credit

CREDITS = "specauf_cli.objectives.credits"
"""Its public functions are the credits that a bare name can mean."""
BACKBONES = {"dflash": "specauf_cli.models.dflash.DFlash", "domino": "specauf_cli.models.domino.Domino"}
"""What a bare ``backbone.kind`` means."""
PROVIDED = {
    "gold_rank": "Int[N, K], number of tokens with a higher logit than the label",
    "target_gold_logprob": "Float[N, K], the target's log-probability of the label",
    "overlap": "Float[N, K], sum over the vocabulary of min(p, q), the target's and the drafter's probabilities",
    "progress": "float in [0, 1), share of the training steps that are done",
}
"""Data that a credit may ask for by a positional argument of that name after ``stats``. Without gradient, like
``stats``."""


def credit(config: CreditConfig, where: str = "credit") -> Credit:
    """The credit that a yaml names, its knobs bound. It is called with ``stats`` and, by name, what it ``needs``.

    Errors: InputError for an unknown name, a wrong knob, or data that nobody provides.
    """
    where_name, shipped = f"{where}.credit", _shipped_credits()
    if "." not in config.credit and config.credit not in shipped:
        raise _unknown(where_name, config.credit, shipped)
    function = _load(config.credit if "." in config.credit else f"{CREDITS}.{config.credit}", where_name)
    _check_knobs(function, config.knobs, where)
    for name in _asked(function):
        if name not in PROVIDED:
            raise InputError(
                f"{where_name}={config.credit!r} asks for {name!r}, which is no data of a block; valid after the first "
                f"argument: {', '.join(PROVIDED)} (a knob stands after a *).{nearest(name, PROVIDED)}"
            )
    return functools.partial(function, **config.knobs) if config.knobs else function


def needs(credit: Credit) -> frozenset[str]:
    """Names of the data, out of ``PROVIDED``, that a credit asks for beyond ``stats``."""
    return frozenset(_asked(credit))


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
    """Tries a credit on two blocks, so that a function of another kind is found before anything is trained.

    Errors: InputError when it fails, or gives anything but one weight, finite and not negative, for each block and
    valid slot.
    """
    import torch

    function = credit(config, where)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    correct = torch.tensor([[True, False, True], [True, False, False]])
    stats = BlockStats(correct=correct, gold_logprob=torch.full(mask.shape, -1.0), mask=mask)
    data = {
        "gold_rank": torch.zeros(mask.shape, dtype=torch.long),
        "target_gold_logprob": torch.zeros(mask.shape),
        "overlap": torch.ones(mask.shape),
        "progress": 0.0,
    }
    try:
        weights = function(stats, **{name: data[name] for name in needs(function)})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        raise InputError(f"{where}: {config.credit} is no credit, it fails on a block: {first_line(error)}") from error
    if not isinstance(weights, torch.Tensor) or weights.shape != mask.shape:
        raise InputError(
            f"{where}: {config.credit} is no credit: it must give one weight for each block and slot, [N, K]"
        )
    wrong = weights[mask & ~(torch.isfinite(weights) & (weights >= 0))]
    if len(wrong):
        raise InputError(
            f"{where}: {config.credit} is no credit: its weights must be finite and >= 0, got {wrong[0].item():g}"
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


def _asked(function: Callable[..., Any]) -> list[str]:
    """Names of the positional arguments of a credit after the first, which is ``stats``."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in _parameters(function) if p.kind in positional][1:]


def _parameters(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    """The parameters of a function; none of the built-in functions that do not say."""
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()


def _check_knobs(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """The keyword-only arguments of a function are its knobs, and must equal the keys of the yaml."""
    kinds = {p.name: p.annotation for p in _parameters(function) if p.kind is p.KEYWORD_ONLY}
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
        if kind is int and not isinstance(given[knob], int):
            raise InputError(f"{where}.{knob}={given[knob]!r} is not valid; expected a whole number")
