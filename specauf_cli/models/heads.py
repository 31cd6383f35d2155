"""Drafters without draft layers: heads on one hidden state of the target, the one right before the anchor.

``Medusa`` (arXiv 2401.10774): a residual block for every slot, all at once; the drafter has no prefix channel. Blocks
are decoded as chains here, without a tree, through the target's own head. ``Recurrent`` is the contrast: one head for
all slots that is fed its own prefix through a GRU, as recurrent drafters are (arXiv 2403.09919).

Neither sees the anchor's hidden state, which no target pass has computed yet, and Medusa not its token either. With
``target.taps=last`` the hidden state is the target's last one, as Medusa's; with tapped layers it is their fusion, what
DFlash has as its context.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3Config

from specauf_cli.config.schema import BackboneConfig
from specauf_cli.models.dflash import Context, DFlash, SlotBySlot
from specauf_cli.models.prefix import PrefixGRU
from specauf_cli.models.target import Target


class Heads(DFlash):
    """What both share: the context of a block is one state, ``[B, T, D]``, kept as the keys of a single layer."""

    layered = False

    def __init__(self, config: Qwen3Config, backbone: BackboneConfig, features: int, mask_id: int) -> None:
        """As ``DFlash``, whose layers do not exist."""
        nn.Module.__init__(self)
        self.config, self.backbone, self.mask_id = config, backbone, mask_id
        width = config.hidden_size
        self.fc: Any = nn.Linear(features * width, width, bias=False) if features > 1 else nn.Identity()

    def initialise(self, seed: int) -> None:
        """Seeded weights: matrices normal with ``backbone.init_std``."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * self.backbone.init_std)

    def context(self, features: Float[Tensor, "B T F"], start: int = 0) -> Context:
        """The state of every position; ``start`` does not matter, heads know no positions."""
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(next(self.parameters()).dtype)
        states = self.fc(features)[:, None]
        return Context([states], [states[..., :0]])

    def before(self, context: Context, anchors: Int[Tensor, "B A"]) -> Float[Tensor, "B A D"]:
        """The state right before each anchor; zeros before the first token."""
        states = context.keys[0][:, 0]
        rows = torch.arange(len(states), device=anchors.device)[:, None]
        known = states[rows, (anchors - 1).clamp(min=0)]
        return torch.where(anchors[..., None] > 0, known, torch.zeros_like(known))


class Medusa(Heads):
    """K = B - 1 residual blocks h + SiLU(W_k h), the slots of a block; no slot sees another's token."""

    architecture = "MedusaModel"

    def __init__(self, config: Qwen3Config, backbone: BackboneConfig, features: int, mask_id: int) -> None:
        """One residual block per slot, each of one layer."""
        super().__init__(config, backbone, features, mask_id)
        self.blocks = nn.ModuleList([ResidualBlock(config.hidden_size) for _ in range(self.slots)])

    @classmethod
    def extra_work(cls, width: int, vocabulary: int, knobs: dict[str, Any]) -> float:
        """The residual block."""
        return 2.0 * width * width

    def hidden(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> Float[Tensor, "B A K D"]:
        """The state right before the anchor through the block of each slot."""
        state = self.before(context, anchors)
        return torch.stack([block(state) for block in self.blocks], dim=2)


class ResidualBlock(nn.Module):
    """h + SiLU(W h), named as Medusa's public tensors."""

    def __init__(self, width: int) -> None:
        """``width``: of the hidden state."""
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False)])

    def forward(self, state: Float[Tensor, "*X D"]) -> Float[Tensor, "*X D"]:
        """One slot's hidden state."""
        moved: Tensor = torch.nn.functional.silu(self.layers[0](state))
        return state + moved


class Recurrent(Heads):
    """One head for all slots, fed its own prefix: h + W2 SiLU(W1 [h ; g_k]), g_k a GRU's state over the tokens."""

    architecture = "RecurrentDraftModel"
    base_is_head = False

    def __init__(
        self, config: Qwen3Config, backbone: BackboneConfig, features: int, mask_id: int, *, gru_hidden_dim: int
    ) -> None:
        """``gru_hidden_dim``: the GRU's state."""
        super().__init__(config, backbone, features, mask_id)
        width = config.hidden_size
        self.prefix_gru = PrefixGRU(width, gru_hidden_dim)
        self.mix: Any = nn.Sequential(
            nn.Linear(width + gru_hidden_dim, width, bias=False), nn.SiLU(), nn.Linear(width, width, bias=False)
        )

    @classmethod
    def extra_work(cls, width: int, vocabulary: int, knobs: dict[str, Any]) -> float:
        """The recurrence and the two matrices."""
        gru = float(knobs["gru_hidden_dim"])
        return 6 * gru * (width + gru) + 2 * width * (2 * width + gru)

    def hidden(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> Float[Tensor, "B A K D"]:
        """The state right before the anchor, the same for every slot."""
        return self.before(context, anchors)[:, :, None].expand(-1, -1, self.slots, -1)

    def logits(
        self, target: Target, hidden: Float[Tensor, "N K D"], previous: Int[Tensor, "N K"]
    ) -> dict[str, Float[Tensor, "N K V"]]:
        """g_k is the GRU's state after ``previous[:, : k + 1]``: the anchor's token and the k tokens after it."""
        return {"base": target.head(self._moved(hidden, self.prefix_gru.after(target, previous)))}

    def _moved(self, hidden: Float[Tensor, "*X D"], states: Float[Tensor, "*X G"]) -> Float[Tensor, "*X D"]:
        moved: Tensor = self.mix(torch.cat([hidden, states.to(hidden.dtype)], dim=-1))
        return hidden + moved

    draft = DFlash.draft_in_turn

    def slot_by_slot(
        self, target: Target, context: Context, anchor_tokens: Int[Tensor, "B A"], anchors: Int[Tensor, "B A"]
    ) -> SlotBySlot:
        """One slot at a time; the recurrence continues for the requested blocks only."""
        state = self.before(context, anchors).flatten(0, 1)
        return partial(self._propose_next, target, state, state.new_zeros(len(state), self.prefix_gru.hidden_size))

    def _propose_next(
        self,
        target: Target,
        hidden: Float[Tensor, "N D"],
        states: Float[Tensor, "N G"],
        slot: int,
        blocks: Int[Tensor, "M"],
        before: Int[Tensor, "M"],
    ) -> Int[Tensor, "M"]:
        """The token of one slot of ``blocks`` after the token ``before``; their ``states`` advance in place."""
        state = self.prefix_gru.advance(target, states, blocks, before)
        token: Tensor = target.head(self._moved(hidden[blocks], state)).argmax(dim=-1)
        return token
