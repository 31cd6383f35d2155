"""A server that speaks vLLM's API around the live decoder, and a drafter that fits the target's own answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from helpers.engines import FakeSGLang, FakeVLLM
from specauf_cli.data.chat import Chat
from specauf_cli.evaluation.decode import Drafted, Nothing, PromptLookup, decode
from specauf_cli.evaluation.lookup import LookupIndex
from specauf_cli.evaluation.turns import Request
from specauf_cli.models.dflash import DFlash
from specauf_cli.models.target import Target
from specauf_cli.types import Trajectory

Proposer = Drafted | Nothing | PromptLookup


class LiveVLLM(FakeVLLM):
    """Answers by decoding live, with whatever it is given: ``target`` and ``proposer`` may have a fault.

    ``render``: what it makes of the prompt that it is sent; ``heat``: what it multiplies a temperature by;
    ``counts_empty``: it counts rounds without a draft, as vLLM does not; ``detailed``: it counts round by round.
    """

    heat = 1.0
    counts_empty = True
    detailed = False

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
        with self._one:
            trace, tokens, _ = decode(
                self.target,
                self.proposer,
                Request("x", "x", 0, prompt),
                temperature=self.heat * body["temperature"],
                seed=body.get("seed", 0),
                max_new_tokens=self.limit(body),
            )
        accepted = self.counted(prompt, tokens, trace.accepted)
        finish = "stop" if trace.ended else "length"
        answer: dict[str, Any] = {
            "choices": [{"text": self.chat.text(tokens), "token_ids": list(tokens), "finish_reason": finish}],
            "usage": {"completion_tokens": len(tokens), "prompt_tokens": len(body["prompt"])},
        }
        if self.spec and self.per_request:
            answer["metrics"] = {"speculative_decoding": self.own_counts(accepted)}
        with self.lock:
            self.totals["drafts"] += len(accepted)
            self.totals["draft_tokens"] += trace.proposed * len(accepted)
            self.totals["accepted"] += sum(accepted)
            self.totals["success"] += 1
            self.slots = [n + sum(a > i for a in accepted) for i, n in enumerate(self.slots)]
        return answer

    def counted(self, prompt: Sequence[int], tokens: Sequence[int], accepted: Sequence[int]) -> list[int]:
        """The rounds that it counts."""
        if self.counts_empty or not isinstance(self.proposer, PromptLookup):
            return list(accepted)
        index = LookupIndex(self.proposer.rule)
        index.extend([*prompt, tokens[0]])
        at, kept = 1, []
        for a in accepted:
            kept += [a] if index.propose() else []
            index.extend(tokens[at : at + a + 1])
            at += a + 1
        return kept

    def own_counts(self, accepted: Sequence[int]) -> dict[str, Any]:
        """The metrics of one request."""
        most = self.proposer.proposals
        return {
            "num_spec_steps": len(accepted),
            "num_accepted_draft_tokens": sum(accepted),
            "num_draft_tokens": most * len(accepted),
            "acceptance_histogram": [sum(a == k for a in accepted) for k in range(most + 1)],
            "per_step_accepted": list(accepted) if self.detailed else None,
        }


class LiveSGLang(FakeSGLang):
    """The same as SGLang; ``cuts``: of the last round it counts only what the answer kept of it."""

    def __init__(self, chat: Chat, target: Target, proposer: Proposer, *, cuts: bool) -> None:
        super().__init__(chat, {}, "model", "/models/drafter")
        self.target, self.proposer, self.cuts = target, proposer, cuts
        self.info = {"speculative_num_draft_tokens": proposer.proposals + 1}
        self._one = threading.Lock()

    def generate(self, body: dict[str, Any]) -> Any:
        if self.limit(body) == 8:
            return super().generate(body)
        temperature = body["sampling_params"]["temperature"]
        with self._one:
            request = Request("x", "x", 0, tuple(body["input_ids"]))
            trace, tokens, _ = decode(
                self.target, self.proposer, request, temperature=temperature, seed=0, max_new_tokens=self.limit(body)
            )
        accepted = list(trace.accepted)
        if self.cuts and accepted:
            before = 1 + sum(a + 1 for a in accepted[:-1])
            accepted[-1] = len(tokens) - before - 1
        histogram = [sum(a == k for a in accepted) for k in range(trace.proposed + 1)]
        meta = {
            "completion_tokens": len(tokens),
            "prompt_tokens": len(body["input_ids"]),
            "finish_reason": {"type": "stop" if trace.ended else "length"},
            "spec_verify_ct": len(accepted),
            "spec_accept_length": len(tokens) / len(accepted),
            "spec_accept_histogram": histogram,
            "spec_num_correct_drafts": sum(accepted),
        }
        return {"text": self.chat.text(tokens), "output_ids": list(tokens), "meta_info": meta}


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
