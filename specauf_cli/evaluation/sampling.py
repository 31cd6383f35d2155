"""The target's token at a position: argmax at temperature 0, a keyed draw above.

The draw's randomness depends on (seed, request, position) and nothing else, so generation in a batch, live verification
of a block and any other backend that asks for the token at a position get the same one. Their logits differ by rounding
(1e-5 in fp32), so a draw can still fall on two sides of a limit between tokens:

``inverse_cdf``: the token in whose part of the cumulated probabilities one uniform number falls. All limits between
tokens move a little, and the number is within rounding of one of them in about one draw of 30,000.
``gumbel``: the largest logit / temperature + Gumbel noise, a number for every token (Gumbel-max: Maddison et al., A*
Sampling, 2014). Rounding decides only if the two largest are that close, in none of 296,900 draws. It costs more with a
large vocabulary. Both counts and costs: benchmarks/draws.json.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from specauf_cli.config.schema import Draw


class Sampler:
    """Chooses the target's tokens for the requests of one benchmark at one temperature."""

    def __init__(
        self, temperature: float, seed: int, requests: Sequence[str], horizon: int, draw: Draw = "inverse_cdf"
    ) -> None:
        """``requests`` are their ids; ``horizon``: most tokens any of them emits, the overshoot included."""
        self.temperature, self.seed, self.requests, self.horizon = temperature, seed, requests, horizon
        self.by_noise = draw == "gumbel"
        self.uniforms = torch.empty(0)
        if temperature > 0 and not self.by_noise:
            self.uniforms = torch.stack([_uniforms(seed, r, horizon) for r in requests])

    def choose(
        self, logits: Float[Tensor, "B T V"], request: Int[Tensor, "B"], position: Int[Tensor, "B"]
    ) -> Int[Tensor, "B T"]:
        """Tokens of T consecutive completion positions from ``position`` on (0 is the first completion token)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        steps = position[:, None] + torch.arange(logits.shape[1], device=position.device)
        if self.by_noise:
            return (logits.double() / self.temperature + self._noise(request, steps, logits)).argmax(dim=-1)
        self.uniforms = self.uniforms.to(logits.device)
        u = self.uniforms[request[:, None], steps]
        cumulative = (logits.double() / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        chosen = torch.searchsorted(cumulative, u[..., None] * cumulative[..., -1:], right=True).squeeze(-1)
        return chosen.clamp(max=logits.shape[-1] - 1)

    def _noise(self, request: Int[Tensor, "B"], steps: Int[Tensor, "B T"], logits: Tensor) -> Float[Tensor, "B T V"]:
        """Standard Gumbel noise for every token at these positions."""
        rows = [
            [_uniforms(self.seed, self.requests[r], logits.shape[-1], position=step) for step in some]
            for r, some in zip(request.tolist(), steps.tolist(), strict=True)
        ]
        uniforms = torch.stack([torch.stack(row) for row in rows]).to(logits.device)
        return -(-uniforms.log()).log()


def _uniforms(seed: int, request: str, count: int, *, position: int = 0) -> Tensor:
    """``count`` uniforms in [0, 1), keyed by seed and request id (Philox counter-based generator, fp64): those of a
    request, or of one ``position`` in it."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{request}".encode()).digest()[:16], "little")
    generator = np.random.Philox(key=key, counter=position << 64)
    return torch.from_numpy(np.random.Generator(generator).random(count))
