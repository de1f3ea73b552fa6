"""Which dimensions of a representation belong together: those whose correlation is the same in one graph as in another.

A graph's parts are its nodes; of other inputs, the examples of an environment take their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.distributed import sum_over_processes
from repertory.errors import DataError, check_number

_LEAST = 3
"""Parts from which on a correlation says something: that of two is 1 or -1."""


def group_correlations(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Return the correlations of all dimensions within each group, `(groups, dim, dim)`.

    Args:
        values: a vector a part `(parts, dim)`.
        owner: number of each part's group `(parts,)`, int64.
        groups: how many there are.

    Returns:
        Pearson's, 0 where a dimension does not vary in the group.

    Raises:
        DataError: if there are other than as many numbers of groups as parts.
    """
    if values.ndim != 2 or owner.shape != values.shape[:1]:
        raise DataError(
            f"values {tuple(values.shape)} and owner {tuple(owner.shape)} do not fit; they must be (parts, dim) and "
            "(parts,)"
        )
    counts = owner.bincount(minlength=groups)
    order = owner.argsort(stable=True)
    values, owner = values[order], owner[order]
    sums = values.new_zeros(groups, values.shape[1]).index_add(0, owner, values)
    centred = values - (sums / counts.clamp(min=1)[:, None])[owner]
    lengths = values.new_zeros(groups, values.shape[1]).index_add(0, owner, centred.square()).sqrt()
    largest = values.abs().amax() if len(values) else values.new_zeros(())
    # Rounding leaves a tiny length to a dimension that does not vary.
    there = lengths > 1e-6 * largest * counts.sqrt()[:, None]
    unit = torch.where(there[owner], centred / torch.where(there, lengths, 1.0)[owner], 0.0)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    filled = values.new_zeros(groups, int(counts.max()) if groups else 0, values.shape[1])
    filled[owner, place] = unit
    return filled.transpose(1, 2) @ filled


def dissimilarity(correlations: Tensor) -> Tensor:
    """Return how much the correlation of two dimensions differs from group to group, `(dim, dim)`.

    That is its standard deviation (over n): 0 for a relation that is the same everywhere.

    Args:
        correlations: `(groups, dim, dim)`.
    """
    return correlations.var(0, correction=0).sqrt()


def variable_clusters(spread: Tensor, clusters: int, alive: Tensor | None = None) -> Tensor:
    """Group dimensions by average linkage on their dissimilarity, and return the cluster of each `(dim,)`, int64.

    Args:
        spread: from `dissimilarity`, `(dim, dim)`.
        clusters: at most so many.
        alive: which dimensions vary at all `(dim,)`, bool; others are clusters of their own, beside these.

    Raises:
        OptionError: if `clusters` is below 1.

    >>> spread = torch.tensor([[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]])
    >>> variable_clusters(spread, 2).tolist()
    [0, 0, 1]
    """
    check_number("clusters", clusters, minimum=1, integer=True)
    # Here, since scipy takes a while to import and no other algorithm needs this part of it.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    dim = len(spread)
    kept = torch.arange(dim) if alive is None else alive.cpu().nonzero().flatten()
    labels = torch.arange(dim)
    if len(kept) > clusters:
        distances = spread.detach().cpu().double()[kept][:, kept]
        distances = (distances + distances.T).fill_diagonal_(0) / 2
        tree = linkage(squareform(distances.numpy(), checks=False), method="average")
        labels[kept] = dim + torch.from_numpy(fcluster(tree, clusters, criterion="maxclust")).long()
    numbers = labels.tolist()
    places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    return torch.tensor([places[number] for number in numbers])


class CorrelationSpread(nn.Module):
    """The dissimilarity of dimensions over all groups that were seen, from sums.

    Groups with fewer than three parts count as one together.

    Args:
        dim: number of dimensions.

    >>> spread = CorrelationSpread(2)
    >>> values = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> spread.update(values, torch.tensor([0, 0, 0, 1, 1, 1]))
    >>> spread.dissimilarity().round(decimals=3).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    sums: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(dim, dim))
        self.register_buffer("squares", torch.zeros(dim, dim))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, values: Tensor, owner: Tensor, everywhere: bool = True) -> None:
        """Add the groups of a batch.

        Args:
            values: `(parts, dim)`.
            owner: number of each part's group `(parts,)`, int64, of any size.
            everywhere: whether all processes give the same parts; else each gives its own.
        """
        counts = owner.unique(return_inverse=True, return_counts=True)
        place, sizes = counts[1], counts[2]
        small = sizes < _LEAST
        place = torch.where(small[place], len(sizes), place)
        sizes = place.bincount(minlength=len(sizes) + 1)
        found = group_correlations(values.to(self.sums.dtype), place, len(sizes))[sizes >= _LEAST]
        added = found.sum(0), found.square().sum(0), self.count.new_tensor(len(found))
        for held, more in zip((self.sums, self.squares, self.count), added):
            held += more if everywhere else sum_over_processes(more)

    def dissimilarity(self) -> Tensor:
        """Return the standard deviation of every correlation over the groups, `(dim, dim)`."""
        count = self.count.clamp(min=1)
        return (self.squares / count - (self.sums / count).square()).clamp(min=0).sqrt()

    def alive(self) -> Tensor:
        """Return which dimensions varied in some group, `(dim,)` bool."""
        return self.squares.diagonal() > 0

    def reset(self) -> None:
        """Forget all groups."""
        for held in (self.sums, self.squares, self.count):
            held.zero_()


class PartFeatures:
    """A hook that notes what a network pools: vectors of the parts of each input, of the same meaning as its features.

    It looks for `network.readout`, a module that is called with vectors `(parts, dim)` and the number of each part's
    input. A copy of the network, or one that is pickled, leaves the hook behind.

    Args:
        model: the network; one without a readout is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None
        readout = getattr(model, "readout", None)
        if isinstance(readout, nn.Module):
            readout.register_forward_pre_hook(_Hook(self))

    def take(self, values: Tensor, owner: Tensor) -> None:
        """Note what is pooled; called by the hook."""
        self._seen = values.detach(), owner

    def last(self, dim: int) -> tuple[Tensor, Tensor] | None:
        """Return vectors and owners of the last forward pass, and forget them; None where they are of another size."""
        seen, self._seen = self._seen, None
        return seen if seen is not None and seen[0].ndim == 2 and seen[0].shape[1] == dim else None


class _Hook:
    def __init__(self, parts: PartFeatures | None = None) -> None:
        self.parts = parts

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.parts is not None and len(args) > 1:
            self.parts.take(args[0], args[1])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
