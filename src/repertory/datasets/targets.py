"""What a column of targets means: classes, or numbers to predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError, OptionError


def read_targets(
    values: np.ndarray[Any, Any], what: str, task: str | None = None
) -> tuple[str, Tensor, tuple[str, ...], tuple[str, ...]]:
    """Decide whether targets are classes or numbers, and turn them into a tensor.

    Text and booleans are classes. Whole numbers (also when stored as floats) are classes when they have at
    most 20 distinct values, or at least 50 examples for each distinct value on average. Everything else is
    regression. `task` overrides this.

    Args:
        values: targets `(examples,)`.
        what: how messages name them, as in "target 'price'".
        task: "classification", "regression", or None for the rule above.

    Returns:
        Task; targets, int64 or float32 `(examples,)`; class names, sorted; notes.

    Raises:
        DataError: if the targets have a type that is not read, are not finite, or are all the same.
        OptionError: if text is to be read as numbers.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufUO":
        raise DataError(
            f"{what} has shape {values.shape} and type {values.dtype}; it must be one number or text an example"
        )
    if values.dtype.kind == "O":
        values = values.astype(str)
    numeric = values.dtype.kind in "iuf"
    if numeric:
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
        rows = (~np.isfinite(numbers)).nonzero()[0]
        if len(rows):
            raise DataError(
                f"{what} has {len(rows)} values that are not finite, first in row {rows[0] + 1}; remove them"
            )
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) < 2:
        held = f"one value only ({distinct[0]})" if len(distinct) else "no values"
        raise DataError(f"{what} has {held}; there is nothing to learn, so give a target that varies")
    whole = numeric and bool((values == np.round(values)).all())
    few = len(distinct) <= max(20, len(values) // 50)
    chosen = task or ("classification" if not numeric or (whole and few) else "regression")
    notes: tuple[str, ...] = ()
    if chosen == "regression":
        if not numeric:
            raise OptionError(
                f"task=regression needs numbers, but {what} holds text or booleans such as {distinct[0]!r}"
            )
        if whole and task is None:
            notes = (
                f"{what} has {len(distinct)} distinct numbers: read as regression (?task=classification changes it)",
            )
        return chosen, torch.from_numpy(numbers), (), notes
    if numeric and task is None:
        notes = (f"{what} has {len(distinct)} distinct whole numbers: read as classes (?task=regression changes it)",)
    names = tuple(str(int(value)) if whole else str(value) for value in distinct)
    return chosen, torch.from_numpy(codes.astype(np.int64)), names, notes
