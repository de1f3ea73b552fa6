"""Noisy labels: some training labels are wrong, and models are judged on the true ones."""

from __future__ import annotations

import functools

from repertory.datasets import Dataset
from repertory.scenarios import supervised
from repertory.scenarios.imperfect import NoisyBench
from repertory.scenarios.registry import needs_classes, refuse_options

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

baseline = supervised.baseline
budget_of = supervised.budget_of
default_model = supervised.default_model
main_metric = supervised.main_metric
run = functools.partial(supervised.run, kind=NoisyBench)


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are: labels may be made wrong (`?noise=0.4`), or be wrong as they came.

    Raises:
        UserError: if they have no classes, or options that only another scenario reads.
    """
    refuse_options(dataset, "noisy_labels")
    needs_classes(dataset, "noisy_labels")
    return dataset
