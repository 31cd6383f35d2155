"""Live speculative decoding of one request: draft, verify in one target pass, accept, roll back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specauf_cli.config.schema import Draw
from specauf_cli.evaluation import tau
from specauf_cli.evaluation.lookup import LookupIndex, LookupRule
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.turns import Request
from specauf_cli.evaluation.verify import accepted_prefix
from specauf_cli.models.dflash import NOTHING, Context, DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime.progress import track
from specauf_cli.types import Trace, Trajectory


class Nothing:
    """Plain decoding. The other proposers have the same attributes and methods.

    ``proposals``: the most that a round proposes; ``reads_features``: whether the target's passes must return them.
    """

    proposals = 0
    reads_features = False

    def begin(self, prompt: Sequence[int], features: Tensor | None) -> None:
        """Forgets the request before and reads a prompt: nothing to read."""

    def propose(self, anchor: Int[Tensor, "1 1"], position: int) -> Int[Tensor, "1 P"]:
        """The draft after ``anchor``, the token at absolute ``position``: none."""
        return anchor[:, :0]

    def commit(self, tokens: Sequence[int], features: Tensor | None, position: int) -> None:
        """Takes in what a pass emitted, with the features of the positions from ``position`` on that it settled."""


class PromptLookup:
    """Proposals of a ``LookupIndex``."""

    reads_features = False

    def __init__(self, rule: LookupRule) -> None:
        self.rule, self.proposals = rule, rule.proposals
        self._index = LookupIndex(rule)

    def begin(self, prompt: Sequence[int], features: Tensor | None) -> None:
        """A new index of the prompt."""
        self._index = LookupIndex(self.rule)
        self._index.extend(prompt)

    def propose(self, anchor: Int[Tensor, "1 1"], position: int) -> Int[Tensor, "1 P"]:
        """What followed the last tokens before."""
        return torch.tensor([self._index.propose()], dtype=anchor.dtype, device=anchor.device).view(1, -1)

    def commit(self, tokens: Sequence[int], features: Tensor | None, position: int) -> None:
        """Extends the index."""
        self._index.extend(tokens)


class Drafted:
    """Proposals of a trained drafter, with its context in a cache."""

    reads_features = True

    def __init__(self, target: Target, drafter: DFlash) -> None:
        self.target, self.drafter, self.proposals = target, drafter, drafter.backbone.proposals
        self._context = Context([], [])

    def begin(self, prompt: Sequence[int], features: Tensor | None) -> None:
        """The context of the prompt."""
        assert features is not None
        self._context = self.drafter.context(features)

    def propose(self, anchor: Int[Tensor, "1 1"], position: int) -> Int[Tensor, "1 P"]:
        """One draft."""
        positions = torch.tensor([[position]], device=anchor.device)
        drafted = self.drafter.draft(self.target, self._context, anchor, positions)[:, 0]
        return drafted[:, : int((drafted != NOTHING).sum())]  # what follows the first NOTHING is nothing too

    def commit(self, tokens: Sequence[int], features: Tensor | None, position: int) -> None:
        """Extends the context."""
        if features is not None:
            self._context = self._context.extend(self.drafter.context(features, start=position))


Proposer = Nothing | PromptLookup | Drafted


@dataclass(frozen=True)
class Clock:
    """Seconds of one request, as in ``TimedRequest``."""

    prefill: float
    draft: float
    verify: float
    rest: float
    decode: float


@torch.no_grad()
def decode(
    target: Target,
    proposer: Proposer,
    request: Request | Trajectory,
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    draw: Draw = "inverse_cdf",
) -> tuple[Trace, tuple[int, ...], Clock]:
    """Decodes one request with batch size 1: its trace, the completion (cut at its end), and the seconds.

    Prefill gives the first token; what the proposer makes of the prompt counts as prefill too. Then, each round: P
    tokens are proposed after the last committed one (the anchor); one target pass over [anchor, proposals] gives the
    target's own token at each of the P + 1 positions; the longest agreeing prefix and the target's next token are
    committed; the target's cache is cropped to what was committed. Ends at a stop token or at ``max_new_tokens``.
    """
    device, stop, prompt = target.device, target.chat.stop_ids, request.prompt
    horizon = max_new_tokens + proposer.proposals + 1
    sampler = Sampler(temperature, seed, [f"{request.prompt_id}#{request.turn}"], horizon, draw)
    row = torch.zeros(1, dtype=torch.long, device=device)
    cache = target.new_cache()
    begin = now_on(device)
    logits, features = target_pass(target, torch.tensor([prompt], device=device), cache, proposer.reads_features, True)
    anchor = sampler.choose(logits, row, row)
    emitted, accepted = [int(anchor)], list[int]()
    proposer.begin(prompt, features)
    proposer.commit(emitted, None, len(prompt))
    started = now_on(device)
    draft = verify = rest = 0.0
    while len(emitted) < max_new_tokens and not any(token in stop for token in emitted):
        position, first = len(prompt) + len(emitted) - 1, now_on(device)
        proposal = proposer.propose(anchor, position)
        second = now_on(device)
        logits, features = target_pass(target, torch.cat([anchor, proposal], dim=1), cache, proposer.reads_features)
        truth = sampler.choose(logits, row, row + len(emitted))
        third = now_on(device)
        width = proposal.shape[1]
        count = int(accepted_prefix(proposal, truth[:, :width]))
        if count < width:
            cache.crop(count - width)  # negative: how many of the newest tokens to forget
        anchor = truth[:, count : count + 1]
        new = truth[0, : count + 1].tolist()
        proposer.commit(new, None if features is None else features[:, : count + 1], position)
        accepted.append(count)
        emitted += new
        fourth = now_on(device)
        draft, verify, rest = draft + second - first, verify + third - second, rest + fourth - third
    clock = Clock(started - begin, draft, verify, rest, now_on(device) - started)
    length = next((i + 1 for i, token in enumerate(emitted) if token in stop), len(emitted))
    length = min(length, max_new_tokens)
    ended = emitted[length - 1] in stop
    trace = Trace(request.prompt_id, request.turn, tuple(accepted), proposer.proposals, length, ended)
    return trace, tuple(emitted[:length]), clock


def decode_all(
    target: Target,
    proposer: Proposer,
    requests: Sequence[Trajectory],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    draw: Draw = "inverse_cdf",
) -> list[tuple[Trace, tuple[int, ...]]]:
    """Decodes the request of every trajectory, one after another: its trace and its completion."""
    result: list[tuple[Trace, tuple[int, ...]]] = []
    with track("decoding live", len(requests)) as show:
        for request in requests:
            trace, tokens, _ = decode(
                target, proposer, request, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, draw=draw
            )
            result.append((trace, tokens))
            show(len(result), f"tau {tau.mean([trace for trace, _ in result]):.2f}")
    return result


def target_pass(
    target: Target, tokens: Int[Tensor, "B T"], cache: Any, reads_features: bool, last_only: bool = False
) -> tuple[Float[Tensor, "B L V"], Tensor | None]:
    """A pass over new tokens; features are collected only where they are read, plain decoding has no use for them."""
    if reads_features:
        return target.forward(tokens, cache, last_only=last_only)
    return target.logits(tokens, cache, last_only=last_only), None


def now_on(device: torch.device) -> float:
    """Seconds, after all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
