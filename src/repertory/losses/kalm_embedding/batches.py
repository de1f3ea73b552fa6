"""Batches of one task each, of which a share is exchanged with the other batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.errors import DataError, check_number


class SemiHomogeneousBatches:
    """An order of the examples in which each batch holds one task, but for a share that is exchanged between batches.

    Negatives of the same task are harder; some of other tasks keep the tasks comparable. What is left over of the tasks
    after whole batches makes mixed ones. For `BatchLoader(..., sampler=)`, whose batch size it must be told.

    Args:
        groups: task of each example of the data set `(examples,)`.
        batch_size: examples a batch, over all processes.
        ratio: share of a batch that stays of one task: 1 for pure batches, 0 for mixed ones.

    Raises:
        OptionError: if an option is not allowed.
        DataError: in use, if there are examples beyond the end of `groups`.

    >>> order = SemiHomogeneousBatches([0, 1, 0, 1], batch_size=2)
    >>> rows = order(torch.arange(4), torch.zeros(4), torch.Generator().manual_seed(0))
    >>> sorted(sorted(pair) for pair in rows.view(2, 2).tolist())
    [[0, 2], [1, 3]]
    """

    def __init__(self, groups: Tensor | Sequence[int], batch_size: int, ratio: float = 1.0) -> None:
        check_number("batch_size", batch_size, minimum=1, integer=True)
        check_number("ratio", ratio, minimum=0, maximum=1)
        self.groups = torch.as_tensor(groups)
        self.batch_size = batch_size
        self.ratio = ratio

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch: each row once.

        Args:
            rows: examples that may be used `(n,)`, int64.
            targets: not used.
            generator: CPU generator of the draws.
        """
        if int(rows.max()) >= len(self.groups):
            raise DataError(
                f"groups has {len(self.groups)} entries, but there is an example {int(rows.max())}; give one an example"
            )
        sizes = _sizes(len(rows), self.batch_size)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        batches = _dealt(rows, self.groups[rows], sizes, generator)
        # Larger batches stay first, where the loader cuts them.
        places = torch.randperm(len(sizes), generator=generator)
        places = places[torch.tensor(sizes)[places].argsort(descending=True, stable=True)]
        order = torch.cat([batches[place] for place in places.tolist()])
        moved = torch.cat([torch.arange(size) >= size - int(size * (1 - self.ratio) + 1e-9) for size in sizes])
        exchanged = moved.nonzero().flatten()
        order[exchanged] = order[exchanged[torch.randperm(len(exchanged), generator=generator)]]
        return order


def _sizes(examples: int, batch_size: int) -> list[int]:
    """How `BatchLoader` cuts an epoch: batches of nearly equal size, the larger ones first."""
    count = math.ceil(examples / batch_size)
    size, larger = divmod(examples, count)
    return [size + (number < larger) for number in range(count)]


def _dealt(rows: Tensor, groups: Tensor, sizes: list[int], generator: torch.Generator) -> list[Tensor]:
    """Fill batches from one group each, drawn in proportion to what it has left, then from all that remains."""
    _, places = groups.unique(return_inverse=True)
    rows = rows[places.argsort(stable=True)]
    left = torch.bincount(places)
    ends = left.cumsum(0)
    batches: list[Tensor] = []
    for size in sizes:
        enough = torch.where(left >= size, left, 0)
        if not bool(enough.any()):
            break
        group = int(torch.multinomial(enough.double(), 1, generator=generator))
        start = int(ends[group] - left[group])
        batches.append(rows[start : start + size])
        left[group] -= size
    kept = torch.cat([torch.arange(int(end - rest), int(end)) for end, rest in zip(ends, left)])
    remaining = rows[kept[torch.randperm(len(kept), generator=generator)]]
    return [*batches, *remaining.split(sizes[len(batches) :])]
