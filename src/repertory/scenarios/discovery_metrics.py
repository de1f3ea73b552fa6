"""How well known classes are kept and new ones found, where the numbers of the new ones mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def matched(predicted: Tensor, targets: Tensor, known: int) -> Tensor:
    """Return predictions with the outputs of new classes renamed so that most examples of new classes are right.

    Each output stands for one new class and each new class for one output (Hungarian method). Known classes keep their
    numbers. Outputs that are left over get -1.

    Args:
        predicted: outputs `(examples,)`, int64; those from `known` on are of new classes.
        targets: classes `(examples,)`, int64; likewise.
        known: number of known classes.

    Returns:
        `(examples,)`, int64.

    >>> matched(torch.tensor([0, 3, 3, 2]), torch.tensor([0, 2, 2, 3]), known=2)
    tensor([0, 2, 2, 3])
    """
    from scipy.optimize import linear_sum_assignment

    outputs = max(int(predicted.max()) + 1 - known, 0)
    classes = max(int(targets.max()) + 1 - known, 0)
    if not outputs or not classes:
        return predicted.where(predicted < known, -1)
    both = (predicted >= known) & (targets >= known)
    pairs = (predicted[both] - known) * classes + targets[both] - known
    table = pairs.bincount(minlength=outputs * classes).view(outputs, classes)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    names = torch.full((outputs,), -1, dtype=torch.int64)
    names[torch.as_tensor(rows)] = torch.as_tensor(columns) + known
    return torch.where(predicted < known, predicted, names[(predicted - known).clamp(min=0)])


def discovery_metrics(predicted: Tensor, targets: Tensor, known: int) -> dict[str, float]:
    """Return how well all, known and new classes are told apart, new ones under the best matching.

    Args:
        predicted: outputs `(examples,)`, int64, of all classes there are.
        targets: classes `(examples,)`, int64, the known ones first.
        known: number of known classes.

    Returns:
        `accuracy` over all examples; `known_accuracy` over those of known classes, an output of a new class being
        wrong; `discovery`, the accuracy over those of new classes. 0 where there is no example.

    >>> discovery_metrics(torch.tensor([0, 2, 3, 3, 1]), torch.tensor([0, 1, 2, 2, 3]), known=2)
    {'accuracy': 0.6, 'known_accuracy': 0.5, 'discovery': 0.6666666666666666}
    """
    right, old = matched(predicted, targets, known) == targets, targets < known
    groups = {"accuracy": torch.ones_like(old), "known_accuracy": old, "discovery": ~old}
    return {name: float(right[own].double().mean()) if bool(own.any()) else 0.0 for name, own in groups.items()}


def largest_loss(accuracies: list[float]) -> float:
    """Return the most that an accuracy was ever below the first one; below 0 where it was always above.

    Args:
        accuracies: at first, and after each step; at least two.

    >>> round(largest_loss([0.9, 0.8, 0.85]), 3)
    0.1
    """
    return max(accuracies[0] - value for value in accuracies[1:])


def split_quality(rejected: Tensor, new: Tensor) -> tuple[float | None, float | None]:
    """Return precision and recall of a split by novelty, None where it cannot be said.

    Args:
        rejected: which examples were taken for new ones `(n,)`, bool.
        new: which of them are `(n,)`, bool.

    >>> split_quality(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
    (0.5, 0.5)
    """
    both = int((rejected & new).sum())
    precision = both / int(rejected.sum()) if bool(rejected.any()) else None
    return precision, both / int(new.sum()) if bool(new.any()) else None
