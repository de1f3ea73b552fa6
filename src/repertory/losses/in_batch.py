"""What losses share that compare the examples of a batch with each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.errors import DataError, check_choice
from repertory.layers.embedding import unit_rows


class InBatchLoss(nn.Module, ABC):
    """Base of losses on the cosines of each example with the others of the batch, of all processes together.

    Everything is computed in float32 or wider, also under autocast. Subclasses override `values`.

    Args:
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if the reduction is none of these.
        DataError: in use, if embeddings and targets do not match.
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}
    embeds: ClassVar[bool] = True
    across_batch: ClassVar[bool] = True

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.reduction = reduction

    @abstractmethod
    def values(self, cosines: Tensor, target: Tensor, labels: Tensor, itself: Tensor) -> Tensor:
        """Return each example's loss `(batch,)`.

        Args:
            cosines: of this process's examples with those of all processes, `(batch, all)`.
            target: classes of the former `(batch,)`, int64.
            labels: classes of the latter `(all,)`, int64.
            itself: where an example meets itself, `(batch, all)` bool.
        """

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            embedding: `(batch, dim)`, of any length.
            target: classes `(batch,)`, int64.
        """
        if embedding.ndim != 2 or target.shape != embedding.shape[:1]:
            raise DataError(
                f"embeddings {tuple(embedding.shape)} and targets {tuple(target.shape)} must be (batch, dim), (batch,)"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            unit = unit_rows(embedding)
            everyone, labels = gather_with_gradient(unit), gather_rows(target)
            places = torch.arange(len(unit), device=unit.device) + own_rows(len(unit), unit.device).start
            itself = torch.arange(len(labels), device=unit.device) == places[:, None]
            values = self.values(unit @ everyone.T, target, labels, itself)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()
