"""A GRU over the tokens of a block: all at once where they are known, token by token where they are drafted."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specauf_cli.models.target import Target


class PrefixGRU(nn.GRU):
    """A GRU without biases on the target's embeddings, in the precision of its weights: a recurrence, and cheap."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    def __init__(self, width: int, state: int) -> None:
        """``width``: of the embedding; ``state``: G."""
        super().__init__(width, state, bias=False, batch_first=True)

    def after(self, target: Target, previous: Int[Tensor, "N K"]) -> Float[Tensor, "N K G"]:
        """The state after ``previous[:, : k + 1]``, for every k."""
        with torch.autocast(previous.device.type, enabled=False):
            states: Tensor = self(target.embed(previous).to(self.weight_ih_l0.dtype))[0]
        return states

    def advance(
        self, target: Target, states: Float[Tensor, "N G"], blocks: Int[Tensor, "M"], token: Int[Tensor, "M"]
    ) -> Float[Tensor, "M G"]:
        """The state of ``blocks`` after one more token each; ``states`` advance in place."""
        embedded = target.embed(token).to(states.dtype)
        state: Tensor = torch.gru_cell(embedded, states[blocks], self.weight_ih_l0, self.weight_hh_l0)
        states[blocks] = state
        return state
