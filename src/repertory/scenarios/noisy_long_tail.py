"""Noisy long tail: classes of very uneven size in training, some labels wrong; judged on true ones of equal weight.

Labels are made wrong after the classes are made uneven, so that the counts a method sees are those of the given labels.
"""

from __future__ import annotations

import functools

from repertory.datasets import Dataset
from repertory.scenarios import long_tail, supervised
from repertory.scenarios.imperfect import UnevenBench
from repertory.scenarios.registry import needs_classes, refuse_options

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

baseline = supervised.baseline
budget_of = supervised.budget_of
default_model = supervised.default_model
main_metric = long_tail.main_metric
run = functools.partial(supervised.run, kind=UnevenBench)


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are: uneven and wrong as they came, or made so (`?imbalance=20&noise=frequent0.2`).

    Raises:
        UserError: if they have no classes, classes of even size, or options that only another scenario reads.
    """
    refuse_options(dataset, "noisy_long_tail")
    needs_classes(dataset, "noisy_long_tail")
    long_tail.refuse_even(dataset, "noisy_long_tail")
    return dataset
