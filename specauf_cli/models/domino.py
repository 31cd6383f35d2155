"""The Domino backbone (arXiv 2605.29707): DFlash in parallel, then a light causal correction along the block.

Labels are shifted: block position i predicts the token at anchor + 1 + i, so a block of size B has B slots and slot 0
is at the anchor itself. A GRU reads the embeddings of the tokens before each slot (gold in training, drafted so far
when decoding) and a low-rank projection of [hidden ; GRU state] is added to the base logits. Tensor names are those of
public checkpoints.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3Config

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.models.dflash import Context, DFlash, PublicKeys, SlotBySlot
from specauf_cli.models.prefix import PrefixGRU
from specauf_cli.models.target import Target


class Domino(DFlash):
    """Drafter with K = B slots and two branches of logits: ``base`` (DFlash's own) and ``final`` (corrected)."""

    branches = ("base", "final")
    first = 0
    architecture = "DominoDraftModel"

    def __init__(
        self,
        config: Qwen3Config,
        backbone: BackboneConfig,
        features: int,
        mask_id: int,
        *,
        gru_hidden_dim: int,
        emb_dim: int,
        pure_draft_prefix_len: int,
    ) -> None:
        """``gru_hidden_dim``: GRU state; ``emb_dim``: rank of the correction; the first ``pure_draft_prefix_len`` slots
        have none."""
        super().__init__(config, backbone, features, mask_id)
        self.prefix = pure_draft_prefix_len
        self.prefix_gru = PrefixGRU(config.hidden_size, gru_hidden_dim)
        self.embed_proj: Any = nn.Sequential(
            nn.Linear(config.hidden_size + gru_hidden_dim, emb_dim, bias=False),
            nn.SiLU(),
            nn.Linear(emb_dim, config.vocab_size, bias=False),
        )

    def public(self, taps: Sequence[int]) -> PublicKeys:
        """The keys by which public loaders recognise and size the correction."""
        rank = self.embed_proj[0].out_features
        inside = {
            "projector_type": "domino",
            "shift_label": True,
            "pure_draft_prefix_len": self.prefix,
            "emb_dim": rank,
            "gru_hidden_dim": self.prefix_gru.hidden_size,
        }
        return PublicKeys(inside, {"emb_dim": rank})

    @classmethod
    def extra_work(cls, width: int, vocabulary: int, knobs: dict[str, Any]) -> float:
        """The correction and the recurrence."""
        inner, gru = float(knobs["emb_dim"]), float(knobs["gru_hidden_dim"])
        return 2 * inner * (width + gru + vocabulary) + 6 * gru * (width + gru)

    def logits(
        self, target: Target, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]
    ) -> dict[str, Float[Tensor, "N K V"]]:
        """``base``, and ``final`` = base + W2 SiLU(W1 [h_k ; g_k]) from slot ``pure_draft_prefix_len`` on.

        g_k is the GRU's state after ``previous[:, : k + 1]``: the anchor's token and the k tokens after it.
        """
        base = target.head(hidden)
        states = self.prefix_gru.after(target, previous)
        delta = self._correction(target, hidden[:, self.prefix :], states[:, self.prefix :])
        return {"base": base, "final": torch.cat([base[:, : self.prefix], base[:, self.prefix :] + delta], dim=1)}

    draft = DFlash.draft_in_turn

    def slot_by_slot(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> SlotBySlot:
        """One slot at a time; the recurrence continues for the requested blocks only."""
        hidden = self.hidden(target, context, anchor_tokens, anchors).flatten(0, 1)
        states = hidden.new_zeros(len(hidden), self.prefix_gru.hidden_size)
        return partial(self._propose_next, target, hidden, states)

    def _propose_next(
        self,
        target: Target,
        hidden: Float[Tensor, "N K D"],
        states: Float[Tensor, "N G"],
        slot: int,
        blocks: Int[Tensor, "M"],
        before: Int[Tensor, "M"],
    ) -> Int[Tensor, "M"]:
        """The token of one slot of ``blocks`` after the token ``before``; their ``states`` advance in place."""
        state = self.prefix_gru.advance(target, states, blocks, before)
        scores = target.head(hidden[blocks, slot])
        if slot >= self.prefix:
            scores = scores + self._correction(target, hidden[blocks, slot], state)
        return scores.argmax(dim=-1)

    def _correction(
        self, target: Target, hidden: Float[Tensor, "*X D"], state: Float[Tensor, "*X G"]
    ) -> Float[Tensor, "*X V"]:
        delta: Tensor = self.embed_proj(torch.cat([hidden, state.to(hidden.dtype)], dim=-1))
        return delta[..., : target.chat.vocab]
