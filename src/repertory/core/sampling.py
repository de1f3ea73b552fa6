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


class BagBatches:
    """Groups of examples of one bag, in random order, so that a batch holds whole bags.

    An epoch holds every example at least once. A bag whose size is no multiple of `per_bag` fills its last group with
    further ones of its own examples; bags of more than `per_bag` come in several groups.

    Args:
        groups: bag of each training example `(examples,)`, int64; a run on data with bags passes it.
        per_bag: examples of a bag in a group; None takes the size of the largest bag.

    Attributes:
        group: rows that a loader must not part.

    Raises:
        DataError: if the data have no bags.
        OptionError: if `per_bag` is not a whole number from 1 on.

    >>> sampler = BagBatches(torch.tensor([0, 1, 1, 0, 1]))
    >>> order = sampler(torch.arange(5), torch.zeros(5), torch.Generator().manual_seed(0))
    >>> sorted(sorted(bag) for bag in order.view(-1, 3).tolist()), sampler.group
    ([[0, 0, 3], [1, 2, 4]], 3)
    """

    def __init__(self, groups: Tensor | None = None, per_bag: int | None = None) -> None:
        if groups is None or not len(groups):
            raise DataError("batches of bags need data whose rows belong together; use the scenario bags")
        if per_bag is not None:
            check_number("per_bag", per_bag, minimum=1, integer=True)
        self._groups = groups
        self.group = per_bag or int(groups.unique(return_counts=True)[1].max())

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch.

        Args:
            rows: examples that may be used `(n,)`, int64.
            targets: their targets; they do not matter.
            generator: CPU generator of the draws.

        Returns:
            Rows `(m,)`, m at least n and a multiple of `group`.
        """
        rows = rows[torch.randperm(len(rows), generator=generator)]
        _, bag, sizes = self._groups[rows].unique(return_inverse=True, return_counts=True)
        rows = rows[bag.argsort(stable=True)]
        filled = (sizes + self.group - 1) // self.group * self.group
        starts, begins = sizes.cumsum(0) - sizes, filled.cumsum(0) - filled
        within = torch.arange(int(filled.sum())) - begins.repeat_interleave(filled)
        # A bag starts again from its first example, which is a random one.
        places = starts.repeat_interleave(filled) + within % sizes.repeat_interleave(filled)
        whole = rows[places].view(-1, self.group)
        return whole[torch.randperm(len(whole), generator=generator)].flatten()
