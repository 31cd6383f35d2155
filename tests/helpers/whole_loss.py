"""A batch of blocks, and the whole loss of an objective on it: what one training step would minimise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specauf_cli.config.compose import compose
from specauf_cli.objectives.loss import block_facts, branch_losses
from specauf_cli.objectives.terms import bind

SEQUENCES, BLOCKS, SLOTS, VOCABULARY = 3, 5, 15, 23


@dataclass
class Batch:
    """Logits of the drafter and the target ``[N, K, V]``, the data's tokens and the mask ``[N, K]``, in fp32."""

    logits: Tensor
    target_logits: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def target_labels(self) -> Tensor:
        """The target's argmax."""
        return self.target_logits.argmax(dim=-1)

    def in_double(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the drafter and the target in fp64; ``logits`` are the leaf."""
        return self.logits.double().log_softmax(dim=-1), self.target_logits.double().log_softmax(dim=-1)


def batch(*, full: bool = False, seed: int = 0) -> Batch:
    """Blocks of several sequences, equally many each. The drafter and the target often agree with the data, the drafter
    in all slots of some blocks.

    ``full``: every slot is valid; otherwise the masks have every length, and each sequence has a block without any
    valid slot and a full one.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = SEQUENCES * BLOCKS
    tokens = torch.randint(0, VOCABULARY, (blocks, SLOTS), generator=generator)
    at_token = torch.nn.functional.one_hot(tokens, VOCABULARY)
    logits, target_logits = (
        torch.randn(blocks, SLOTS, VOCABULARY, generator=generator)
        + 5 * at_token * (torch.rand(blocks, SLOTS, 1, generator=generator) < share)
        for share in (0.7, 0.9)
    )
    logits[2::BLOCKS] = 8.0 * at_token[2::BLOCKS]
    lengths = torch.randint(1, SLOTS, (blocks,), generator=generator)
    lengths[0::BLOCKS], lengths[1::BLOCKS] = 0, SLOTS
    if full:
        lengths[:] = SLOTS
    return Batch(logits.requires_grad_(), target_logits, tokens, torch.arange(SLOTS) < lengths[:, None])


def ours(command: str, data: Batch) -> tuple[Tensor, Tensor]:
    """Loss of ``specauf train COMMAND`` and its gradient with respect to the logits."""
    config = compose(command.split())
    objective = bind(config.objective, config.trainer.normalize)
    labels = data.target_labels if config.trainer.labels == "target" else data.tokens
    target_logits = data.target_logits if objective.soft else None
    facts = block_facts(data.logits, labels, data.mask, target_logits, objective.losses("base"), objective.data)
    (loss,) = branch_losses({"base": facts}, objective, sequences=SEQUENCES).values()
    return with_gradient(torch.stack([pair.total / pair.weight for pair in loss.pairs]).sum(), data)


def with_gradient(loss: Tensor, data: Batch) -> tuple[Tensor, Tensor]:
    """A loss and its gradient with respect to the logits."""
    (gradient,) = torch.autograd.grad(loss, data.logits)
    return loss.detach(), gradient


def distance(gradient: Tensor, reference: Tensor) -> float:
    """Norm of the difference, as a share of the reference's norm."""
    return float((gradient - reference).norm() / reference.norm())


def assert_same(loss: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    """Equal values and gradients up to fp32's rounding."""
    torch.testing.assert_close(loss[0].double(), reference[0].double(), rtol=1e-5, atol=1e-7)
    assert_same_gradient(loss, reference)


def assert_same_gradient(loss: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> None:
    """Equal gradients, where the values are not comparable: one loss has weights that are constants to the gradient."""
    assert reference[1].norm() > 1e-4
    assert distance(loss[1], reference[1]) < 1e-5
