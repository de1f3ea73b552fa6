"""How good frozen features are: a linear classifier on them, and their nearest neighbours."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, check_number

_PENALTY = 1.0
"""Strength `C` of scikit-learn's logistic regression; on standardised features its default serves all."""
_STEPS = 1000
_NEVER = -1e4
"""Bias of a class without an example: it is never predicted, and its log-likelihood stays finite."""


def linear_probe(features: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier on frozen features: logistic regression on standardised features, fixed settings.

    There is one optimum and no learning rate, so the result does not depend on how long or how well the probe was
    trained. Standardisation is folded into the result, which takes the features as they are.

    Args:
        features: `(examples, width)`.
        targets: classes `(examples,)`, int64.
        classes: number of classes, with those that have no example.

    Returns:
        Weight `(classes, width)` and bias `(classes,)`, float32, as an `nn.Linear` has them.

    Raises:
        DataError: if features and targets do not match, are not finite, or are of one class only.

    >>> weight, bias = linear_probe(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 2, 2]), classes=3)
    >>> (torch.tensor([[0.5], [5.5]]) @ weight.T + bias).argmax(1).tolist()
    [0, 2]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _check(features, targets, classes)
    seen = targets.unique()
    if len(seen) < 2:
        raise DataError(f"all {len(targets)} labels are {int(seen[0])}; a probe needs examples of two classes")
    wide = features.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    # Rounding leaves a tiny deviation in a constant column.
    std = torch.where(std > 1e-6 * wide.abs().amax(0), std, torch.inf)
    model = LogisticRegression(C=_PENALTY, max_iter=_STEPS)
    with warnings.catch_warnings():
        # Separable features may take longer; the classifier does not change by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(((wide - mean) / std).numpy(), targets.numpy())
    found, offset = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(seen) == 2:
        # Of two classes scikit-learn gives the log-odds of the second.
        found, offset = (torch.cat([torch.zeros_like(value), value]) for value in (found, offset))
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), _NEVER, dtype=torch.float64)
    weight[seen] = found / std
    bias[seen] = offset - weight[seen] @ mean
    return weight.float(), bias.float()


def nearest_classes(queries: Tensor, gallery: Tensor, targets: Tensor, classes: int, k: int = 5) -> Tensor:
    """Return the class that most of the `k` nearest rows of the gallery have, by cosine; of equals, the nearer one.

    Args:
        queries: `(queries, width)`.
        gallery: `(gallery, width)`; with fewer than `k` rows all of them vote.
        targets: classes of the gallery `(gallery,)`, int64.
        classes: number of classes.
        k: number of neighbours.

    Returns:
        `(queries,)`, int64.

    Raises:
        DataError: if gallery and targets do not match, or are not finite.

    >>> gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> queries = torch.tensor([[2.0, 0.1], [0.1, 0.5]])
    >>> nearest_classes(queries, gallery, torch.tensor([0, 0, 1]), classes=2, k=1).tolist()
    [0, 1]
    """
    check_number("k", k, minimum=1, integer=True)
    _check(gallery, targets, classes)
    near, where = nearest_neighbours(queries, gallery, min(k, len(gallery)))
    # A vote counts 1, and all cosines together less than a vote.
    votes = torch.zeros(len(queries), classes, dtype=torch.float64)
    votes.scatter_add_(1, targets[where], 1 + (near.double() + 1) / (4 * k))
    return votes.argmax(1)


def _check(features: Tensor, targets: Tensor, classes: int) -> None:
    if features.ndim != 2 or targets.shape != features.shape[:1] or not len(features):
        raise DataError(
            f"features {tuple(features.shape)} and targets {tuple(targets.shape)} must be (examples, width) and "
            "(examples,), with at least one example"
        )
    if not bool(features.isfinite().all()):
        raise DataError("features hold values that are not finite; a smaller learning rate helps most")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise DataError(
            f"targets go from {int(targets.min())} to {int(targets.max())}, but must lie from 0 to {classes - 1}; "
            "leave out examples without a label"
        )
