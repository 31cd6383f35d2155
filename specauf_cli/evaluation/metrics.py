"""From traces to numbers: pure functions, the same for every drafter. No credit ever enters here."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from specauf_cli.data.chat import encode
from specauf_cli.models.blocks import collate, labels_and_mask, previous_tokens, sample_anchors, valid_anchors
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.objectives.credits import support
from specauf_cli.objectives.loss import block_stats
from specauf_cli.schema import Corpus, InputError, Trace, nearest


def _engine(trace: Trace) -> tuple[float, float]:
    """Completion tokens / rounds of the request; mean over requests. What SGLang reports (completion_tokens / spec_verify_ct).

    Counts the prefill token, cuts at the end. Example: 8 tokens in 2 rounds and 4 in 3 -> (8/2 + 4/3) / 2 = 2.67.
    """
    return trace.tokens / len(trace.accepted), 1.0


def _pooled(trace: Trace) -> tuple[float, float]:
    """1 + accepted / rounds over all requests together, overshoot past the end counted: vLLM's counters.

    Example: accepted (4, 1) and (0, 1, 2) -> 1 + 8 / 5 = 2.60.
    """
    return float(sum(trace.accepted) + len(trace.accepted)), float(len(trace.accepted))


def _per_response(trace: Trace) -> tuple[float, float]:
    """Mean of A + 1 over the request's rounds, overshoot counted; mean over requests: z-lab's evaluation.

    Equal to it for answers of several tokens that end by themselves; of one cut at ``max_new_tokens`` z-lab counts
    another round where the round before filled it exactly.
    Example: accepted (4, 1) and (0, 1, 2) -> (3.5 + 2) / 2 = 2.75.
    """
    return 1 + sum(trace.accepted) / len(trace.accepted), 1.0


def _eos_truncated(trace: Trace) -> tuple[float, float]:
    """Tokens that rounds emitted, cut at the end, over rounds, all requests together: DeepSpec's.

    Equal to it for answers of several tokens that end by themselves; of one cut at ``max_new_tokens`` DeepSpec counts
    the last round whole, and another round where the round before filled it exactly. The prefill token comes from no
    round. Example: 8 tokens in 2 rounds and 4 in 3 -> (7 + 3) / 5 = 2.00.
    """
    return float(trace.tokens - 1), float(len(trace.accepted))


TAU: dict[str, Callable[[Trace], tuple[float, float]]] = {
    "engine": _engine,
    "pooled": _pooled,
    "per_response": _per_response,
    "eos_truncated": _eos_truncated,
}
"""Definitions of mean emitted length by name: each maps a request to (numerator, denominator), tau = sum / sum."""


def terms(traces: Sequence[Trace], definition: str = "engine") -> dict[str, tuple[float, float]]:
    """Numerator and denominator of tau per prompt, its turns added up (a conversation is one statistical cluster).

    Requests without a round (one token long) say nothing about a drafter and are left out. Errors: InputError for an
    unknown definition.
    """
    check_definition(definition)
    found: dict[str, tuple[float, float]] = {}
    for trace in traces:
        if trace.accepted:
            a, b = TAU[definition](trace)
            x, y = found.get(trace.prompt_id, (0.0, 0.0))
            found[trace.prompt_id] = (x + a, y + b)
    return found


def check_definition(name: str) -> None:
    """InputError for an unknown definition of tau."""
    if name not in TAU:
        raise InputError(f"unknown definition of tau {name!r}; valid: {', '.join(TAU)}.{nearest(name, TAU)}")


def tau(traces: Sequence[Trace], definition: str = "engine") -> float:
    """Mean emitted length by one of the definitions in use; NaN when no request had a round."""
    pairs = terms(traces, definition).values()
    total = sum(b for _, b in pairs)
    return sum(a for a, _ in pairs) / total if total else float("nan")


def survival(traces: Sequence[Trace]) -> list[float]:
    """P(A >= k) for k = 0 .. proposals, over all rounds: S_0 = 1 and 1 + S_1 + S_2 + ... is the pooled tau."""
    rounds = [a for t in traces for a in t.accepted]
    most = max((t.proposed for t in traces), default=0)
    return [sum(a >= k for a in rounds) / len(rounds) for k in range(most + 1)] if rounds else []


def alpha(traces: Sequence[Trace]) -> list[float]:
    """Conditional acceptance alpha_k = #{A >= k} / #{A >= k-1} for k = 1 .. proposals; NaN where no round got that far."""
    alive = survival(traces)
    return [b / a if a else float("nan") for a, b in pairwise(alive)]


def histogram(traces: Sequence[Trace]) -> list[int]:
    """Number of rounds with A = 0, 1, ..., proposals."""
    counts = [0] * (max((t.proposed for t in traces), default=0) + 1)
    for trace in traces:
        for a in trace.accepted:
            counts[a] += 1
    return counts


def full_blocks(traces: Sequence[Trace]) -> float:
    """Share of rounds whose every proposal was accepted."""
    rounds = [(a, t.proposed) for t in traces for a in t.accepted]
    return sum(a == p for a, p in rounds) / len(rounds) if rounds else float("nan")


def tokens_per_pass(traces: Sequence[Trace]) -> float:
    """Completion tokens per target pass, the prefill pass of each request included."""
    passes = sum(len(t.accepted) + 1 for t in traces)
    return sum(t.tokens for t in traces) / passes if passes else float("nan")


@torch.no_grad()
def heldout_blocks(
    target: Target, drafter: DFlash, corpus: Corpus, *, max_length: int, anchors: int, seed: int, batch_size: int
) -> dict[str, list[Any]]:
    """Block-mask sums on held-out conversations: how many slots were supervised and how many predicted right.

    ``valid`` and ``correct`` are per slot; ``reached`` and ``passed`` too, over the blocks whose earlier slots are all right (their
    ratio is alpha_k as training sees it, on the data's own tokens); ``ids``, ``id_valid`` and ``id_correct`` the same sums per example, for error
    bars. Anchors depend on ``seed`` and the data only, so every drafter is asked about the same blocks, and about the slots
    it may propose; the accuracy is sum(correct) / sum(valid), the paper's common-mask accuracy. Of several branches the last
    one, which drafts, is judged; it reads the conversation's own tokens, as in training.
    """
    slots = drafter.backbone.proposals
    examples, _ = encode(target.chat, corpus, max_length=max_length)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    valid = torch.zeros(slots, dtype=torch.long)
    correct = torch.zeros(slots, dtype=torch.long)
    reached, passed = torch.zeros_like(valid), torch.zeros_like(valid)
    by_id: dict[int, tuple[int, int]] = {}
    for begin in range(0, len(order), batch_size):
        batch = collate(examples, order[begin : begin + batch_size], target.chat.pad_id)
        drawn = []
        for i in batch.index:  # a generator per conversation: the batch it happens to be in must not matter
            own = torch.tensor([examples[i].supervised])
            drawn.append(sample_anchors(valid_anchors(own), anchors, torch.Generator().manual_seed((seed << 32) + i)))
        starts, real = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        labels, mask = labels_and_mask(batch.tokens, batch.supervised, starts, real, slots)
        tokens, starts = batch.tokens.to(target.device), starts.to(target.device)
        context = drafter.context(target.features(tokens))
        hidden = drafter.hidden(target, context, tokens.gather(1, starts), starts)[:, :, :slots]
        previous = previous_tokens(tokens, starts, slots)
        logits = drafter.logits(target, hidden.flatten(0, 1), previous.flatten(0, 1))[drafter.branches[-1]]
        stats, _ = block_stats(logits, labels.flatten(0, 1).to(target.device), mask.flatten(0, 1).to(target.device))
        valid += stats.mask.sum(dim=0).cpu()
        correct += stats.correct.sum(dim=0).cpu()
        alive = support(stats)
        reached += alive.sum(dim=0).cpu()
        passed += (alive & stats.correct).sum(dim=0).cpu()
        shape = (len(batch.index), -1)
        sums = zip(
            stats.mask.view(shape).sum(dim=1).tolist(), stats.correct.view(shape).sum(dim=1).tolist(), strict=True
        )
        by_id.update(zip(batch.index, sums, strict=True))
    rows = sorted(by_id)
    return {
        "valid": valid.tolist(),
        "correct": correct.tolist(),
        "reached": reached.tolist(),
        "passed": passed.tolist(),
        "ids": [examples[i].id for i in rows],
        "id_valid": [by_id[i][0] for i in rows],
        "id_correct": [by_id[i][1] for i in rows],
    }


def accuracy(heldout: Mapping[str, Sequence[Any]]) -> float:
    """Common-mask accuracy of the sums of ``heldout_blocks``."""
    total = sum(heldout["valid"])
    return sum(heldout["correct"]) / total if total else float("nan")
