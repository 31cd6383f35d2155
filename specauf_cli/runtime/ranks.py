"""Several processes started by ``torchrun`` share every batch and add their sums before dividing.

    torchrun --nproc-per-node 2 -m specauf_cli train objective=auf

Each rank takes every n-th micro-batch. Anchors and order are drawn for the whole batch, so they do not depend on the
number of ranks; gradients, numerators and denominators are added over the ranks and divided once. The first rank writes
the files. In evaluation the prompts are distributed over the ranks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the settings read a rank's number, which needs no torch
    import torch
    from torch import Tensor

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
FIRST = RANK == 0
T = TypeVar("T")


def join(device: str) -> str:
    """Joins the other ranks, if there are any, and returns this rank's own device."""
    if WORLD == 1:
        return device
    import torch
    from torch import distributed

    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        # A long timeout, since the first rank may train a target meanwhile.
        distributed.init_process_group(backend, timeout=timedelta(hours=24))
    return device


def wait() -> None:
    """Returns when every rank has reached this call."""
    if WORLD > 1:
        from torch import distributed

        distributed.barrier()


def add(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the ranks, in one transfer. All of one dtype and device."""
    if WORLD == 1:
        return list(tensors)
    import torch
    from torch import distributed

    flat = torch.cat([t.flatten() for t in tensors])
    distributed.all_reduce(flat)
    pieces = flat.split([t.numel() for t in tensors])  # type: ignore[no-untyped-call]
    return [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)]


def largest(value: int, device: torch.device) -> int:
    """The largest value over the ranks: all stop when one is told to."""
    if WORLD == 1:
        return value
    import torch
    from torch import distributed

    largest_value = torch.tensor(value, device=device)
    distributed.all_reduce(largest_value, distributed.ReduceOp.MAX)
    return int(largest_value)


def share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th of the items: this rank's part."""
    return items[RANK::WORLD]


def collect(rows: Sequence[Sequence[int]], device: torch.device) -> list[list[int]]:
    """The rows of every rank, in the order of the items before ``share``. All ranks must call it."""
    if WORLD == 1:
        return [list(r) for r in rows]
    import torch
    from torch import distributed

    flat = torch.tensor([len(rows), *(len(r) for r in rows), *(x for r in rows for x in r)], device=device)
    widths = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(WORLD)]
    distributed.all_gather(widths, torch.tensor([len(flat)], device=device))
    widest = int(torch.stack(widths).max())
    padded = [torch.zeros(widest, dtype=torch.long, device=device) for _ in range(WORLD)]
    distributed.all_gather(padded, torch.nn.functional.pad(flat, (0, widest - len(flat))))
    dealt: list[list[list[int]]] = []
    for values in (p.tolist() for p in padded):
        count, at, mine = values[0], 1 + values[0], list[list[int]]()
        for length in values[1 : 1 + count]:
            mine.append(values[at : at + length])
            at += length
        dealt.append(mine)
    return [dealt[i % WORLD][i // WORLD] for i in range(sum(map(len, dealt)))]
