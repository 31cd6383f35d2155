"""The rounds of a drafter along given answers, and how these compare with what the target itself would say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specauf_cli.engines.verdict import Followed, followed
from specauf_cli.evaluation.lookup import LookupRule, replay_lookup
from specauf_cli.evaluation.replay import replay
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.store.referee import Sampling
from specauf_cli.types import Trajectory

Given = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Prompt, answer, and the target's own tokens after the answer as far as they are known."""


FILL = 32
"""Tokens after every answer, at least: the same for drafters of different blocks, so that features are the same."""


class RememberingTarget(Target):
    """A target that computes the features of a batch once: most faults are of the drafter, and leave them as they
    are."""

    def __init__(self, of: Target) -> None:
        self.__dict__.update(of.__dict__)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def features(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T F"]:
        """As the target's."""
        key = (*tokens.shape, *tokens.flatten().tolist())
        if key not in self._known:
            self._known[key] = super().features(tokens)
        return self._known[key]


@dataclass(frozen=True)
class Along:
    """What drafts along an answer: ``drafter``, prompt lookup by ``rule``, or neither."""

    target: Target
    drafter: DFlash | None
    rule: LookupRule | None
    batch_size: int

    @property
    def proposals(self) -> int:
        """Most tokens that a round proposes."""
        if self.drafter is not None:
            return self.drafter.backbone.proposals
        return self.rule.proposals if self.rule is not None else 0

    def follow(self, answers: Sequence[Given]) -> list[Followed]:
        """The rounds along each answer; none where nothing drafts."""
        return [rounds for rounds, _ in self._follow(answers, proposals=False)]

    def with_proposals(self, answer: Given) -> tuple[Followed, list[tuple[int, ...]]]:
        """The rounds along one answer, and the tokens that each of them proposed."""
        ((rounds, proposed),) = self._follow([answer], proposals=True)
        return rounds, proposed

    def _follow(self, answers: Sequence[Given], *, proposals: bool) -> list[tuple[Followed, list[tuple[int, ...]]]]:
        fill = [self.target.chat.pad_id] * max(FILL, self.proposals)
        walked = [
            Trajectory(str(i), 0, prompt, (*tokens, *tail, *fill), len(tokens), False)
            for i, (prompt, tokens, tail) in enumerate(answers)
        ]
        proposed: list[list[tuple[int, ...]]] = [[] for _ in walked]

        def keep(index: int, tokens: tuple[int, ...]) -> None:
            proposed[index].append(tokens)

        if self.drafter is not None:
            sure = self.drafter.least_confidence > 0  # then rounds propose fewer tokens, or none
            record = keep if proposals or sure else None
            traces = replay(self.target, self.drafter, walked, batch_size=self.batch_size, record=record)
            widths = [[self.proposals] * len(trace.accepted) for trace in traces]
            widths = [[len(tokens) for tokens in rounds] for rounds in proposed] if sure else widths
        elif self.rule is not None:
            traces = replay_lookup(self.rule, walked, keep)
            widths = [[len(tokens) for tokens in rounds] for rounds in proposed]
        else:
            return [(Followed((), (), False, 0), []) for _ in walked]
        return [
            (followed(trace, width, len(tokens) + len(tail)), rounds)
            for trace, width, rounds, (_, tokens, tail) in zip(traces, widths, proposed, answers, strict=True)
        ]


@torch.no_grad()
def first_other_token(
    target: Target, prompt: Sequence[int], tokens: Sequence[int]
) -> tuple[int, int, float, float] | None:
    """Where an answer is not greedy: index, the target's own token, the gap of the logits, the largest absolute logit.

    None: every token has the highest logit after those before it. One pass over prompt and answer.
    """
    whole = torch.tensor([[*prompt, *tokens[:-1]]], device=target.device)
    logits, _ = target.forward(whole, target.new_cache())
    rows = logits[0, len(prompt) - 1 :].float()
    gaps = rows.amax(dim=-1) - rows.gather(1, torch.tensor(tokens, device=rows.device)[:, None])[:, 0]
    other = (gaps > 0).nonzero()
    if not len(other):
        return None
    at = int(other[0])
    return at, int(rows[at].argmax()), float(gaps[at]), float(rows[at].abs().max())


@torch.no_grad()
def sampling(
    target: Target, answers: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float
) -> Sampling | None:
    """How far sampled answers, given with their prompts, are from draws of the target; None where nothing is random.

    Under the target's own sampling, -log p(y) minus the entropy has mean 0 at every token whatever came before, and
    the variance of -log p; the sums over all tokens give a standard normal z (martingale central limit theorem).
    """
    deviation = variance = 0.0
    count = 0
    for prompt, tokens in answers:
        whole = torch.tensor([[*prompt, *tokens[:-1]]], device=target.device)
        logits, _ = target.forward(whole, target.new_cache())
        log_p = (logits[0, len(prompt) - 1 :].double() / temperature).log_softmax(dim=-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(dim=-1)
        chosen = torch.tensor(tokens, device=log_p.device)[:, None]
        deviation += float((-log_p.gather(1, chosen)[:, 0] - entropy).sum())
        variance += float(((p * log_p**2).sum(dim=-1) - entropy**2).clamp(min=0).sum())
        count += len(tokens)
    return Sampling(count, round(deviation / math.sqrt(variance), 3)) if variance > 0 else None
