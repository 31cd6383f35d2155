"""The DSpark backbone (DeepSpec): DFlash in parallel, then a bias from the token before each slot, and a confidence.

Labels are shifted as Domino's: a block of B has B slots, and slot 0 is at the anchor itself. The Markov head adds
W2 W1[x] to a slot's base logits, where x is the token before it (gold in training, drafted when decoding). The
confidence head estimates the chance that the target accepts a slot's token. Names of tensors and keys are those of
DeepSpec (modeling/dspark) and of vLLM's ``Qwen3DSparkModel`` (vLLM pull request 47093).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3Config

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.models.dflash import NOTHING, Context, DFlash, PublicKeys, SlotBySlot
from specauf_cli.models.target import Target


class MarkovHead(nn.Module):
    """W2 W1[x], or W2 (g * W1[x]) with a gate g in (0, 1) that reads the slot's hidden state too."""

    def __init__(self, vocabulary: int, rank: int, width: int, *, gated: bool) -> None:
        """``width``: that of the hidden state."""
        super().__init__()
        self.markov_w1 = nn.Embedding(vocabulary, rank)
        self.markov_w2 = nn.Linear(rank, vocabulary, bias=False)
        self.gate_proj = nn.Linear(width + rank, rank) if gated else None

    def embed(self, previous: Int[Tensor, "*X"]) -> Float[Tensor, "*X R"]:
        """W1 of the tokens before the slots."""
        embedded: Tensor = self.markov_w1(previous)
        return embedded

    def forward(self, hidden: Float[Tensor, "*X D"], embedded: Float[Tensor, "*X R"]) -> Float[Tensor, "*X V"]:
        """The bias of every slot's logits."""
        if self.gate_proj is not None:
            gate = torch.sigmoid(self.gate_proj(torch.cat([hidden, embedded.to(hidden.dtype)], dim=-1)))
            embedded = gate.to(embedded.dtype) * embedded
        bias: Tensor = self.markov_w2(embedded)
        return bias


class ConfidenceHead(nn.Module):
    """A linear map of [hidden ; W1[x]] to the logit of the chance that a slot's token is accepted."""

    def __init__(self, width: int) -> None:
        """``width``: that of the hidden state and the rank together."""
        super().__init__()
        self.proj = nn.Linear(width, 1)

    def forward(self, hidden: Float[Tensor, "*X D"], embedded: Float[Tensor, "*X R"]) -> Float[Tensor, "*X"]:
        """Logits of the confidence."""
        scores: Tensor = self.proj(torch.cat([hidden, embedded.to(hidden.dtype)], dim=-1))
        return scores[..., 0]


class DSpark(DFlash):
    """Drafter with K = B slots and two branches of logits: ``base`` (DFlash's own) and ``final`` (with the bias)."""

    branches = ("base", "final")
    first = 0
    architecture = "Qwen3DSparkModel"

    def __init__(
        self,
        config: Qwen3Config,
        backbone: BackboneConfig,
        features: int,
        mask_id: int,
        *,
        markov_rank: int,
        markov_head_type: Literal["vanilla", "gated"],
    ) -> None:
        """``markov_rank``: width of W1's rows; ``markov_head_type``: whether a gate scales them."""
        super().__init__(config, backbone, features, mask_id)
        gated = markov_head_type == "gated"
        self.markov_head = MarkovHead(config.vocab_size, markov_rank, config.hidden_size, gated=gated)
        self.confidence_head = ConfidenceHead(config.hidden_size + markov_rank)

    def initialise(self, seed: int) -> None:
        """As DFlash; biases are zero."""
        super().initialise(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith(".bias"):
                    parameter.zero_()

    def public(self, taps: Sequence[int]) -> PublicKeys:
        """DeepSpec's keys, which it has no ``dflash_config`` for; engines read that too."""
        markov = self.markov_head
        return PublicKeys(
            inside={},
            beside={
                "mask_token_id": self.mask_id,
                "target_layer_ids": list(taps),
                "markov_rank": markov.markov_w1.embedding_dim,
                "markov_head_type": "vanilla" if markov.gate_proj is None else "gated",
                "enable_confidence_head": True,
                "confidence_head_with_markov": True,
            },
        )

    @classmethod
    def extra_work(cls, width: int, vocabulary: int, knobs: dict[str, Any]) -> float:
        """The Markov head, its gate and the confidence head."""
        rank = int(knobs["markov_rank"])
        gate = rank * (width + rank) if knobs["markov_head_type"] == "gated" else 0
        return 2.0 * (rank * vocabulary + gate + width + rank)

    def logits(
        self, target: Target, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]
    ) -> dict[str, Float[Tensor, "N K V"]]:
        """``base``, and ``final`` = base + the Markov head's bias for the token before each slot."""
        base = target.head(hidden)
        bias = self.markov_head(hidden, self.markov_head.embed(previous))
        return {"base": base, "final": base + bias[..., : target.chat.vocab]}

    def confidence(self, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Logits of the chance that each slot's token is accepted."""
        scores: Tensor = self.confidence_head(hidden, self.markov_head.embed(previous))
        return scores

    draft = DFlash.draft_in_turn

    def slot_by_slot(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> SlotBySlot:
        """One slot at a time. A slot of too little confidence, and all after it, propose ``NOTHING``."""
        return partial(self._propose_next, target, self.hidden(target, context, anchor_tokens, anchors).flatten(0, 1))

    def _propose_next(
        self,
        target: Target,
        hidden: Float[Tensor, "N K D"],
        slot: int,
        blocks: Int[Tensor, "M"],
        before: Int[Tensor, "M"],
    ) -> Int[Tensor, "M"]:
        """The token of one slot of ``blocks`` after the token ``before``."""
        own, embedded = hidden[blocks, slot], self.markov_head.embed(before.clamp(min=0))
        bias = self.markov_head(own, embedded)[..., : target.chat.vocab]
        token: Tensor = (target.head(own) + bias).argmax(dim=-1)
        if self.least_confidence > 0:
            sure = torch.sigmoid(self.confidence_head(own, embedded).float()) >= self.least_confidence
            token = torch.where(sure & (before != NOTHING), token, NOTHING)
        return token
