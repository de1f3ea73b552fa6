"""A class a pixel: how targets say that a pixel has none, and means that leave such pixels out."""

from __future__ import annotations

from torch import Tensor

IGNORED = 255
"""Value of a pixel of a mask that has no class, as in the masks of PASCAL VOC and Cityscapes."""


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Return each example's mean over its valid elements, 0 where it has none.

    Args:
        values: `(batch, ...)`.
        valid: bool, same shape.

    Returns:
        `(batch,)`.

    >>> import torch
    >>> mean_over_valid(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, False], [True, True]]))
    tensor([1., 6.])
    """
    values, valid = values.flatten(1), valid.flatten(1)
    return values.where(valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)
