"""Weights moved for a while: what sharpness-aware methods share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repertory.core.distributed import sum_over_processes
from repertory.core.state import Run


def total_norm(tensors: Sequence[Tensor], run: Run | None = None) -> Tensor:
    """Return the Euclidean norm over all entries of all tensors, 0-d float32.

    Args:
        tensors: any shapes; an empty list has norm 0.
        run: given, the squares are summed over processes where each holds a shard.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    if not tensors:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).float())
    if run is not None and run.sharded:
        return sum_over_processes(norm.square()).sqrt()
    return norm


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], offsets: Sequence[Tensor]) -> Iterator[None]:
    """Add `offsets` to the parameters inside the block; afterwards they hold their old tensors, bit for bit.

    The sum goes to new memory and the old tensors are put back, so nothing is copied and nothing is subtracted.

    Args:
        parameters: the parameters to move.
        offsets: one tensor of the same shape for each.
    """
    originals = [parameter.data for parameter in parameters]
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
        layer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training and layer.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
