"""Supervised learning: train on labelled examples, judge on held-out ones."""

from __future__ import annotations

from typing import Any, Unpack

import torch

from repertory.datasets import BUILTIN, Dataset, Splits
from repertory.recipe import Part, Recipe
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.budget import Budget, baseline_amount
from repertory.training.evaluate import main_metric
from repertory.training.learner import Learner
from repertory.training.loaders import BatchLoader

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]
_EPOCHS = 30
_PHOTO = 48
"""Shorter side in pixels from which on own colour images are taken for photos."""


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that suits the data when the user names none, and why."""
    if dataset.modality == "image":
        size = "x".join(map(str, dataset.in_shape[1:]))
        return Part(
            "repertory.models.small:small_cnn"
        ), f"a small convolutional network, since the inputs are {size} images"
    if dataset.modality == "sequence":
        return Part(
            "repertory.models.small:conv1d"
        ), "a small 1-d convolutional network, since the inputs are sequences"
    if dataset.modality == "graph":
        return Part("repertory.models.gin:GIN"), "a graph isomorphism network, since the inputs are graphs"
    return Part("repertory.models.small:mlp"), "a small multilayer perceptron, since the inputs are rows of a table"


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: AdamW, cosine schedule, cross-entropy or squared error.

    Args:
        dataset: its size sets the batch size, its origin the augmentation (photos are shifted and mirrored, built-in
            data and tables are not) and the kind of views (those of photos for a user's own colour images of 48 pixels
            a side or more).
        model: the network.
        epochs: passes over the training set; 30 when not given.
    """
    examples = round(len(dataset.targets) * 0.7)
    small = model.factory.startswith("repertory.models.small:")
    lr = 1e-4 if model.options.get("pretrained") else (2e-3 if small else 1e-3)
    loss = "CrossEntropyLoss" if dataset.task == "classification" else "MSELoss"
    photos = dataset.modality == "image" and min(dataset.in_shape[1:]) >= 24
    return Recipe(
        model=model,
        criterion=Part(f"torch.nn:{loss}"),
        optimizer=Part("torch.optim:AdamW", {"lr": lr, "weight_decay": 0.01}),
        epochs=epochs or _EPOCHS,
        batch_size=64 if examples >= 640 else max(8, examples // 10),
        augment="flip-shift" if photos else "none",
        views="photo" if _own_photos(dataset) else "plain",
    )


def _own_photos(dataset: Dataset) -> bool:
    """Whether the data are colour images of the user's own, large enough that a part of one still shows something."""
    colour = dataset.modality == "image" and dataset.in_shape[0] == 3 and dataset.inputs.dtype == torch.uint8
    return colour and min(dataset.in_shape[1:]) >= _PHOTO and dataset.spec.partition("?")[0] not in BUILTIN


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget that the baseline recipe spends in its epochs.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".
    """
    loader = BatchLoader(splits.train.inputs, splits.train.targets, batch_size=recipe.batch_size)
    amount = baseline_amount(
        kind,
        epochs=recipe.epochs,
        examples=len(splits.train),
        batches=len(loader),
        seconds=recipe.epochs * seconds_per_epoch,
    )
    return Budget(kind, amount)  # type: ignore[arg-type]


def run(recipe: Recipe, dataset: Dataset, *, kind: type[Bench] = Bench, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once.

    Args:
        recipe: what to run.
        dataset: the data.
        kind: of the bench, which decides how a model is judged.
        **settings: of the run, see `Settings`.

    Raises:
        DivergedError: if the training loss, or a metric of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    splits = dataset.prepare(split_seed(settings))
    bench = kind.of(recipe, dataset, splits, **settings)
    learner, _ = trained(bench)
    found = {part: bench.evaluate(learner, part) for part in ("validation", "test")}
    refuse_non_finite(found)
    return Outcome(learner, found, bench.curve, cost_of(bench), splits)


def trained(bench: Bench) -> tuple[Learner, list[Any]]:
    """Train a fresh model as the bench's recipe says: curation, what comes before training, training, what comes after.

    Returns:
        The model, and the built parts of what was done after training.
    """
    recipe = bench.recipe
    learner = bench.fresh_model()
    for part in recipe.curation:
        with bench.timed():
            bench.keep(part.build().choose(bench))
    for part in recipe.before:
        with bench.timed():
            learner = part.build().apply(learner, bench)
    learner = bench.train(learner, recipe.train_share)
    after = [part.build() for part in recipe.after]
    for each in after:
        if hasattr(each, "apply"):
            with bench.timed():
                learner = each.apply(learner, bench)
    return learner, after


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        OptionError: if they have options that only another scenario reads.
    """
    refuse_options(dataset, "supervised")
    return dataset
