"""Orders of the examples in an epoch: for losses that compare the examples of a batch, and for few examples."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, check_number


class ClassBatches:
    """Groups of examples of one class, in random order, so that each batch has several of every class that it has.

    An epoch holds every example at least once. A class whose size is no multiple of `per_class` fills its last group
    with further ones of its own examples, drawn at random.

    Args:
        per_class: examples of a class in a group.

    Attributes:
        group: rows that a loader must not part, `per_class` of them.

    Raises:
        OptionError: if `per_class` is not a whole number from 2 on.

    >>> order = ClassBatches(2)(torch.arange(5), torch.tensor([0, 1, 0, 1, 1]), torch.Generator().manual_seed(0))
    >>> [sorted(pair) for pair in torch.tensor([0, 1, 0, 1, 1])[order].view(-1, 2).tolist()]
    [[1, 1], [1, 1], [0, 0]]
    """

    def __init__(self, per_class: int = 4) -> None:
        check_number("per_class", per_class, minimum=2, integer=True)
        self.group = per_class

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch.

        Args:
            rows: examples that may be used `(n,)`, int64.
            targets: their classes `(n,)`, int64.
            generator: CPU generator of the draws.

        Returns:
            Rows `(m,)`, m at least n and a multiple of `group`.

        Raises:
            DataError: if the targets are not classes.
        """
        if targets.is_floating_point() or targets.ndim != 1:
            raise DataError("batches by class need one class an example, but the targets are numbers; leave them out")
        groups = []
        for label in targets.unique():
            own = rows[targets == label]
            own = own[torch.randperm(len(own), generator=generator)]
            missing = -len(own) % self.group
            filled = own[torch.randint(len(own), (missing,), generator=generator)]
            groups.append(torch.cat([own, filled]).view(-1, self.group))
        whole = torch.cat(groups)
        return whole[torch.randperm(len(whole), generator=generator)].flatten()


class RepeatedRows:
    """Several passes over the examples in one epoch, each in a random order of its own.

    For labels that are few: an epoch is then as long as one over all examples would be, labelled or not.

    Args:
        times: passes an epoch.

    Raises:
        OptionError: if `times` is not a whole number from 1 on.

    >>> RepeatedRows(2)(torch.arange(3), torch.zeros(3), torch.Generator().manual_seed(0)).sort().values.tolist()
    [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, times: int) -> None:
        check_number("times", times, minimum=1, integer=True)
        self.times = times

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch.

        Args:
            rows: examples that may be used `(n,)`, int64.
            targets: their targets `(n, ...)`; they do not matter.
            generator: CPU generator of the draws.

        Returns:
            Rows `(times * n,)`.
        """
        return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(self.times)])
