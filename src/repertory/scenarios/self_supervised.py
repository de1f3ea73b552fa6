"""Self-supervised learning: train on inputs alone, then judge the frozen features by what a few labels make of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.core.method import Method
from repertory.core.sharded import spread_like
from repertory.datasets import Dataset, Examples, Normaliser, Splits
from repertory.errors import DivergedError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, needs_classes, refuse_options, split_seed
from repertory.training.budget import Budget, baseline_amount
from repertory.training.evaluate import penultimate
from repertory.training.learner import Learner
from repertory.training.probe import linear_probe, nearest_classes

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

PRETRAINING = "pretraining"
"""The part that is learnt without labels: all training inputs, those with a hidden label after those with one."""
_EPOCHS = 60
_VIEWS = 2
"""Versions of an example that the baseline passes through the network."""
_BATCH = 2
"""The baseline's batches are so many times those of scenario supervised: other examples are what it learns from."""
_NOTED = 2000
"""Most labelled examples that features are judged with during training; at the end it is all of them."""

default_model = supervised.default_model


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: the accuracy of a linear probe."""
    return "probe_accuracy"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        UserError: if there are no classes for a probe, the inputs are texts, or there are options that only another
            scenario reads.
    """
    refuse_options(dataset, "self_supervised")
    needs_classes(dataset, "self_supervised")
    if dataset.modality == "text":
        raise UserError(
            f"{dataset.name}: scenario self_supervised learns from changed versions of the inputs, which texts do not "
            "have; give images, sequences or a table, or leave the scenario out"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: SimCLR, with the optimizer of scenario supervised.

    Args:
        dataset: decides batch size and augmentation.
        model: the network; its last linear layer is left out of the training, and becomes the probe.
        epochs: passes over all training inputs; 60 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs or _EPOCHS)
    return recipe.replace(
        batch_size=_BATCH * recipe.batch_size, objective=Part("repertory.algorithms.simclr:SimCLR", {})
    )


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget that the baseline spends on its pretraining, which passes two versions of each example.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".
    """
    examples = len(splits.train) + (0 if splits.unlabelled is None else len(splits.unlabelled))
    amount = baseline_amount(
        kind,
        epochs=recipe.epochs,
        examples=_VIEWS * examples,
        batches=math.ceil(examples / recipe.batch_size),
        seconds=recipe.epochs * seconds_per_epoch,
    )
    return Budget(kind, amount)  # type: ignore[arg-type]


def prepared(dataset: Dataset, seed: int) -> Splits:
    """Return the data cut for one seed, with inputs scaled by the statistics of all that is trained on."""
    splits = dataset.prepare(seed)
    return dataclasses.replace(splits, normaliser=Normaliser.fit(_inputs(splits)))


class PretrainingBench(Bench):
    """A bench that trains on all training inputs without labels, and judges a model by its frozen features."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.metric = main_metric(self.task)

    def train(
        self, model: Learner, share: float, *, objective: Method | None = None, part: str = PRETRAINING, **options: Any
    ) -> Learner:
        """Train the model in place, on all inputs unless another part is named; else as `Bench.train`."""
        return super().train(model, share, objective=objective, part=part, **options)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part, with 2 000 labelled examples at most, for the record: nothing is counted."""
        labelled = self.splits.train.subset(torch.arange(min(_NOTED, len(self.splits.train))))
        features = penultimate(model, labelled.inputs, self.splits.normaliser)
        weight, bias = linear_probe(features, labelled.targets, self.outputs)
        return self._judged(model, part, features, labelled.targets, lambda rows: rows @ weight.T + bias)

    def probe(self, model: Learner) -> dict[str, dict[str, float]]:
        """Put the probe into the network's last linear layer, and return the metrics on validation and test part.

        Raises:
            DivergedError: if a feature is not finite.
        """
        train = self.splits.train
        features = penultimate(model, train.inputs, self.splits.normaliser)
        if not bool(features.isfinite().all()):
            raise DivergedError("a feature of the training part is not finite; a smaller learning rate helps most")
        weight, bias = linear_probe(features, train.targets, self.outputs)
        layer = classifier_of(model.network)[1]
        layer.load_state_dict(spread_like({"weight": weight, "bias": bias}, layer.state_dict()))
        classify = functools.partial(nn.functional.linear, weight=weight, bias=bias)
        return {part: self._judged(model, part, features, train.targets, classify) for part in ("validation", "test")}

    def _judged(
        self, model: nn.Module, part: str, labelled: Tensor, targets: Tensor, classify: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        examples = self._examples(part)
        features = penultimate(model, examples.inputs, self.splits.normaliser)
        near = nearest_classes(features, labelled, targets, self.outputs)
        return {
            "probe_accuracy": float((classify(features).argmax(1) == examples.targets).double().mean()),
            "knn_accuracy": float((near == examples.targets).double().mean()),
        }

    def _examples(self, part: str) -> Examples:
        if part != PRETRAINING:
            return super()._examples(part)
        known = self.splits.train
        inputs = _inputs(self.splits)
        return Examples(inputs, torch.full((len(inputs),), -1, dtype=known.targets.dtype))


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once; the settings are those of `supervised.run`.

    Returns:
        With the probe in the network's last linear layer, so that the model predicts classes; `embed` gives features.

    Raises:
        DivergedError: if the training loss, or a feature of the trained model, is not finite.
        UserError: if recipe and data do not fit, or the network's last linear layer has no bias.
    """
    splits = prepared(dataset, split_seed(settings))
    bench = PretrainingBench.of(recipe, dataset, splits, **settings)
    name, layer = classifier_of(bench.fresh_model().network)
    if layer.bias is None:
        raise UserError(
            f"the network's last linear layer {name!r} has no bias, which the probe needs; give a network whose last "
            "nn.Linear has one"
        )
    learner, _ = supervised.trained(bench)
    found = bench.probe(learner)
    return Outcome(learner, found, bench.curve, cost_of(bench), splits)


def _inputs(splits: Splits) -> Tensor:
    hidden = [] if splits.unlabelled is None else [splits.unlabelled.inputs]
    return torch.cat([splits.train.inputs, *hidden]) if hidden else splits.train.inputs
