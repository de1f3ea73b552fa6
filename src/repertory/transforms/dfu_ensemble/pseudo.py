"""Which unlabelled examples get a label, how many examples of each class are to be made, and how sure to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, OptionError, check_number

_COLDEST, _HOTTEST = 0.05, 20.0
"""Temperatures between which the best one is looked for."""


def pseudo_labels(
    probabilities: Tensor, threshold: float | Sequence[float] | Tensor, cap: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the examples whose most probable class is sure enough, and that class.

    Args:
        probabilities: `(examples, classes)`; rows that are not finite are refused.
        threshold: smallest probability that is sure enough, above 0; of each class `(classes,)`, or one for all.
            Above 1 nothing is.
        cap: at most so many of each class, the surest; of equally sure ones the first. None keeps all.

    Returns:
        Rows `(kept,)` int64, ascending, and their classes `(kept,)` int64.

    Raises:
        DataError: if the probabilities are none.
        OptionError: if `threshold` or `cap` is out of range.

    >>> pseudo_labels(torch.tensor([[0.95, 0.05], [0.6, 0.4], [0.08, 0.92]]), 0.9)
    (tensor([0, 2]), tensor([0, 1]))
    """
    check_probabilities(probabilities)
    classes = probabilities.shape[1]
    bars = thresholds(threshold, classes).to(probabilities)
    if cap is not None:
        check_number("cap", cap, minimum=0, integer=True)
    sureness, chosen = probabilities.max(1)
    rows = (sureness >= bars[chosen]).nonzero().flatten()
    if cap is not None and len(rows):
        order = rows[sureness[rows].argsort(descending=True, stable=True)]
        places = functional.one_hot(chosen[order], classes).cumsum(0).gather(1, chosen[order][:, None]).flatten()
        rows = order[places <= cap].sort().values
    return rows, chosen[rows]


def quota(counts: Tensor, pseudo_counts: Tensor, ratio: float = 1.0) -> Tensor:
    """Return how many examples of each class are to be made, so that every class comes up to the largest one.

    Pseudo-labels count, or classes would be filled twice.

    Args:
        counts: labelled examples of each class `(classes,)`, int64.
        pseudo_counts: pseudo-labelled ones `(classes,)`, int64.
        ratio: the size to come up to, as a multiple of the largest class; 0 makes none.

    Returns:
        `(classes,)` int64.

    Raises:
        DataError: if the counts do not go together, or a class has no labelled example to learn from.
        OptionError: if `ratio` is negative.

    >>> quota(torch.tensor([300, 300, 20, 40]), torch.tensor([50, 40, 2, 3]))
    tensor([  0,  10, 328, 307])
    """
    check_number("ratio", ratio, minimum=0)
    if counts.shape != pseudo_counts.shape or counts.ndim != 1 or not len(counts):
        raise DataError(
            f"counts {tuple(counts.shape)} and pseudo_counts {tuple(pseudo_counts.shape)} must both be (classes,)"
        )
    if bool((counts < 1).any()):
        absent = int(counts.argmin())
        raise DataError(
            f"class {absent} has no labelled example, so nothing can be made of it; label some, or leave the class out"
        )
    there = counts + pseudo_counts
    return (round(ratio * int(there.max())) - there).clamp(min=0)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature that the logits must be divided by for the smallest mean negative log-likelihood.

    Args:
        logits: of held-out examples `(examples, classes)`; logarithms of probabilities will do.
        targets: their classes `(examples,)`, int64.

    Returns:
        From 0.05 to 20; above 1 where the model is too sure of itself.

    Raises:
        DataError: if the two do not go together.

    >>> logits = torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [8.0, 0.0]])
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])) * math.log(3), 3)
    8.0

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
    https://arxiv.org/abs/1706.04599.
    """
    from scipy.optimize import minimize_scalar

    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        raise DataError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must be (n, classes) and (n,)"
        )
    wide = logits.double()

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(wide / math.exp(log_temperature), targets))

    found = minimize_scalar(
        loss, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(found.x))


def thresholds(threshold: float | Sequence[float] | Tensor, classes: int | None = None) -> Tensor:
    """Return the threshold of each class, float64.

    Args:
        threshold: one for all, or one a class.
        classes: how many there are; None where nobody knows yet.

    Raises:
        OptionError: if one is not a number above 0, or there are not as many as classes.

    >>> thresholds(0.9, 3)
    tensor([0.9000, 0.9000, 0.9000], dtype=torch.float64)
    """
    values: Any = threshold.tolist() if isinstance(threshold, Tensor) else threshold
    if not isinstance(values, (list, tuple)):
        check_number("threshold", values, above=0)
        return torch.full((classes or 1,), float(values), dtype=torch.float64)
    for value in values:
        check_number("threshold", value, above=0)
    if not values or (classes is not None and len(values) != classes):
        wanted = "one a class" if classes is None else f"one for each of the {classes} classes"
        raise OptionError(f"threshold={list(values)} is not allowed: give one number for all classes, or {wanted}")
    return torch.tensor(values, dtype=torch.float64)


def check_probabilities(probabilities: Tensor) -> None:
    """See that these are probabilities `(examples, classes)`.

    Raises:
        DataError: saying what is wrong with the first row that is none.
    """
    if probabilities.ndim != 2 or not probabilities.shape[1]:
        raise DataError(f"probabilities have the shape {tuple(probabilities.shape)}; they must be (examples, classes)")
    bad = ~probabilities.isfinite().all(1) | (probabilities < 0).any(1) | ((probabilities.sum(1) - 1).abs() > 1e-2)
    if bool(bad.any()):
        raise DataError(
            f"probabilities: row {int(bad.nonzero()[0])} is {probabilities[bad][0].tolist()[:8]}, which are no "
            "probabilities: finite, from 0 on, with sum 1; take the softmax of logits first"
        )
