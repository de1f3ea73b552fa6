"""Long tail: classes of very uneven size in training, all of equal weight when models are judged."""

from __future__ import annotations

import functools

from repertory.datasets import Dataset
from repertory.errors import DataError
from repertory.scenarios import supervised
from repertory.scenarios.imperfect import UnevenBench
from repertory.scenarios.registry import needs_classes, refuse_options

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "refuse_even", "run", "view"]

_EVEN = 1.5
"""Classes whose largest is at most so many times the smallest have no tail."""

baseline = supervised.baseline
budget_of = supervised.budget_of
default_model = supervised.default_model
run = functools.partial(supervised.run, kind=UnevenBench)


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: the mean accuracy of the classes."""
    return "balanced_accuracy"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are: classes may be made uneven (`?imbalance=20`), or be so as they came.

    Raises:
        UserError: if they have no classes, classes of even size, or options that only another scenario reads.
    """
    refuse_options(dataset, "long_tail")
    needs_classes(dataset, "long_tail")
    refuse_even(dataset, "long_tail")
    return dataset


def refuse_even(dataset: Dataset, name: str) -> None:
    """See that classes are uneven, or are to be made so.

    Args:
        dataset: data with classes.
        name: of the scenario.

    Raises:
        DataError: if they are not.
    """
    trained = dataset.targets[dataset.fixed["train"]] if dataset.fixed else dataset.targets
    counts = trained.bincount(minlength=len(dataset.classes))
    largest, smallest = int(counts.max()), int(counts.min())
    if "imbalance" not in dataset.corruptions and largest <= _EVEN * smallest:
        raise DataError(
            f"{dataset.name}: the classes are of nearly equal size ({smallest} to {largest} examples), and scenario "
            f"{name} needs uneven ones; make them so with an option of the data, as in '{dataset.name}?imbalance=20', "
            "or leave the scenario out"
        )
