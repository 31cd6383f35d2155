"""An objective with its functions bound: the terms of every branch, ready to be applied to a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

from specauf_cli.config import names
from specauf_cli.config.schema import ObjectiveConfig, TermConfig
from specauf_cli.types import Credit, Loss

CE = "ce"
"""The loss that comes with the statistics of every block, so it costs nothing more."""


@dataclass(frozen=True)
class Term:
    """One term: weight x sum m c l / normaliser.

    ``loss_key`` names the loss with its knobs: a loss that several terms share is computed once. ``loss`` is called
    with logits, labels, the target's logits (None unless some term is ``soft``) and the drafter's confidence (None
    unless some term is ``confident``), ``credit`` with the statistics and, by name, the data in ``needs``. Terms with
    the same ``denominator`` are divided by the same number, so their sums can be added first.
    """

    loss_key: str
    loss: Loss
    soft: bool
    confident: bool
    credit: Credit
    needs: frozenset[str]
    weight: float
    normalize: str
    denominator: str


@dataclass(frozen=True)
class Objective:
    """The terms of every branch, and the branch whose statistics its credits read."""

    name: str
    terms: Mapping[str, tuple[Term, ...]]
    reads: Mapping[str, str]

    def losses(self, branch: str) -> dict[str, Loss]:
        """The different losses of a branch, by key."""
        return {term.loss_key: term.loss for term in self.terms[branch]}

    @property
    def data(self) -> frozenset[str]:
        """What the credits ask for beyond the statistics."""
        return frozenset[str]().union(*(term.needs for terms in self.terms.values() for term in terms))

    @property
    def soft(self) -> bool:
        """Whether a loss or a credit needs the target's distribution."""
        return any(term.soft for terms in self.terms.values() for term in terms)

    @property
    def confident(self) -> bool:
        """Whether a loss reads the drafter's own confidence."""
        return any(term.confident for terms in self.terms.values() for term in terms)


def bind(config: ObjectiveConfig, normalize: str) -> Objective:
    """The objective of a yaml; ``normalize`` holds for terms that name no normaliser. Errors: InputError."""
    reads = {branch: config.final_reads or branch if branch == "final" else branch for branch in config.branches}
    terms = {branch: tuple(_bound(term, normalize) for term in own) for branch, own in config.branches.items()}
    return Objective(config.name, terms, reads)


def is_soft(config: ObjectiveConfig) -> bool:
    """Whether an objective needs the target's distribution."""
    return bind(config, "credit").soft


def _bound(config: TermConfig, normalize: str) -> Term:
    loss, credit = names.loss(config), names.credit(config)
    needs, soft_loss, confident = names.needs(credit), names.needs_target(loss), names.needs_confidence(loss)
    normalize = config.normalize or normalize
    of_credit = _key(config.credit, credit) if normalize in ("credit", "block_credit") else ""
    return Term(
        loss_key=_key(config.loss, loss),
        loss=_called_with_all(loss, 2 + soft_loss + confident),
        soft=soft_loss or bool(needs & set(names.OF_TARGET)),
        confident=confident,
        credit=credit,
        needs=needs,
        weight=config.weight,
        normalize=normalize,
        denominator=normalize + of_credit,
    )


def _key(name: str, function: Loss | Credit) -> str:
    """A function's name with its knobs: ``decay(gamma=7)``."""
    knobs = getattr(function, "keywords", {})
    return f"{name}({', '.join(f'{k}={v}' for k, v in knobs.items())})" if knobs else name


def _called_with_all(loss: Loss, taken: int) -> Loss:
    """A loss that takes the first ``taken`` of logits, labels, the target's logits and the confidence, called with all
    of them."""
    return lambda *everything: loss(*everything[:taken])
