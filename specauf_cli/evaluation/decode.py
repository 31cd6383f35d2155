"""Live speculative decoding of one request: draft, verify in one target pass, accept, roll back."""

from collections.abc import Sequence

import torch

from specauf_cli.evaluation import tau
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.verify import accepted_prefix
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.runtime.progress import track
from specauf_cli.types import Trace, Trajectory


@torch.no_grad()
def decode(
    target: Target,
    drafter: DFlash,
    prompt: tuple[int, ...],
    *,
    prompt_id: str,
    turn: int,
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> tuple[Trace, tuple[int, ...]]:
    """Decodes one request with batch size 1 and returns its trace and the completion (cut at its end).

    Prefill gives the first token. Then, each round: the drafter proposes P tokens after the last committed one (the
    anchor); one target pass over [anchor, proposals] gives the target's own token at each of the P + 1 positions; the
    longest agreeing prefix and the target's next token are committed; the target's cache is cropped to what was
    committed. Ends at a stop token or at ``max_new_tokens``.
    """
    device, proposals = target.device, drafter.backbone.proposals
    sampler = Sampler(temperature, seed, [f"{prompt_id}#{turn}"], max_new_tokens + proposals + 1)
    row = torch.zeros(1, dtype=torch.long, device=device)
    cache = target.new_cache()
    logits, features = target.forward(torch.tensor([prompt], device=device), cache, last_only=True)
    context = drafter.context(features)
    anchor = sampler.choose(logits, row, row)
    emitted, accepted = [int(anchor)], list[int]()
    while not _ended(emitted, target, max_new_tokens):
        position = len(prompt) + len(emitted) - 1
        proposal = drafter.draft(target, context, anchor, torch.tensor([[position]], device=device))[:, 0]
        logits, features = target.forward(torch.cat([anchor, proposal], dim=1), cache)
        truth = sampler.choose(logits, row, row + len(emitted))
        count = int(accepted_prefix(proposal, truth[:, :proposals]))
        if count < proposals:
            cache.crop(count - proposals)  # negative: how many of the newest tokens to forget
        context = context.extend(drafter.context(features[:, : count + 1], start=position))
        anchor = truth[:, count : count + 1]
        accepted.append(count)
        emitted += truth[0, : count + 1].tolist()
    length = _length(emitted, target, max_new_tokens)
    ended = emitted[length - 1] in target.chat.stop_ids
    return Trace(prompt_id, turn, tuple(accepted), proposals, length, ended), tuple(emitted[:length])


def decode_all(
    target: Target,
    drafter: DFlash,
    requests: Sequence[Trajectory],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> list[tuple[Trace, tuple[int, ...]]]:
    """Decodes the request of every trajectory, one after another: its trace and its completion."""
    result: list[tuple[Trace, tuple[int, ...]]] = []
    with track("decoding live", len(requests)) as show:
        for t in requests:
            result.append(
                decode(
                    target,
                    drafter,
                    t.prompt,
                    prompt_id=t.prompt_id,
                    turn=t.turn,
                    temperature=temperature,
                    seed=seed,
                    max_new_tokens=max_new_tokens,
                )
            )
            show(len(result), f"tau {tau.mean([trace for trace, _ in result]):.2f}")
    return result


def _length(emitted: list[int], target: Target, limit: int) -> int:
    """Completion length: up to and including the first stop token, at most ``limit``."""
    stop = next((i + 1 for i, token in enumerate(emitted) if token in target.chat.stop_ids), len(emitted))
    return min(stop, limit)


def _ended(emitted: list[int], target: Target, limit: int) -> bool:
    return len(emitted) >= limit or any(token in target.chat.stop_ids for token in emitted)
