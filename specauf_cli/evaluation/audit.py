"""Losslessness: fp32 must give the target's own output exactly; in bf16 every divergence is measured as regret.

In fp32, verifying k + 1 tokens and decoding one token pick the same argmax unless two logits tie within rounding.
In bf16 they often differ, and equality says little: what matters is how much worse the emitted token was than the best
one, by the target's own fp32 logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specauf_cli.evaluation.decode import Drafted, decode_all
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Trajectory


@dataclass(frozen=True)
class Report:
    """``identical`` of ``requests`` outputs equal the fp32 greedy trajectory. ``regrets``: for every emitted token that
    is not the fp32 argmax after the same prefix, the gap to the argmax's logit; ``tokens`` emitted in all."""

    requests: int
    identical: int
    tokens: int
    regrets: tuple[float, ...]

    def line(self, name: str) -> str:
        """One line for the terminal."""
        text = f"{name}: {self.identical} of {self.requests} outputs equal the target's own greedy output"
        if not self.regrets:
            return f"{text}; every one of {self.tokens} tokens is the fp32 argmax"
        worst, mean = max(self.regrets), sum(self.regrets) / len(self.regrets)
        return (
            f"{text}; {len(self.regrets)} of {self.tokens} tokens are not the fp32 argmax, regret mean {mean:.4f}, "
            f"largest {worst:.4f} (logits)"
        )


def audit(
    exact: Target, target: Target, drafter: DFlash, trajectories: Sequence[Trajectory], *, max_new_tokens: int
) -> Report:
    """Decodes every request live at T=0 with ``target`` and compares its output with ``exact``, the same weights in
    fp32."""
    identical, tokens, regrets = 0, 0, list[float]()
    proposer = Drafted(target, drafter)
    decoded = decode_all(target, proposer, trajectories, temperature=0.0, seed=0, max_new_tokens=max_new_tokens)
    for t, (_, emitted) in zip(trajectories, decoded, strict=True):
        identical += emitted == t.tokens[: t.length]
        tokens += len(emitted)
        regrets += _regrets(exact, t.prompt, emitted)
    return Report(len(trajectories), identical, tokens, tuple(regrets))


@torch.no_grad()
def _regrets(exact: Target, prompt: tuple[int, ...], emitted: tuple[int, ...]) -> list[float]:
    """Logit gaps of the emitted tokens that are not the argmax, in one fp32 pass over prompt and completion."""
    whole = torch.tensor([[*prompt, *emitted[:-1]]], device=exact.device)
    logits, _ = exact.forward(whole, exact.new_cache())
    rows = logits[0, len(prompt) - 1 :].float()
    gaps = rows.amax(dim=-1) - rows.gather(1, torch.tensor(emitted, device=rows.device)[:, None])[:, 0]
    return [g for g in gaps.tolist() if g > 0]
