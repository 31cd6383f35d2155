"""Several processes as one: what ``torchrun`` started shares every batch, and adds its sums before they are divided.

    torchrun --nproc-per-node 2 -m specauf_cli train objective=auf

Each rank takes every n-th micro-batch. Anchors and order are drawn for the whole batch, so they do not depend on the number of
ranks; gradients, numerators and denominators are added over the ranks and divided once. The first rank writes the files.
"""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
FIRST = RANK == 0


def join(device: str) -> str:
    """Joins the other ranks, if there are any, and returns this rank's own device."""
    if WORLD == 1:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=24))  # the first rank may train a target meanwhile
    return device


def wait() -> None:
    """Returns when every rank has come here."""
    if WORLD > 1:
        dist.barrier()


def add(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the ranks, in one transfer. All of one dtype and device."""
    if WORLD == 1:
        return list(tensors)
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    pieces = flat.split([t.numel() for t in tensors])  # type: ignore[no-untyped-call]
    return [p.view(t.shape) for p, t in zip(pieces, tensors, strict=True)]


def largest(value: int, device: torch.device) -> int:
    """The largest of the ranks' values: all stop when one was asked to."""
    if WORLD == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
