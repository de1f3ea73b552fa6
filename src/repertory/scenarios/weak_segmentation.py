"""Weakly supervised segmentation: find one kind of object in images from its extreme points, judged by true masks."""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from repertory.core.dense import IGNORED
from repertory.datasets import Dataset, Splits
from repertory.datasets.points import clicked, first_masks
from repertory.errors import UserError
from repertory.recipe import Recipe
from repertory.scenarios import segmentation, supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.dense import predict_masks

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "object_metrics", "run", "view"]

baseline = segmentation.baseline
budget_of = segmentation.budget_of
default_model = segmentation.default_model


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: the Dice coefficient of the object, averaged over images."""
    return "object_dice"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        UserError: if they have no masks, or more kinds of object than one, or options that only another scenario reads.
    """
    refuse_options(dataset, "weak_segmentation")
    if dataset.task != "segmentation":
        raise UserError(
            f"{dataset.name}: scenario weak_segmentation finds objects in images, but the task is {dataset.task}; give "
            "a folder with images and masks or points, or the built-in shapes?object=blob, or leave the scenario out"
        )
    if len(dataset.classes) > 2:
        raise UserError(
            f"{dataset.name} has {len(dataset.classes)} classes, {', '.join(dataset.classes[:12])}; scenario "
            f"weak_segmentation finds one kind of object: name its class, as in ?object={dataset.classes[1]}"
        )
    return dataset


def object_metrics(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Return how well predicted masks agree with true ones on the object.

    Args:
        predicted: `(examples, height, width)`, 1 is the object.
        true: same shape, int64; pixels of 255 do not count.

    Returns:
        object_dice, the mean over images, 1 where neither mask has the object; object_precision and object_recall, over
        the pixels of all images, 0 where there are none.

    >>> masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    >>> object_metrics(torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]]), masks)["object_dice"]
    0.7
    """
    known = true != IGNORED
    found, there = (predicted == 1) & known, true == 1
    hit, given, real = (each.flatten(1).sum(1).double() for each in (found & there, found, there))
    dice = torch.where(given + real > 0, 2 * hit / (given + real).clamp(min=1), 1.0)
    return {
        "object_dice": float(dice.mean()),
        "object_precision": float(hit.sum() / given.sum().clamp(min=1)),
        "object_recall": float(hit.sum() / real.sum().clamp(min=1)),
    }


class WeakBench(segmentation.SegmentationBench):
    """A bench on which a network is judged by the object in the masks that it predicts."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.metric = main_metric(self.task)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted."""
        examples = self._examples(part)
        return object_metrics(
            predict_masks(model, examples.inputs, self.outputs, self.splits.normaliser), examples.targets
        )


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once, with training masks that extreme points alone allow.

    The settings are those of `supervised.run`. The points are those that came with the data, else those of the objects
    in the training masks, which are then hidden. Validation and test part keep their masks.

    Raises:
        DivergedError: if the training loss, or a metric of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    dataset = view(dataset)
    splits = weakened(dataset, dataset.prepare(split_seed(settings)))
    bench = WeakBench.of(recipe, dataset, splits, **settings)
    learner, _ = supervised.trained(bench)
    found = {part: bench.evaluate(learner, part) for part in ("validation", "test")}
    refuse_non_finite(found)
    return Outcome(learner, found, bench.curve, cost_of(bench), splits)


def weakened(dataset: Dataset, splits: Splits) -> Splits:
    """Return the parts with training masks that extreme points alone allow: 1 object, 0 background, 255 open.

    Args:
        dataset: as `view` gives it.
        splits: its parts.

    Raises:
        UserError: if no training image has an object, or scikit-image is not installed.
    """
    rows = splits.indices["train"]
    points = dataset.points
    if points is None:
        points = clicked(splits.train.targets)
        points = torch.cat([torch.tensor(rows)[points[:, :1]], points[:, 1:]], 1)
    if not len(points):
        raise UserError(f"{dataset.name}: no training image has a {dataset.classes[1]}; there is nothing to learn")
    masks = first_masks(dataset.inputs, points, rows)
    return dataclasses.replace(splits, train=dataclasses.replace(splits.train, targets=masks))
