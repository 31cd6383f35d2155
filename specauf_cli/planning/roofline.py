"""The cost ratio of a round on a named GPU, from its data sheet: the floor of R, so the most that tau / R can be.

A pass reads every weight once and multiplies it with every token, so it takes the longer of bytes / bandwidth and
operations / peak. Nothing else is counted: no KV cache, no kernel launch, no sampling, no scheduler. A real R is
larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from specauf_cli.config.schema import BackboneConfig, SizesConfig
from specauf_cli.models.sizes import drafter_parameters, layer_parameters
from specauf_cli.models.target import taps_of
from specauf_cli.planning.plan import gpu_of

BANDWIDTH: Mapping[str, float] = {
    "b200": 8.0e12,  # NVIDIA DGX B200 data sheet: 64 TB/s of eight
    "h200": 4.8e12,  # NVIDIA H200 (SXM) data sheet
    "h100": 3.35e12,  # NVIDIA H100 (SXM) data sheet
    "h100-pcie": 2.0e12,  # NVIDIA H100 (PCIe) data sheet
    "a100": 2.039e12,  # NVIDIA A100 80GB (SXM) data sheet
    "l40s": 0.864e12,  # NVIDIA L40S data sheet
    "rtx4090": 1.008e12,  # NVIDIA Ada architecture paper
}
"""Bytes a second between memory and one card of ``planning.plan.GPUS``."""
BYTES = 2
"""Of a weight: bf16."""


@dataclass(frozen=True)
class Roofline:
    """Least seconds of a plain step, a verification pass and a draft at one batch size, and their ratio."""

    plain: float
    verify: float
    draft: float

    @property
    def ratio(self) -> float:
        """The floor of R."""
        return (self.draft + self.verify) / self.plain


def roofline(
    gpu: str,
    target: SizesConfig,
    taps: tuple[int, ...] | int | str,
    backbone: BackboneConfig,
    *,
    proposals: int,
    batch: int,
) -> Roofline:
    """The floor of a round of ``backbone`` for a target of these sizes. Errors: InputError for an unknown card.

    The head is the target's own, read in a draft too. Of a block all slots are computed, whatever is proposed of them.
    """
    peak, _ = gpu_of(gpu)
    bandwidth = BANDWIDTH[gpu.lower()]
    head = target.vocab_size * target.hidden_size
    drafter = sum(drafter_parameters(target, backbone, len(taps_of(taps, target.layers))).values()) + head

    def seconds(parameters: int, tokens: int, read: int | None = None) -> float:
        return max(BYTES * (read or parameters) / bandwidth, 2.0 * parameters * tokens / peak)

    def a_pass(tokens: int) -> float:
        """Of a mixture of experts the tokens of a pass read different ones, every expert once at most."""
        every = replace(target, experts_per_token=min(target.experts, tokens * target.experts_per_token))
        used, read = (head + target.layers * layer_parameters(x, active=True) for x in (target, every))
        return seconds(used, tokens, read)

    return Roofline(
        plain=a_pass(batch), verify=a_pass(batch * (proposals + 1)), draft=seconds(drafter, batch * backbone.block_size)
    )
