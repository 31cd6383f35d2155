"""Layers whose weights do not fit on one device, spread over the ranks (PyTorch's FSDP2).

Every rank keeps its part of each layer and of that layer's optimiser state. The ranks gather a layer's weights when it
computes and drop them afterwards; its gradients are added up and dealt out during the backward pass. So all ranks must
make the same passes in the same order, and what is done to a whole tensor here is done by all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from specauf_cli.runtime import ranks

if TYPE_CHECKING:  # a second to import, which only several ranks need
    from torch.distributed.tensor import DTensor


def shard(layers: Iterable[nn.Module], device: str, *, keep: Collection[Tensor] = ()) -> None:
    """Moves ``layers`` to the ranks' devices, one after the other, each in parts; ``keep`` stays whole in every rank.
    Gradients of what is in parts come out of a backward pass as sums over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(torch.device(device).type, (ranks.WORLD,))
    for layer in layers:
        own = {p for p in layer.parameters() if any(p is whole for whole in keep)}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=own)
        assert isinstance(layer, FSDPModule)  # what fully_shard makes of it
        layer.set_gradient_divide_factor(1.0)  # sums, which are divided once, by the weight of the whole batch
        layer.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this rank has only a part of it."""
    if ranks.WORLD == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks where they have parts of it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of ``tensor``, which every rank has: weights of a sharded ``parameter``, or their moments."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def add(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the ranks; those of sharded layers are summed already."""
    summed = iter(ranks.add([g for g in gradients if not is_sharded(g)]))
    return [g if is_sharded(g) else next(summed) for g in gradients]


def clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scales the gradients so that their common norm is at most ``limit``; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not any(map(is_sharded, gradients)):
        return nn.utils.clip_grad_norm_(parameters, limit)
    own, squares = list[Tensor](), {True: torch.zeros(()), False: torch.zeros(())}
    for gradient in gradients:
        sharded = is_sharded(gradient)
        own.append(gradient.to_local() if is_sharded(gradient) else gradient)
        squares[sharded] = squares[sharded].to(own[-1].device) + own[-1].square().sum()
    norm = (ranks.add([squares[True]])[0] + squares[False]).sqrt()
    if limit < math.inf:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in own:
            gradient.mul_(factor)
    return norm
