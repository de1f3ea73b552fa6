"""Which rows of a batch are of the same bag, over all processes, and what pooling within bags makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repertory.core.distributed import gather_rows, gather_with_gradient
from repertory.errors import DataError


@dataclass(frozen=True)
class BatchBags:
    """The bags of a batch.

    Every row stands for its bag: what is pooled comes as often as the bag has rows here. That needs as many products as
    there are pairs of rows and no count of the bags, so it compiles and works over processes.

    Args:
        same: whether two rows are of one bag, `(batch, all)` bool; all are those of all processes.
        weights: of this process's rows `(batch,)`: their mean over rows is the mean over bags.
    """

    same: Tensor
    weights: Tensor

    @classmethod
    def of(cls, groups: Tensor) -> BatchBags:
        """Return the bags of a batch.

        Args:
            groups: number of the bag of each row `(batch,)`, int64.

        Raises:
            DataError: if they are not one whole number a row.

        >>> BatchBags.of(torch.tensor([7, 7, 3])).weights
        tensor([0.7500, 0.7500, 1.5000])
        """
        if groups.ndim != 1 or groups.is_floating_point():
            raise DataError(
                f"group is {groups.dtype} of shape {tuple(groups.shape)}; give the number of its bag for each example"
            )
        everyone = gather_rows(groups)
        sizes = (everyone[:, None] == everyone).sum(1)
        same = groups[:, None] == everyone
        bags = (1.0 / sizes).sum()
        return cls(same, len(everyone) / (bags * same.sum(1)))

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean over each row's bag, `(batch, ...)`, of rows `(batch, ...)` of this process."""
        share = self.same.to(rows.dtype) / self.same.sum(1, keepdim=True)
        return share @ gather_with_gradient(rows)

    def attended(self, rows: Tensor, scores: Tensor) -> Tensor:
        """Return the mean over each row's bag, weighted by the softmax of scores within it.

        Args:
            rows: of this process `(batch, width)`.
            scores: of this process `(batch,)`.
        """
        lowest = torch.finfo(scores.dtype).min / 2
        logits = gather_with_gradient(scores).expand(len(self.same), -1).masked_fill(~self.same, lowest)
        return logits.softmax(1) @ gather_with_gradient(rows)
