"""Orders of the examples in which batch-mates are similar: clusters at random, members of a cluster in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from repertory.algorithms.ngame.clustering import balanced_clusters
from repertory.core.randomness import generator_for
from repertory.errors import DataError, OptionError, check_number


def cluster_size(epoch: int, grow_at: Sequence[int]) -> int:
    """Return the size of clusters in an epoch: 1, doubled at each epoch of `grow_at` that has come.

    Args:
        epoch: counted from 0.
        grow_at: epochs, in any order; one that is named twice counts twice.

    >>> [cluster_size(epoch, [10, 20, 25]) for epoch in (9, 10, 19, 20, 25)]
    [1, 2, 2, 4, 8]
    """
    return 2 ** sum(start <= epoch for start in grow_at)


class ClusterBatches(Sampler[Any]):
    """Random order of clusters of similar examples, so that consecutive batches hold each other's hard negatives.

    Until the first `update` each example is a cluster of its own and the order is plainly random. It works in three
    places: as the sampler of a `DataLoader`; with a `batch_size` as its `batch_sampler`, where the examples left over
    make a last, smaller batch; and as `run.sampler` of a `Step`, called with rows. Do not shuffle after it.

    Args:
        examples: size of the training set; not needed where it is only called.
        batch_size: examples a batch, to iterate over batches; None iterates over examples.
        seed: of the orders that it is iterated in; the next epoch's is another one.

    Attributes:
        clusters: the cluster of each example `(examples,)` int64, None before the first update.

    Raises:
        OptionError: if an option is out of range.

    >>> sampler = ClusterBatches(4, batch_size=2)
    >>> sampler.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]]), size=2)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2], [1, 3]]
    """

    def __init__(self, examples: int | None = None, batch_size: int | None = None, *, seed: int = 0) -> None:
        for name, value in (("examples", examples), ("batch_size", batch_size)):
            if value is not None:
                check_number(name, value, minimum=1, integer=True)
        check_number("seed", seed, minimum=0, integer=True)
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.clusters: Tensor | None = None

    def update(
        self,
        embeddings: Tensor,
        size: int,
        *,
        index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Cluster the examples anew; the order changes with the next epoch.

        Args:
            embeddings: of the examples, of any length, `(n, dim)`.
            size: most examples of a cluster.
            index: which examples they are `(n,)` int64; all, in order, when not given. The others are clusters of
                their own.
            generator: of the starts; None goes by the seed and the epoch.

        Raises:
            DataError: if there is not one embedding an example, or they are not finite.
        """
        if index is None:
            if self.examples is not None and len(embeddings) != self.examples:
                raise DataError(
                    f"{len(embeddings)} embeddings are not one for each of {self.examples} examples; say with index "
                    "which ones they are"
                )
            index = torch.arange(len(embeddings))
        if len(index) != len(embeddings):
            raise DataError(f"{len(embeddings)} embeddings, but index names {len(index)} examples; give one a row")
        index = index.cpu()
        generator = generator_for(self.seed, f"clusters/{self.epoch}") if generator is None else generator
        found = balanced_clusters(embeddings, size, generator).cpu()
        clusters = torch.full((max(self.examples or 0, int(index.max()) + 1),), -1)
        clusters[index] = found
        alone = clusters < 0
        clusters[alone] = torch.arange(int(alone.sum())) + int(found.max()) + 1
        self.clusters = clusters

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rows `(n,)` in the order of an epoch; rows beyond those that were clustered stand alone.

        Args:
            rows: examples that may be used `(n,)` int64.
            targets: not looked at.
            generator: CPU generator of the order.
        """
        if self.clusters is None:
            return rows[torch.randperm(len(rows), generator=generator)]
        known = rows < len(self.clusters)
        own = self.clusters[rows.clamp(max=len(self.clusters) - 1)]
        _, names = torch.where(known, own, len(self.clusters) + rows).unique(return_inverse=True)
        turns = torch.randperm(int(names.max()) + 1, generator=generator)
        return rows[turns[names].argsort(stable=True)]

    def __iter__(self) -> Iterator[Any]:
        """Yield the positions of one epoch, or its batches of positions, in an order that the next one does not have.

        Raises:
            OptionError: if neither `examples` was given nor embeddings of all examples.
        """
        rows = torch.arange(self._count())
        generator = generator_for(self.seed, f"order/{self.epoch}")
        self.epoch += 1
        order = self(rows, rows, generator)
        if self.batch_size is None:
            yield from order.tolist()
        else:
            yield from (batch.tolist() for batch in order.split(self.batch_size))

    def __len__(self) -> int:
        """Number of examples, or of batches where there is a batch size."""
        return self._count() if self.batch_size is None else -(-self._count() // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go on with another epoch, such as that of a checkpoint, or in each process the same."""
        check_number("epoch", epoch, minimum=0, integer=True)
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and clusters."""
        return {"epoch": self.epoch, "clusters": self.clusters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.epoch = state["epoch"]
        self.clusters = None if state["clusters"] is None else state["clusters"].clone()

    def _count(self) -> int:
        if self.examples is not None:
            return self.examples
        if self.clusters is None:
            raise OptionError("examples=None leaves open what to iterate over; give the number of training examples")
        return len(self.clusters)


class WithPartners:
    """Half of another sampler's order, each example followed by a random other one of its class: its positive.

    An example that is alone in its class is its own partner. An epoch is as long as before, so each example is visited
    in its turn every other epoch, and as a partner at random.

    Args:
        sampler: called like this one.

    Attributes:
        group: 2, so that a loader keeps both in one batch.
    """

    group = 2

    def __init__(self, sampler: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> None:
        self.sampler = sampler

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return pairs, `(2 * ceil(n / 2),)`.

        Args:
            rows: examples that may be used `(n,)` int64.
            targets: their classes `(n,)` int64.
            generator: CPU generator of the draws.

        Raises:
            DataError: if the targets are not classes.
        """
        if targets.is_floating_point() or targets.ndim != 1:
            raise DataError("partners are drawn by class, but the targets are no classes; leave partners out")
        chosen = self.sampler(rows, targets, generator)[: (len(rows) + 1) // 2]
        by_class = targets.argsort(stable=True)
        _, members = targets.unique(return_counts=True)
        ends = members.cumsum(0)
        # Where each row stands among those of its class, all classes in a row.
        place = torch.empty_like(by_class)
        place[by_class] = torch.arange(len(rows))
        position = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
        position[rows] = place
        own = position[chosen]
        group = torch.searchsorted(ends, own, right=True)
        size, start = members[group], (ends - members)[group]
        steps = 1 + (torch.rand(len(own), generator=generator, dtype=torch.float64) * (size - 1)).long()
        partner = rows[by_class[start + (own - start + steps) % size]]
        return torch.stack([chosen, partner], 1).flatten()
