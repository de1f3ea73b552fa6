"""How well bags and instances are told apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.core.ranking import roc_auc
from repertory.datasets import Examples, Normaliser
from repertory.datasets.bags import bag_labels
from repertory.training.bag_predictions import mean_by, score_bags

__all__ = ["best_threshold", "f1", "judged", "mean_by", "scores_of"]


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """Return the threshold at which most bags are told right: halfway between two scores, of several the middle one.

    Args:
        scores: of the bags `(bags,)`.
        labels: 0 or 1 `(bags,)`.

    >>> best_threshold(torch.tensor([0.1, 0.2, 0.6, 0.9]), torch.tensor([0, 0, 1, 1])) # doctest: +ELLIPSIS
    0.4...
    """
    values = scores.double().unique()
    outside = (values[1:] - values[:-1]).mean() if len(values) > 1 else torch.ones((), dtype=torch.float64)
    cuts = torch.cat([values[:1] - outside, (values[1:] + values[:-1]) / 2, values[-1:] + outside])
    right = ((scores.double() > cuts[:, None]) == labels.bool()).sum(1)
    best = (right == right.max()).nonzero().flatten()
    return float(cuts[best[(len(best) - 1) // 2]])


def scores_of(
    model: nn.Module, examples: Examples, normaliser: Normaliser, pool: str = "mean"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a model says of instances and bags; see `score_bags`.

    Args:
        model: gives two logits an instance.
        examples: with `groups`.
        normaliser: of the inputs.
        pool: how bags are scored where the model does not do so itself.

    Returns:
        Probability of each instance to be positive `(rows,)`; score `(bags,)`, label `(bags,)` and number `(bags,)` of
        each bag.
    """
    assert examples.groups is not None
    numbers, groups = examples.groups.unique(return_inverse=True)
    outputs, scores, _ = score_bags(model, examples.inputs, groups, normaliser, pool)
    return outputs.softmax(1)[:, 1], scores, bag_labels(examples.targets, groups), numbers


def judged(
    probabilities: Tensor, scores: Tensor, labels: Tensor, truth: Tensor | None, threshold: float
) -> dict[str, float]:
    """Return the metrics of bags, and of instances as far as it is known what they are.

    Args:
        probabilities: of each instance to be positive `(rows,)`.
        scores: of the bags `(bags,)`.
        labels: of the bags `(bags,)`.
        truth: of the instances `(rows,)`, -1 where unknown; None where nothing is known.
        threshold: above it a bag counts as positive.

    Returns:
        bag_auc and bag_accuracy; instance_auc and instance_f1 (positive from probability 0.5 on) where some positive
        and some negative instances are known.
    """
    found = {
        "bag_auc": roc_auc(scores, labels),
        "bag_accuracy": float(((scores > threshold) == labels.bool()).double().mean()),
    }
    if truth is not None and len(truth[truth >= 0].unique()) == 2:
        known = truth >= 0
        found["instance_auc"] = roc_auc(probabilities[known], truth[known])
        found["instance_f1"] = f1(probabilities[known] >= 0.5, truth[known].bool())
    return found


def f1(predicted: Tensor, truth: Tensor) -> float:
    """Return the harmonic mean of precision and recall, 0 where nothing is right.

    >>> f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    0.6666666666666666
    """
    total = int(predicted.sum() + truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 0.0
