"""Segmentation: learn the class of every pixel from masks, judged by the overlap with those of held-out images."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from repertory.datasets import Dataset
from repertory.errors import UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.dense import confusion, mask_metrics, overlaps

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

budget_of = supervised.budget_of


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: the intersection over union, averaged over classes."""
    return "mean_iou"


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that suits the data when the user names none, and why."""
    size = "x".join(map(str, dataset.in_shape[1:]))
    return Part("repertory.models.unet:small_unet"), f"a small U-Net, since each pixel of {size} images has a class"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        UserError: if they have no masks, or options that only another scenario reads.
    """
    refuse_options(dataset, "segmentation")
    if dataset.task != "segmentation":
        raise UserError(
            f"{dataset.name}: scenario segmentation learns the class of every pixel, but the task is {dataset.task}; "
            "give a folder with images and masks, or the built-in shapes, or leave the scenario out"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: AdamW, cosine schedule, cross-entropy of the pixels.

    Args:
        dataset: its size sets the batch size; a photo is shifted and mirrored, and its mask with it.
        model: gives logits `(batch, classes, height, width)`.
        epochs: passes over the training set; 30 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs)
    lr = 1e-2 if model.factory.startswith("repertory.models.unet:") else recipe.optimizer.options["lr"]
    return recipe.replace(
        criterion=Part("repertory.losses.pixel_cross_entropy:PixelCrossEntropyLoss"),
        optimizer=Part(recipe.optimizer.factory, {**recipe.optimizer.options, "lr": lr}),
        # A step sees thousands of pixels of every image, so it needs fewer of them.
        batch_size=min(recipe.batch_size, 8),
    )


class SegmentationBench(Bench):
    """A bench on which a network is judged by the masks that it predicts."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.metric = main_metric(self.task)

    def confusion(self, model: nn.Module, part: str) -> Tensor:
        """Return the pixels of each true class by predicted class, `(classes, classes)`; nothing is counted."""
        examples = self._examples(part)
        return confusion(model, examples.inputs, examples.targets, self.outputs, self.splits.normaliser)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted."""
        return mask_metrics(self.confusion(model, part))


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once; the settings are those of `supervised.run`.

    Returns:
        With the overlap of each class on the test part as a table.

    Raises:
        DivergedError: if the training loss, or a metric of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    dataset = view(dataset)
    splits = dataset.prepare(split_seed(settings))
    bench = SegmentationBench.of(recipe, dataset, splits, **settings)
    learner, _ = supervised.trained(bench)
    counts = {part: bench.confusion(learner, part) for part in ("validation", "test")}
    found = {part: mask_metrics(each) for part, each in counts.items()}
    refuse_non_finite(found)
    table = class_table(counts["test"], dataset.classes)
    return Outcome(learner, found, bench.curve, cost_of(bench), splits, tables={"classes": table})


def class_table(counts: Tensor, classes: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return name, intersection over union, Dice coefficient and true pixels of each class, as columns.

    Args:
        counts: `(classes, classes)`, as `repertory.training.dense.confusion` gives it.
        classes: their names. One that neither masks nor predictions have is left out.
    """
    scores = overlaps(counts)
    there = scores["iou"].isfinite().nonzero().flatten().tolist()
    return {
        "class": [classes[k] for k in there],
        **{name: values[there].tolist() for name, values in scores.items()},
        "pixels": counts.sum(1)[there].tolist(),
    }
