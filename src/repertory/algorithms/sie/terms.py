"""What keeps embeddings informative: spread in every number, and no two numbers that say the same."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.core.distributed import gather_with_gradient
from repertory.errors import DataError

_EPSILON = 1e-4
"""Added to variances, whose root has no slope at zero."""


def variance_loss(rows: Tensor) -> Tensor:
    r"""Return half the mean over dimensions of how far each one's standard deviation falls short of 1, 0-d.

    $$ \tfrac1{2d} \sum_j \max\bigl(0,\ 1 - \sqrt{\operatorname{Var} u_j + 10^{-4}}\bigr) $$

    Args:
        rows: embeddings `(batch, dim)` of all processes.

    >>> variance_loss(torch.ones(4, 3))  # collapsed
    tensor(0.4950)
    """
    _check(rows)
    rows = _wide(rows)
    # Two values a dimension are the least that vary; a batch of one has no deviation to ask for.
    spread = rows.var(0) if len(rows) > 1 else torch.zeros_like(rows[0])
    return (1 - (spread + _EPSILON).sqrt()).relu().mean() / 2


def covariance_loss(rows: Tensor) -> Tensor:
    r"""Return the squared covariances of different dimensions, summed and divided by their number $d$, 0-d.

    Args:
        rows: embeddings `(batch, dim)` of all processes.

    >>> covariance_loss(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))  # covariance 2, twice, over 2
    tensor(4.)
    """
    _check(rows)
    centred = _wide(rows) - _wide(rows).mean(0)
    covariance = centred.T @ centred / max(1, len(rows) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]


def everyone(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in float32 or wider, with gradient."""
    return gather_with_gradient(_wide(rows))


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _check(rows: Tensor) -> None:
    if rows.ndim != 2 or not len(rows) or not rows.shape[1]:
        raise DataError(f"embeddings {tuple(rows.shape)} must be (batch, dim), with at least one row and one dimension")
