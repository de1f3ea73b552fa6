"""Rows of features as arrays or tensors, for transformers that take both and give back what they were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from repertory.errors import DataError


def read_rows(estimator: Any, X: Any, *, reset: bool = False, name: str = "X") -> Tensor:
    """Check features and return them as a tensor: of an array in float64, of a tensor in float32 or wider, detached.

    Args:
        estimator: keeps the number of features in `n_features_in_`.
        X: `(rows, width)`, an array or anything that scikit-learn takes for one, or a tensor on any device.
        reset: take the number of features from `X`, rather than compare.
        name: what `X` is called in messages.

    Raises:
        DataError: if a tensor has another shape or width, no row, or a number that is not finite.
        ValueError: the same of an array, from scikit-learn.
    """
    if not isinstance(X, Tensor):
        # A copy, since tensors must not share memory that is read-only.
        return torch.tensor(validate_data(estimator, X, reset=reset, dtype=np.float64))
    check_rows(X, name)
    if reset:
        estimator.n_features_in_ = X.shape[1]
    elif X.shape[1] != estimator.n_features_in_:
        raise DataError(
            f"{name} has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    return X.detach().to(torch.promote_types(X.dtype, torch.float32))


def check_rows(rows: Tensor, name: str) -> None:
    """Check that there are rows of numbers that are finite.

    Raises:
        DataError: naming what is wrong.
    """
    if rows.ndim != 2 or not rows.numel():
        raise DataError(f"{name} has shape {tuple(rows.shape)}; it must be (rows, width) with at least one of each")
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(1).nonzero()[0])
        raise DataError(f"{name}: row {bad} is not finite; look at the model that made it")


def give_back(result: Tensor, X: Any) -> Any:
    """Return the result as a tensor if `X` is one, of its device and type (float32 or wider), else as an array."""
    if not isinstance(X, Tensor):
        return result.cpu().numpy()
    return result.to(X.device, torch.promote_types(X.dtype, torch.float32))


def read_groups(groups: Any, count: int, name: str = "groups") -> np.ndarray:
    """Return the group (camera, domain) of each row as an array `(count,)`.

    Args:
        groups: numbers or words, a sequence, an array or a tensor.
        count: number of rows.
        name: what `groups` is called in messages.

    Raises:
        DataError: if there is not one a row.

    >>> read_groups(["left", "right"], 2).tolist()
    ['left', 'right']
    """
    found = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if found.shape != (count,):
        raise DataError(f"{name} has shape {found.shape} for {count} rows; give one group a row")
    return found
