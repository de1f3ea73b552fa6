"""Per-example values from an ordinary criterion."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def per_example(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """Return the criterion with `reduction="none"` where its mean is a plain mean over examples.

    A criterion that weights classes, leaves a class out (`ignore_index` from 0 on), or has no `reduction` is
    returned as
    it is: the mean of its per-example values would not be its own mean. Parameters stay shared with the original.

    >>> per_example(nn.CrossEntropyLoss()).reduction
    'none'
    """
    if isinstance(criterion, nn.Module):
        weighted = getattr(criterion, "weight", None) is not None or getattr(criterion, "pos_weight", None) is not None
        ignoring = getattr(criterion, "ignore_index", -1) >= 0
        if getattr(criterion, "reduction", None) != "mean" or weighted or ignoring:
            return criterion
        single = copy.copy(criterion)
        single.reduction = "none"  # type: ignore[assignment]
        return single
    try:
        reducible = "reduction" in inspect.signature(criterion).parameters
    except (TypeError, ValueError):
        reducible = False
    return functools.partial(criterion, reduction="none") if reducible else criterion


def reduce_to_examples(values: Tensor, size: int) -> Tensor:
    """Average per-element values `(batch, ...)` to `(batch,)`; a 0-d value stays.

    >>> import torch
    >>> reduce_to_examples(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), 2)
    tensor([2., 6.])
    """
    if values.ndim > 1 and len(values) == size:
        return values.flatten(1).mean(1)
    return values
