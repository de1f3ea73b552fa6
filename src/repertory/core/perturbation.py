"""Weights moved for a while: what sharpness-aware methods share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repertory.core.sharded import is_sharded, local


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all entries of all tensors, 0-d float32.

    Args:
        tensors: any shapes; an empty list has norm 0. Those that are spread over processes count whole.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).float())
    return norm.full_tensor() if is_sharded(norm) else norm


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], offsets: Sequence[Tensor]) -> Iterator[None]:
    """Add `offsets` to the parameters inside the block; afterwards they hold their old tensors, bit for bit.

    The sum goes to new memory and the old tensors are put back, so nothing is copied and nothing is subtracted. Sharded
    parameters are changed in place instead, and copied, since whole ones are gathered from that memory.

    Args:
        parameters: the parameters to move.
        offsets: one tensor of the same shape for each.
    """
    originals = [parameter.data for parameter in parameters]
    if any(map(is_sharded, originals)):
        shards = [local(original) for original in originals]
        copies = [shard.clone() for shard in shards]
        try:
            torch._foreach_add_(shards, [local(offset) for offset in offsets])
            yield
        finally:
            torch._foreach_copy_(shards, copies)
        return
    with torch.no_grad():
        moved = torch._foreach_add(originals, list(offsets)) if originals else []
    try:
        for parameter, value in zip(parameters, moved):
            parameter.data = value
        yield
    finally:
        for parameter, value in zip(parameters, originals):
            parameter.data = value


@contextmanager
def frozen_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Keep running statistics of normalisation layers unchanged inside the block; batch statistics are still used."""
    layers = [
        (layer, layer.momentum)
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training and layer.track_running_stats
    ]
    for layer, _ in layers:
        layer.track_running_stats = False
        # Instance norm updates its statistics all the same, so they are given no weight.
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in layers:
            layer.track_running_stats, layer.momentum = True, momentum
