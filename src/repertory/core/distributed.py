"""What methods need of the other processes: how many there are, gathered rows, and sums."""

from __future__ import annotations

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
