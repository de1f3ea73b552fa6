"""What methods need of the other processes: how many there are, gathered rows, and sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together, 1 when there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's place among them, 0 when there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank; without gradient.

    Args:
        rows: `(n, ...)`; n may differ between processes, the other sizes may not.

    Returns:
        `(sum of n, ...)`, the same on every process.
    """
    size = world_size()
    if size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(torch.cat(counts).max())
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts)])


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the tensor itself when there is one process."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank, through which gradients flow back to where they came from.

    For losses that compare the examples of the whole batch: each process takes the mean over its own examples against
    the gathered ones. With gradients averaged over processes, as DDP does, that is the update of one process with the
    whole batch, where the processes have equally many rows.

    Args:
        rows: `(n, ...)`; n may differ between processes, the other sizes may not.

    Returns:
        `(sum of n, ...)`; the tensor itself when there is one process.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def own_rows(count: int, device: torch.device | None = None) -> slice:
    """Return where this process's rows stand among those of all processes.

    Args:
        count: number of this process's rows.
        device: where the rows are, since processes on GPUs talk through them; None for the CPU.

    >>> own_rows(4)
    slice(0, 4, None)
    """
    if world_size() == 1:
        return slice(0, count)
    counts = gather_rows(torch.tensor([count], device=device))
    start = int(counts[: rank()].sum())
    return slice(start, start + count)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = gather_rows(torch.tensor([len(rows)], device=rows.device))
        start = int(counts[: rank()].sum())
        ctx.own = slice(start, start + len(rows))
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.contiguous())[ctx.own]
