"""Losses, credits and backbones by the names that yaml gives them; the user's own as ``package.module.name``."""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from specauf_cli.config.schema import BackboneConfig, TermConfig
from specauf_cli.errors import InputError, first_line, nearest
from specauf_cli.types import BlockStats, Credit, Loss

CREDITS = "specauf_cli.objectives.credits"
"""Its public functions are the credits that a bare name can mean."""
LOSSES = "specauf_cli.objectives.losses"
"""Its public functions are the losses that a bare name can mean."""
BACKBONES = {
    "dflash": "specauf_cli.models.dflash.DFlash",
    "domino": "specauf_cli.models.domino.Domino",
    "dspark": "specauf_cli.models.dspark.DSpark",
    "medusa": "specauf_cli.models.heads.Medusa",
    "recurrent": "specauf_cli.models.heads.Recurrent",
}
"""What a bare ``backbone.kind`` means."""
PROVIDED = {
    "gold_rank": "Int[N, K], number of tokens with a higher logit than the label",
    "target_gold_logprob": "Float[N, K], the target's log-probability of the label",
    "overlap": "Float[N, K], sum over the vocabulary of min(p, q), the target's and the drafter's probabilities",
    "progress": "float in [0, 1), share of the training steps that are done",
}
"""Data that a credit may ask for by a positional argument of that name after ``stats``. Without gradient, like
``stats``."""
OF_TARGET = ("target_gold_logprob", "overlap")
"""Of ``PROVIDED``: what is computed from the target's distribution."""


def loss(config: TermConfig, where: str = "term") -> Loss:
    """The loss that a term names, its knobs bound. It is called with logits and labels, with the target's logits
    where it ``needs_target``, and with the drafter's confidence where it ``needs_confidence``.

    Errors: InputError for an unknown name, or an argument that is neither of them.
    """
    function = _shipped_or_own(config.loss, f"{where}.loss", LOSSES)
    asked = _positional(function)
    if len(asked) < 2 or asked[2:] not in ([], ["target_logits"], ["target_logits", "confidence"]):
        raise InputError(
            f"{where}.loss={config.loss!r} must take (logits, labels), and after them nothing, target_logits, or "
            f"target_logits and confidence; its knobs after a *; it takes ({', '.join(asked)})"
        )
    return _bound(function, config.knobs)


def needs_target(loss: Loss) -> bool:
    """Whether a loss reads the target's logits."""
    return "target_logits" in _positional(loss)


def needs_confidence(loss: Loss) -> bool:
    """Whether a loss reads the drafter's own confidence."""
    return "confidence" in _positional(loss)


def credit(config: TermConfig, where: str = "term") -> Credit:
    """The credit that a term names, its knobs bound. It is called with ``stats`` and, by name, what it ``needs``.

    Errors: InputError for an unknown name, or data that nobody provides.
    """
    function = _shipped_or_own(config.credit, f"{where}.credit", CREDITS)
    for name in _positional(function)[1:]:
        if name not in PROVIDED:
            raise InputError(
                f"{where}.credit={config.credit!r} asks for {name!r}, which is no data of a block; valid after the "
                f"first argument: {', '.join(PROVIDED)} (knobs come after a *).{nearest(name, PROVIDED)}"
            )
    return _bound(function, config.knobs)


def needs(credit: Credit) -> frozenset[str]:
    """Names of the data, out of ``PROVIDED``, that a credit asks for beyond ``stats``."""
    return frozenset(_positional(credit)[1:])


def backbone(config: BackboneConfig) -> Any:
    """The drafter's class that a yaml names. Errors: InputError for an unknown name, wrong knobs or impossible
    sizes."""
    if "." not in config.kind and config.kind not in BACKBONES:
        raise _unknown("backbone.kind", config.kind, list(BACKBONES))
    drafter = _load(BACKBONES.get(config.kind, config.kind), "backbone.kind")
    if not all(hasattr(drafter, a) for a in ("first", "branches")):
        raise InputError(f"backbone.kind={config.kind!r} is no drafter's class, see conf/backbone/dflash.yaml")
    _check_knobs([drafter], config.knobs, "backbone.knobs")
    slots = config.block_size - drafter.first
    if not 1 <= config.proposals <= slots:
        raise InputError(
            f"backbone.proposals={config.proposals} is out of range; valid: 1..{slots} at block_size "
            f"{config.block_size}"
        )
    for knob, value in config.knobs.items():
        if isinstance(value, str):  # one of the words that its annotation lists
            continue
        low, high = (0, slots) if knob == "pure_draft_prefix_len" else (1, 2**20)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"backbone.knobs.{knob}={value!r} is out of range; valid: {low}..{high}")
    return drafter


def try_term(config: TermConfig, where: str) -> None:
    """Tries a term on two blocks, so that a function of another kind is found before anything is trained.

    Errors: InputError for unknown names, wrong knobs, a credit that gives anything but one weight, finite and not
    negative, for each block and valid slot, and a loss that does not give one finite number, with a gradient, for each
    position.
    """
    functions = loss(config, where), credit(config, where)
    both = set(_knobs(functions[0])) & set(_knobs(functions[1]))
    if both:
        raise InputError(
            f"{where}: the loss {config.loss} and the credit {config.credit} both have a knob {min(both)!r}, which one "
            "yaml key cannot set; rename one of them"
        )
    _check_knobs(functions, config.knobs, where)
    _try_loss(functions[0], config.loss, where)
    _try_credit(functions[1], config.credit, where)


def _try_loss(function: Loss, name: str, where: str) -> None:
    import torch

    logits = torch.tensor([[[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]], requires_grad=True)
    labels, target_logits = torch.tensor([[1, 2]]), torch.tensor([[[0.0, 2.0, 0.0], [0.0, 1.0, 2.0]]])
    confidence = torch.tensor([[0.5, -1.0]], requires_grad=True)
    arguments = (logits, labels, target_logits, confidence)[: len(_positional(function))]
    try:
        with torch.enable_grad():
            losses = function(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        takes = "it gets logits [N, K, V], labels [N, K] and, where it asks, target_logits [N, K, V], confidence [N, K]"
        raise InputError(f"{where}: {name} is no loss, it fails: {first_line(error)} ({takes})") from error
    if not isinstance(losses, torch.Tensor) or losses.shape != labels.shape:
        raise InputError(f"{where}: {name} is no loss: it must give one number for each position of its logits")
    if not bool(torch.isfinite(losses).all()):
        raise InputError(f"{where}: {name} is no loss: it gives numbers that are not finite")
    if not losses.requires_grad:
        raise InputError(f"{where}: {name} is no loss: its logits get no gradient")


def _try_credit(function: Credit, name: str, where: str) -> None:
    import torch

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
        raise InputError(f"{where}: {name} is no credit, it fails on a block: {first_line(error)}") from error
    if not isinstance(weights, torch.Tensor) or weights.shape != mask.shape:
        given = list(weights.shape) if isinstance(weights, torch.Tensor) else type(weights).__name__
        raise InputError(
            f"{where}: {name} is no credit: it must give one weight for each block and slot, [N, K] = "
            f"{list(mask.shape)}; it gave {given}"
        )
    wrong = weights[mask & ~(torch.isfinite(weights) & (weights >= 0))]
    if len(wrong):
        raise InputError(f"{where}: {name} is no credit: its weights must be finite and >= 0, got {wrong[0].item():g}")


def shipped(home: str) -> list[str]:
    """Names of the functions that a module of the package offers, in its order: ``CREDITS`` or ``LOSSES``."""
    module = importlib.import_module(home)
    own = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == home}
    return [n for n in own if not n.startswith("_")]


def _shipped_or_own(name: str, where: str, home: str) -> Callable[..., Any]:
    """The function that a bare name means in ``home``, or that ``package.module.function`` names."""
    if "." in name:
        function: Callable[..., Any] = _load(name, where)
        return function
    if name not in (known := shipped(home)):
        raise _unknown(where, name, known)
    return _load(f"{home}.{name}", where)  # type: ignore[no-any-return]


def _bound(function: Callable[..., Any], knobs: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with those of ``knobs`` that are its own."""
    own = {name: knobs[name] for name in _knobs(function) if name in knobs}
    return functools.partial(function, **own) if own else function


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


def _positional(function: Callable[..., Any]) -> list[str]:
    """Names of the positional arguments of a function."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in _parameters(function) if p.kind in positional]


def _knobs(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of a function with their types."""
    return {p.name: p.annotation for p in _parameters(function) if p.kind is p.KEYWORD_ONLY}


def _parameters(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    """The parameters of a function; none of the built-in functions that do not say."""
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()


def _check_knobs(functions: Sequence[Callable[..., Any]], given: Mapping[str, Any], where: str) -> None:
    """The keyword-only arguments of the functions are the knobs, and must equal the keys of the yaml."""
    kinds = {name: kind for function in functions for name, kind in _knobs(function).items()}
    knobs = list(kinds)
    for knob in sorted(set(knobs) ^ set(given)):
        if knob in knobs:
            raise InputError(f"{where}.{knob} is missing; its knobs are: {', '.join(knobs)}")
        raise InputError(
            f"{where}.{knob} is not one of its knobs: {', '.join(knobs) or 'it has none'}.{nearest(knob, knobs)}"
        )
    for knob, kind in kinds.items():
        words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        if words and given[knob] not in words:
            raise InputError(
                f"{where}.{knob}={given[knob]!r} is none of {', '.join(words)}.{nearest(str(given[knob]), words)}"
            )
        numbers = isinstance(given[knob], int | float) and not isinstance(given[knob], bool)
        if kind in (int, float, int | float) and not numbers:
            raise InputError(f"{where}.{knob}={given[knob]!r} is not valid; expected a number")
        if kind is int and not isinstance(given[knob], int):
            raise InputError(f"{where}.{knob}={given[knob]!r} is not valid; expected a whole number")
