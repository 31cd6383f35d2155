"""A server that speaks vLLM's API around the live decoder, and a drafter that fits the target's own answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from helpers.engines import FakeVLLM
from specauf_cli.data.chat import Chat
from specauf_cli.evaluation.decode import Drafted, Nothing, PromptLookup, decode
from specauf_cli.evaluation.turns import Request
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Trajectory

Proposer = Drafted | Nothing | PromptLookup


class LiveVLLM(FakeVLLM):
    """Answers by decoding live, with whatever it is given: ``target`` and ``proposer`` may have a fault.

    ``render``: what it makes of the prompt that it is sent.
    """

    def __init__(
        self,
        chat: Chat,
        target: Target,
        proposer: Proposer,
        *,
        model: str = "model",
        drafter: str = "/models/drafter",
        render: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda prompt: prompt,
    ) -> None:
        super().__init__(chat, {}, model, drafter, per_request=True)
        self.target, self.proposer, self.render = target, proposer, render
        self.slots = [0] * proposer.proposals
        self.spec = proposer.proposals > 0
        self._one = threading.Lock()

    def generate(self, body: dict[str, Any]) -> Any:
        if self.limit(body) == 8:
            return super().generate(body)
        prompt = self.render(tuple(body["prompt"]))
        request = Request("x", "x", 0, prompt)
        with self._one:
            trace, tokens, _ = decode(
                self.target,
                self.proposer,
                request,
                temperature=body["temperature"],
                seed=body.get("seed", 0),
                max_new_tokens=self.limit(body),
            )
        finish = "stop" if trace.ended else "length"
        answer: dict[str, Any] = {
            "choices": [{"text": self.chat.text(tokens), "token_ids": list(tokens), "finish_reason": finish}],
            "usage": {"completion_tokens": len(tokens), "prompt_tokens": len(body["prompt"])},
        }
        if self.spec and self.per_request:
            answer["metrics"] = {"speculative_decoding": self.own_counts(trace.accepted)}
        with self.lock:
            self.totals["drafts"] += len(trace.accepted)
            self.totals["draft_tokens"] += trace.proposed * len(trace.accepted)
            self.totals["accepted"] += sum(trace.accepted)
            self.totals["success"] += 1
            self.slots = [n + sum(a > i for a in trace.accepted) for i, n in enumerate(self.slots)]
        return answer

    def own_counts(self, accepted: Sequence[int]) -> dict[str, Any]:
        """The metrics of one request."""
        most = self.proposer.proposals
        return {
            "num_spec_steps": len(accepted),
            "num_accepted_draft_tokens": sum(accepted),
            "num_draft_tokens": most * len(accepted),
            "acceptance_histogram": [sum(a == k for a in accepted) for k in range(most + 1)],
        }


def fitted(target: Target, drafter: DFlash, answers: Sequence[Trajectory], *, steps: int, lr: float = 3e-3) -> DFlash:
    """``drafter`` trained on every block of ``answers``: it accepts much, so that any fault changes its counts."""
    proposals = drafter.backbone.proposals
    width = max(len(t.prompt) + len(t.tokens) for t in answers)
    tokens = torch.full((len(answers), width), target.chat.pad_id)
    for row, t in enumerate(answers):
        whole = [*t.prompt, *t.tokens]
        tokens[row, : len(whole)] = torch.tensor(whole)
    features = target.features(tokens)
    most = min(t.length for t in answers) - 1
    starts = torch.tensor([len(t.prompt) for t in answers])
    anchors = starts[:, None] + torch.arange(most)
    labels = tokens.gather(1, (anchors[:, :, None] + torch.arange(1, proposals + 1)).flatten(1)).view(-1, proposals)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=lr)
    drafter.train()
    for _ in range(steps):
        context = drafter.context(features)
        hidden = drafter.hidden(target, context, tokens.gather(1, anchors), anchors)[:, :, :proposals]
        loss = F.cross_entropy(target.head(hidden).flatten(0, 2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return drafter.eval()


def varied_norms(drafter: DFlash, seed: int) -> DFlash:
    """``drafter`` with random k_norms, so that every layer's is its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in drafter.layers:
            norm = layer.self_attn.k_norm.weight
            norm.copy_(0.5 + 1.5 * torch.rand(norm.shape, generator=generator))
    return drafter
