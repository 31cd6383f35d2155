"""The target's token at a position: argmax at temperature 0, a keyed draw at temperature 1.

The draw's randomness depends on (seed, request, position) and nothing else, so generation in a batch, live verification
of a block and any other backend that asks for the token at a position get the same one.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Sampler:
    """Chooses the target's tokens for the requests of one benchmark at one temperature."""

    def __init__(self, temperature: float, seed: int, requests: Sequence[str], horizon: int) -> None:
        """``requests`` are their ids; ``horizon``: most tokens any of them emits, the overshoot included."""
        self.temperature, self.horizon = temperature, horizon
        self.uniforms = torch.empty(0)
        if temperature > 0:
            self.uniforms = torch.stack([_uniforms(seed, r, horizon) for r in requests])

    def choose(
        self, logits: Float[Tensor, "B T V"], request: Int[Tensor, "B"], position: Int[Tensor, "B"]
    ) -> Int[Tensor, "B T"]:
        """Tokens of T consecutive completion positions from ``position`` on (0 is the first completion token)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        steps = position[:, None] + torch.arange(logits.shape[1], device=position.device)
        self.uniforms = self.uniforms.to(logits.device)
        u = self.uniforms[request[:, None], steps]
        cumulative = (logits.double() / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        chosen = torch.searchsorted(cumulative, u[..., None] * cumulative[..., -1:], right=True).squeeze(-1)
        return chosen.clamp(max=logits.shape[-1] - 1)


def _uniforms(seed: int, request: str, count: int) -> Tensor:
    """``count`` uniforms in [0, 1), keyed by seed and request id (Philox counter-based generator, fp64)."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{request}".encode()).digest()[:16], "little")
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))
