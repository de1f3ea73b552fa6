"""A queue of the features of earlier batches: keys to contrast with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows
from repertory.errors import check_number


class FeatureQueue(nn.Module):
    """The latest `size` feature rows with their labels and positions in the training set, first in, first out.

    Buffers only: it moves and saves with the method that owns it. Rows are pushed from all processes, so each of them
    holds the same queue. It starts empty; `entries` gives what is there, never what is not.

    Args:
        size: rows that are kept.
        dim: width of a row.

    >>> queue = FeatureQueue(3, dim=1)
    >>> queue.push(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))
    >>> queue.push(torch.tensor([[3.0], [4.0]]), torch.tensor([0, 1]))
    >>> features, labels, _ = queue.entries()
    >>> features.flatten().tolist(), labels.tolist()
    ([4.0, 2.0, 3.0], [1, 1, 0])
    """

    features: Tensor
    labels: Tensor
    index: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        check_number("size", size, minimum=1, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Number of rows that are there."""
        return min(int(self.pushed), len(self.features))

    def there(self) -> Tensor:
        """Return which places hold a row, `(size,)` bool, without waiting for the device."""
        return torch.arange(len(self.features), device=self.pushed.device) < self.pushed

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor | None = None, index: Tensor | None = None) -> None:
        """Add rows, in place of the oldest ones where it is full; of more rows than fit the last ones stay.

        Args:
            features: `(n, dim)`.
            labels: `(n,)` int64, -1 when not given.
            index: position of each row in the training set `(n,)`, -1 when not given.
        """
        absent = torch.full((len(features),), -1, device=features.device)
        rows = gather_rows(features.detach())
        numbers = gather_rows(torch.stack([absent if v is None else v for v in (labels, index)], 1))
        size, before = len(self.features), int(self.pushed)
        kept = slice(max(0, len(rows) - size), len(rows))
        places = (before + torch.arange(len(rows), device=rows.device)[kept]) % size
        self.features[places] = rows[kept].to(self.features.dtype)
        self.labels[places], self.index[places] = numbers[kept].unbind(1)
        self.pushed += len(rows)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return features `(n, dim)`, labels `(n,)` and index `(n,)` of the rows that are there, in no useful order."""
        held = slice(len(self))
        return self.features[held], self.labels[held], self.index[held]
