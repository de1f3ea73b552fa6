"""Semi-supervised learning: few examples with a label, many without, judged on held-out ones."""

from __future__ import annotations

import math
from typing import Any

from repertory.datasets import Dataset, Splits
from repertory.datasets.corruptions import label_count
from repertory.errors import DataError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.registry import needs_classes, refuse_options
from repertory.training.budget import Budget, baseline_amount

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

_EPOCHS = 100
"""Passes over all training examples: with few labels a pass over them says little."""
_SMALLEST_BATCH = 8
_GET_SOME = (
    "hide labels with an option of the data, as in 'digits?labels=40', or put images without a class into a folder "
    "unlabelled beside the class folders"
)

default_model = supervised.default_model
main_metric = supervised.main_metric
run = supervised.run


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        UserError: if they have no unlabelled part or no classes, or options that only another scenario reads.
    """
    refuse_options(dataset, "semi_supervised")
    needs_classes(dataset, "semi_supervised")
    if not dataset.some_unlabelled:
        raise DataError(
            f"{dataset.name}: every example has a label, and scenario semi_supervised needs some without; {_GET_SOME}"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: that of scenario supervised, on the labelled part alone.

    An epoch passes over the labelled examples as often as makes it as long as one over all training examples, so
    methods that use the unlabelled ones are compared at the cost of such an epoch. Batches are a quarter of the
    labelled examples where these are few.

    Args:
        dataset: its sizes set batch and epoch, its origin the augmentation.
        model: the network.
        epochs: passes over as many examples as there are for training, with and without a label; 100 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs or _EPOCHS)
    labelled, everything = _sizes(dataset)
    return recipe.replace(
        batch_size=min(recipe.batch_size, max(_SMALLEST_BATCH, labelled // 4)),
        sampler=Part("repertory.core.sampling:RepeatedRows", {"times": max(1, round(everything / labelled))}),
    )


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget that the baseline recipe spends in its epochs.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".

    Raises:
        DataError: if no training example is without a label.
    """
    if splits.unlabelled is None:
        raise DataError(
            f"{dataset.name}: all {len(splits.train)} training examples keep their label; ask for fewer labels, as in "
            "?labels=40"
        )
    options: dict[str, Any] = dict(recipe.sampler.options) if recipe.sampler is not None else {}
    examples = len(splits.train) * options.get("times", 1)
    amount = baseline_amount(
        kind,
        epochs=recipe.epochs,
        examples=examples,
        batches=math.ceil(examples / recipe.batch_size),
        seconds=recipe.epochs * seconds_per_epoch,
    )
    return Budget(kind, amount)  # type: ignore[arg-type]


def _sizes(dataset: Dataset) -> tuple[int, int]:
    """How many training examples have a label, about, and how many there are with those that have none."""
    train = len(dataset.fixed["train"]) if dataset.fixed else len(dataset.targets)
    train -= sum(round(0.15 * train) for part in ("validation", "test") if part not in dataset.fixed)
    labelled = min(train, label_count(dataset.corruptions)) if "labels" in dataset.corruptions else train
    return labelled, train + (0 if dataset.unlabelled is None else len(dataset.unlabelled))
