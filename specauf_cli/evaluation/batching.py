"""Continuous batching: rows of the batch that have ended are replaced by the next requests while the others go on, so
that long answers do not hold up the rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from specauf_cli.config.schema import Draw
from specauf_cli.evaluation.sampling import Sampler
from specauf_cli.evaluation.turns import Request
from specauf_cli.models.target import Target
from specauf_cli.types import Trajectory

PATIENCE = 8
"""Rows are replaced once one in eight of the batch has ended: a prefill of one prompt costs nearly as much as of a
few."""


def answers(
    target: Target,
    requests: Sequence[Request],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    tail: int,
    batch_size: int,
    draw: Draw = "inverse_cdf",
) -> Iterator[tuple[Request, Trajectory]]:
    """Yields every request with the target's own answer as soon as it has ended; they begin in the order of
    ``requests``, and end in any.

    ``tail`` tokens are generated past the end of an answer. In fp32 the tokens are those of every request alone, up to
    ties within rounding; draws at temperature > 0 are keyed by ``Sampler``.
    """
    sampler = Sampler(temperature, seed, [r.id for r in requests], max_new_tokens + tail, draw)
    batch = Batch(target, requests, sampler)
    waiting = iter(range(len(requests)))
    while True:
        over = [row for row in batch.rows if row.over(tail)]
        if len(over) >= min(max(1, batch_size // PATIENCE), len(batch.rows)):
            for row in over:
                yield requests[row.request], _trajectory(target, requests[row.request], row, tail)
            kept = [i for i, row in enumerate(batch.rows) if not row.over(tail)]
            batch.replace(kept, list(islice(waiting, batch_size - len(kept))))
            if not batch.rows:
                return
        else:
            batch.step()
        for row in batch.rows:
            row.end(target.chat.stop_ids, max_new_tokens)


@dataclass
class Row:
    """An answer in the making: the index of its request, its tokens, and its length once it has ended (0 before)."""

    request: int
    tokens: list[int] = field(default_factory=list)
    length: int = 0

    def end(self, stop: frozenset[int], max_new_tokens: int) -> None:
        """Notes the end of the answer if the newest token is the end."""
        if not self.length and (self.tokens[-1] in stop or len(self.tokens) == max_new_tokens):
            self.length = len(self.tokens)

    def over(self, tail: int) -> bool:
        """True once the answer has ended and its tail is there."""
        return self.length > 0 and len(self.tokens) >= self.length + tail


class Batch:
    """Rows in the middle of their answers, with one KV cache.

    Every row ends in the last column of the cache and has no gaps: the first column of a row is what differs, and
    ``mask`` is 1 from there on. So columns of one row are as far apart as its positions, which is what a sliding window
    counts.
    """

    def __init__(self, target: Target, requests: Sequence[Request], sampler: Sampler) -> None:
        self.target, self.requests, self.sampler = target, requests, sampler
        self.rows: list[Row] = []
        self.cache = target.new_cache()
        self.mask = torch.ones(0, 0, dtype=torch.long, device=target.device)
        self.newest = torch.zeros(0, 1, dtype=torch.long, device=target.device)

    def step(self) -> None:
        """One more token for every row."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        # A row that is over and waits for its replacement runs on, but not beyond the last position there is.
        positions = (self.mask.sum(dim=1, keepdim=True) - 1).clamp(max=self.target.context_length - 1)
        logits = self.target.logits(self.newest, self.cache, attention_mask=self.mask, position_ids=positions)
        self.newest = self._choose(self.rows, logits)

    def replace(self, kept: Sequence[int], requests: Sequence[int]) -> None:
        """Only the rows ``kept`` stay; ``requests`` join them, with the first token of each answer."""
        self.rows = [self.rows[i] for i in kept]
        lengths = [int(n) for n in self.mask.sum(dim=1)[list(kept)]]
        prompts = [self.requests[i].prompt for i in requests]
        width = max([*lengths, *map(len, prompts)], default=0)
        self.mask, self.newest = _aligned(self.mask[list(kept)], width, dim=1), self.newest[list(kept)]
        for layer in self.cache.layers:
            layer.keys = _aligned(layer.keys[list(kept)], width, dim=2)
            layer.values = _aligned(layer.values[list(kept)], width, dim=2)
        if requests:
            self._join([Row(i) for i in requests], prompts, width)

    def _join(self, rows: list[Row], prompts: Sequence[Sequence[int]], width: int) -> None:
        """Prefill of ``prompts``, left-padded, whose cache is then put below that of the other rows."""
        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self.target.chat.pad_id, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, prompt in enumerate(prompts):
            tokens[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        mask, cache = mask.to(self.target.device), self.target.new_cache()
        logits = self.target.logits(
            tokens.to(self.target.device),
            cache,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            last_only=True,
        )
        self.newest = torch.cat([self.newest, self._choose(rows, logits)])
        self.mask = torch.cat([self.mask, _aligned(mask, width, dim=1)])
        if not self.rows:
            self.cache = cache
        else:
            for layer, new in zip(self.cache.layers, cache.layers, strict=True):
                layer.keys = torch.cat([layer.keys, _aligned(new.keys, width, dim=2)])
                layer.values = torch.cat([layer.values, _aligned(new.values, width, dim=2)])
        self.rows += rows

    def _choose(self, rows: Sequence[Row], logits: Float[Tensor, "B 1 V"]) -> Int[Tensor, "B 1"]:
        """The next token of ``rows``. What a row that is over gets until it is replaced is never read."""
        requests = torch.tensor([row.request for row in rows], device=logits.device)
        positions = torch.tensor([len(row.tokens) for row in rows], device=logits.device)
        chosen = self.sampler.choose(logits, requests, positions.clamp(max=self.sampler.horizon - 1))
        for row, token in zip(rows, chosen[:, 0].tolist(), strict=True):
            row.tokens.append(token)
        return chosen


def _aligned(x: Tensor, width: int, dim: int) -> Tensor:
    """``x`` with ``width`` entries in ``dim``: the last ones of ``x``, after zeros if it has fewer."""
    size = x.shape[dim]
    if size >= width:
        return x.narrow(dim, size - width, width)
    return torch.cat([x.new_zeros(*x.shape[:dim], width - size, *x.shape[dim + 1 :]), x], dim=dim)


def _trajectory(target: Target, request: Request, row: Row, tail: int) -> Trajectory:
    ended = row.tokens[row.length - 1] in target.chat.stop_ids
    tokens = tuple(row.tokens[: row.length + tail])
    return Trajectory(request.prompt_id, request.turn, request.prompt, tokens, row.length, ended)
