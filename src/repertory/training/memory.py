"""Peak memory of a step, in bytes of tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Adds up the storages that operations create, and takes them off when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, new=True)
        return result

    def _note(self, values: Any, new: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage(), new)

    def _add(self, storage: Any, new: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if new else 0
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Measure the most bytes of new tensors alive at once inside the block.

    Args:
        device: on CUDA the allocator's own peak is read; elsewhere every operation's result is watched, which is slow:
            measure one step, not a run.

    Yields:
        A list that holds the number of bytes once the block has ended.
    """
    result: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with _Live() as live:
        yield result
    result.append(live.peak)
