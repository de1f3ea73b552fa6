"""How bags are scored from their instances, and how well bags and instances are told apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.core.ranking import roc_auc
from repertory.datasets import Examples, Normaliser
from repertory.datasets.bags import bag_labels
from repertory.training.evaluate import penultimate, predict

Pool = Callable[[Tensor, Tensor], Tensor]


def mean_by(values: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of each group's rows.

    Args:
        values: `(rows, ...)`.
        groups: number of each row's group `(rows,)`, from 0 on without a gap.

    >>> mean_by(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([2., 5.])
    """
    counts = groups.bincount()
    summed = values.new_zeros((len(counts), *values.shape[1:])).index_add_(0, groups, values)
    return summed / counts.to(values).view(-1, *[1] * (values.ndim - 1))


def pooled(probabilities: Tensor, groups: Tensor, pool: str = "mean") -> Tensor:
    """Return the score of every bag.

    Args:
        probabilities: of each instance to be positive `(rows,)`.
        groups: bag of each `(rows,)`, from 0 on without a gap.
        pool: "mean", "max" or "log-mean-exp", which lies between the two.

    >>> pooled(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0, 0, 1]), "max")
    tensor([1.0000, 0.5000])
    """
    if pool == "mean":
        return mean_by(probabilities, groups)
    if pool == "max":
        return probabilities.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, probabilities, "amax")
    return mean_by(probabilities.exp(), groups).log()


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
    """Return what a model says of instances and bags.

    A last layer that weighs instances by attention, as `attention-mil` puts it in, scores bags itself; then `pool` does
    not matter.

    Args:
        model: gives two logits an instance.
        examples: with `groups`.
        normaliser: of the inputs.
        pool: how bags are scored otherwise.

    Returns:
        Probability of each instance to be positive `(rows,)`; score `(bags,)`, label `(bags,)` and number `(bags,)` of
        each bag.
    """
    assert examples.groups is not None
    numbers, groups = examples.groups.unique(return_inverse=True)
    outputs = predict(model, examples.inputs, normaliser)
    probabilities = outputs.softmax(1)[:, 1]
    bag_logits = getattr(classifier_of(model)[1], "bag_logits", None)
    if callable(bag_logits):
        layer = classifier_of(model)[1]
        features = penultimate(model, examples.inputs, normaliser).to(layer.weight.device)
        with torch.no_grad():
            scores = bag_logits(features, groups.to(features.device)).softmax(1)[:, 1].cpu()
    else:
        scores = pooled(probabilities, groups, pool)
    return probabilities, scores, bag_labels(examples.targets, groups), numbers


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
