"""What is added to the labelled examples: surely recognised ones of a pool, and made ones of rare classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.errors import ConflictError, DataError, check_number
from repertory.transforms.dfu_ensemble.ensemble import mean_probabilities
from repertory.transforms.dfu_ensemble.generators import Generator, check_images, make_generator
from repertory.transforms.dfu_ensemble.pseudo import pseudo_labels, quota, thresholds


@dataclass
class Extension:
    """Further examples to train on.

    Args:
        rows: of the pool that got a label `(pseudo,)`, int64.
        labels: theirs `(pseudo,)`, int64.
        made: new examples `(made, ...)`, float32, in the units of the examples they were made from.
        made_labels: theirs `(made,)`, int64.
    """

    rows: Tensor
    labels: Tensor
    made: Tensor
    made_labels: Tensor

    def counts(self, classes: int) -> tuple[Tensor, Tensor]:
        """Return how many pseudo-labelled and how many made examples each class gets, `(classes,)` each."""
        return self.labels.bincount(minlength=classes), self.made_labels.bincount(minlength=classes)


def extend(
    inputs: Tensor,
    labels: Tensor,
    pool: Tensor | None,
    probabilities: Tensor | None,
    maker: Generator | None,
    generator: torch.Generator,
    *,
    classes: int,
    threshold: float | Sequence[float] = 0.9,
    cap: int | None = None,
    ratio: float = 1.0,
) -> Extension:
    """Label what is sure in the pool, then make examples until every class comes up to the largest.

    Args:
        inputs: labelled examples `(n, ...)`.
        labels: their classes `(n,)`, int64.
        pool: examples without a label `(pool, ...)`, or None.
        probabilities: what an ensemble says of the pool `(pool, classes)`, or None.
        maker: makes examples, learning from the labelled and the pseudo-labelled ones; None makes none.
        generator: CPU generator of all draws.
        classes: number of classes.
        threshold: see `pseudo_labels`.
        cap: see `pseudo_labels`.
        ratio: see `quota`.

    Raises:
        DataError: if the examples do not go together, a number is not finite, or a class has no labelled example.
        OptionError: if `threshold`, `cap` or `ratio` is out of range.

    >>> draws = torch.Generator().manual_seed(0)
    >>> inputs, labels = torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]]), torch.tensor([0, 0, 0, 1, 1])
    >>> found = extend(
    ...     inputs, labels, torch.tensor([[1.5], [5.0]]), torch.tensor([[0.98, 0.02], [0.5, 0.5]]),
    ...     make_generator("gaussian"), draws, classes=2,
    ... )  # fmt: skip
    >>> found.rows, found.made_labels
    (tensor([0]), tensor([1, 1]))
    """
    rows = given = torch.zeros(0, dtype=torch.int64)
    check_images(inputs, labels)
    if pool is not None and probabilities is not None:
        if pool.shape[1:] != inputs.shape[1:] or len(pool) != len(probabilities):
            raise DataError(
                f"pool {tuple(pool.shape)} with probabilities {tuple(probabilities.shape)} does not go with inputs "
                f"{tuple(inputs.shape)}: give examples of the same shape, and a row of probabilities each"
            )
        rows, given = pseudo_labels(probabilities, threshold, cap)
    wanted = quota(labels.bincount(minlength=classes), given.bincount(minlength=classes), ratio)
    made, made_labels = [inputs[:0].float()], [labels[:0]]
    if maker is not None and bool(wanted.any()):
        learnt = inputs if pool is None else torch.cat([inputs, pool[rows]])
        maker.fit(learnt, torch.cat([labels, given]), generator)
        for label in wanted.nonzero().flatten().tolist():
            made.append(maker.sample(label, int(wanted[label]), generator))
            made_labels.append(torch.full((int(wanted[label]),), label))
    return Extension(rows, given, torch.cat(made), torch.cat(made_labels))


@dataclass
class Extended:
    """What `extend_and_ensemble` gives.

    Args:
        predictors: the members, each a function from inputs to probabilities `(n, classes)`.
        extension: what they were trained on beside the labelled examples.
    """

    predictors: list[Callable[[Any], Any]]
    extension: Extension

    def probabilities(self, inputs: Any) -> Tensor:
        """Return the mean of the members' probabilities `(n, classes)`, float64."""
        return _voted(self.predictors, inputs)


def extend_and_ensemble(
    fit: Callable[[Any, Any, int], Callable[[Any], Any]],
    inputs: Any,
    labels: Any,
    pool: Any = None,
    *,
    members: int = 3,
    threshold: float | Sequence[float] = 0.9,
    cap: int | None = None,
    ratio: float = 1.0,
    maker: str | Generator = "gaussian",
    seed: int = 0,
) -> Extended:
    """Train an ensemble, let it label a pool, make examples of rare classes, and train the ensemble anew.

    For models of any kind, in a loop of your own. With nothing to add the members are not trained a second time.

    Args:
        fit: called with inputs, labels and the number of the member, trains a new model and returns its function from
            inputs to probabilities `(n, classes)`: an array or a tensor.
        inputs: labelled examples `(n, ...)`, an array or a tensor; `fit` gets the like.
        labels: their classes `(n,)`, whole numbers from 0.
        pool: examples without a label `(pool, ...)`, or None.
        members: number of models.
        threshold: see `pseudo_labels`.
        cap: see `pseudo_labels`.
        ratio: see `quota`.
        maker: "gaussian", "smote", "diffusion", or anything with their `fit` and `sample`.
        seed: of what is made.

    Raises:
        DataError: if examples do not go together, a number is not finite, or a class has no labelled example.
        OptionError: if an option is out of range.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> inputs, labels = load_iris(return_X_y=True)
    >>> few = [*range(20), *range(50, 70), *range(100, 104)]
    >>> found = extend_and_ensemble(
    ...     lambda x, y, member: LogisticRegression(max_iter=500).fit(x, y).predict_proba,
    ...     inputs[few], labels[few], inputs[20:50], members=1,
    ... )  # fmt: skip
    >>> [count.tolist() for count in found.extension.counts(3)]
    [[30, 0, 0], [0, 30, 46]]
    """
    check_number("members", members, minimum=1, integer=True)
    thresholds(threshold)
    x, y = (
        values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values)) for values in (inputs, labels)
    )
    bare = None if pool is None else pool if isinstance(pool, Tensor) else torch.as_tensor(np.asarray(pool))
    check_images(x, y)
    classes = int(y.max()) + 1
    like = (lambda values: values) if isinstance(inputs, Tensor) else (lambda values: values.numpy())
    predictors = [fit(inputs, labels, member) for member in range(members)]
    probabilities = None if bare is None else _voted(predictors, like(bare))
    if probabilities is not None and probabilities.shape[1] != classes:
        raise ConflictError(
            f"fit gave probabilities of {probabilities.shape[1]} classes, but the labels are 0 to {classes - 1}"
        )
    found = extend(
        x, y, bare, probabilities, make_generator(maker) if isinstance(maker, str) else maker,
        torch.Generator().manual_seed(seed), classes=classes, threshold=threshold, cap=cap, ratio=ratio,
    )  # fmt: skip
    if not len(found.labels) + len(found.made):
        return Extended(predictors, found)
    more = [found.made.to(x.dtype)] if bare is None else [bare[found.rows].to(x.dtype), found.made.to(x.dtype)]
    x, y = torch.cat([x, *more]), torch.cat([y, found.labels.to(y.dtype), found.made_labels.to(y.dtype)])
    return Extended([fit(like(x), like(y), member) for member in range(members)], found)


def _voted(predictors: Sequence[Callable[[Any], Any]], inputs: Any) -> Tensor:
    return mean_probabilities([torch.as_tensor(each(inputs)).detach().cpu().double() for each in predictors])
