"""Where rows lie that there may be too many of: beside the network, in main memory, or in a file that is mapped."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from repertory.errors import OptionError, check_number

ON_DEVICE = 2**28
"""Rows up to this many bytes (256 MiB) lie beside the network's outputs."""
IN_MEMORY = 2**32
"""Rows up to this many bytes (4 GiB) lie in main memory; more of them in a file, of which the system keeps in memory
what is in use."""


class Storage:
    """Allocates tensors of zeros where their size allows.

    Args:
        limit: bytes above which a tensor lies in a memory-mapped file.
        folder: where such files are made, None for the system's folder of temporary files. They take room on that disk
            as rows are written, and are gone when the tensor is, or the process.

    Raises:
        OptionError: if the limit is no whole number from 0 on, or the folder is not there.

    >>> place = Storage(limit=100)
    >>> small, large = place.zeros((10,), torch.float32), place.zeros((1000,), torch.float32)
    >>> place.on_disk(small), place.on_disk(large)
    (False, True)
    """

    def __init__(self, limit: int = IN_MEMORY, folder: str | Path | None = None) -> None:
        check_number("limit", limit, minimum=0, integer=True)
        if folder is not None and not Path(folder).is_dir():
            raise OptionError(f"folder={str(folder)!r} is not a folder; make it first, or leave it out")
        self.limit = limit
        self.folder = None if folder is None else str(folder)

    def on_disk(self, tensor: Tensor) -> bool:
        """Whether a tensor of this size lies in a file."""
        return tensor.numel() * tensor.element_size() > self.limit

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """Return zeros of this shape.

        Args:
            shape: of the tensor.
            dtype: of its numbers.
            device: where it lies if it is small enough; None for the CPU.
        """
        size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        if size > self.limit:
            return self._mapped(shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=device if size <= ON_DEVICE else None)

    def copy(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """Return a copy that lies where its size allows."""
        made = self.zeros(tuple(tensor.shape), tensor.dtype, device)
        return made.copy_(tensor)

    def _mapped(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        handle, path = tempfile.mkstemp(prefix="repertory-", suffix=".rows", dir=self.folder)
        os.close(handle)
        try:
            # The file grows to its full length at once, but takes room on the disk only where it is written.
            flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype)
        finally:
            # Without its name it lives as long as the mapping, and nothing is left behind by a process that is killed.
            with contextlib.suppress(OSError):
                Path(path).unlink()
        return flat.view(shape)
