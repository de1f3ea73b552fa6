"""Which labels are right for a query: from classes, lists of labels, or a table of relevances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repertory.core.distributed import rank
from repertory.core.randomness import generator_for
from repertory.errors import DataError


@dataclass(frozen=True)
class Positives:
    """The right labels of each query.

    Args:
        relevance: of the right labels `(batch, most)`; 0 where there is none, or it is not used.
        right: whether each label is right, used or not, `(batch, labels)` bool.
        places: which labels the relevances are of `(batch, most)`; None for all labels in order.
    """

    relevance: Tensor
    right: Tensor
    places: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """Return what belongs to the right labels, `(batch, most)`, of values of all labels `(batch, labels)`."""
        return values if self.places is None else values.gather(1, self.places)

    def mean(self, values: Tensor, weighted: bool) -> Tensor:
        """Return the mean of `values` `(batch, most)` over each query's labels in use, times the relevance if weighted.

        A query without any gives 0.
        """
        used = self.relevance > 0
        kept = values.where(used, 0)
        return (kept * self.relevance if weighted else kept).sum(1) / used.sum(1).clamp(min=1)

    def drawn(self, count: int, seed: int, draw: int) -> Positives:
        """Return these with at most `count` labels of each query in use, drawn in proportion to their relevances.

        Args:
            count: how many to use.
            seed: of the draws.
            draw: number of the draw; each has random numbers of its own, and so has each process.
        """
        generator = generator_for(seed, f"dexml/{draw}/{rank()}")
        waits = torch.empty(self.relevance.shape).exponential_(generator=generator).to(self.relevance.device)
        # The shortest of exponential waits with these rates are such a draw without replacement.
        first = (self.relevance / waits).topk(min(count, self.relevance.shape[1]), dim=1).indices
        kept = torch.zeros_like(self.relevance, dtype=torch.bool)
        return replace(self, relevance=self.relevance.where(kept.scatter(1, first, True), 0))

    def unused(self) -> Tensor:
        """Return which labels are right but not used, `(batch, labels)` bool."""
        used = self.relevance > 0
        if self.places is not None:
            used = torch.zeros_like(self.right).scatter_reduce(1, self.places, used, "amax")
        return self.right & ~used


def positives(scores: Tensor, target: Tensor) -> Positives:
    """Read targets.

    Args:
        scores: of each label `(batch, labels)`.
        target: relevances `(batch, labels)` of any type, right where above 0; or, as whole numbers, the one right label
            `(batch,)`, or lists of right labels `(batch, most)` filled up with -1, where most is not labels.

    Raises:
        DataError: if target and scores do not match, or a label is out of range.

    >>> positives(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[2, -1]])).right
    tensor([[False, False,  True]])
    """
    table = target.shape == scores.shape
    whole = not target.is_floating_point() and target.dtype is not torch.bool
    if scores.ndim != 2 or target.shape[:1] != scores.shape[:1] or not (table or (whole and target.ndim <= 2)):
        raise DataError(
            f"scores {tuple(scores.shape)} and targets {tuple(target.shape)} of {target.dtype} do not match; scores "
            "must be (batch, labels), and targets relevances of that shape, or whole numbers: labels (batch,) or lists "
            "of labels (batch, most) filled up with -1"
        )
    if table:
        return _of_table(target, target > 0, scores.dtype)
    labels = scores.shape[1]
    places = target[:, None] if target.ndim == 1 else target
    low, high = (_value(places.min()), _value(places.max())) if places.numel() else (None, None)
    if low is not None and high is not None and not -1 <= low <= high < labels:
        raise DataError(
            f"targets hold labels from {low} to {high}, but there are scores of {labels}; labels must be from 0 to "
            f"{labels - 1}, and -1 for none"
        )
    there = places >= 0
    right = torch.zeros(len(scores), labels + 1, dtype=torch.bool, device=scores.device)
    right = right.scatter(1, places.where(there, labels), True)[:, :labels]
    return Positives(there.to(scores.dtype), right, places.clamp(min=0))


def _of_table(target: Tensor, right: Tensor, dtype: torch.dtype) -> Positives:
    """As lists, where they can be made, which are far shorter: on a CPU the logarithms of a whole table are slow."""
    counts = right.sum(1)
    most = _value(counts.max()) if counts.numel() and counts.device.type == "cpu" else None
    if most is None or not 0 < most < right.shape[1]:
        return Positives(target.to(dtype).where(right, 0), right)
    rows, labels = right.nonzero(as_tuple=True)
    slots = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    places = torch.zeros(len(counts), most, dtype=torch.int64).index_put((rows, slots), labels)
    there = torch.arange(most) < counts[:, None]
    return Positives(target.gather(1, places).to(dtype).where(there, 0), right, places)


def _value(number: Tensor) -> int | None:
    """What a tensor holds; None where it cannot be looked at: inside a compiled graph, or `torch.func.vmap`."""
    if torch.compiler.is_compiling():
        return None
    try:
        return int(number)
    except RuntimeError:
        return None
