"""Bags of instances: only the bag has a label; bags are judged, and instances where it is known what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self, Unpack

from torch import Tensor, nn

from repertory.datasets import Dataset, Splits
from repertory.datasets.bags import as_bags
from repertory.datasets.new_bags import column_of
from repertory.errors import DataError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.bag_metrics import best_threshold, judged, scores_of
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options
from repertory.training.build import build_part
from repertory.training.loaders import Sampler

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

default_model = supervised.default_model
budget_of = supervised.budget_of


def main_metric(task: str) -> str:
    """Return the metric that a comparison is judged by: how well scores tell positive bags from negative ones."""
    return "bag_auc"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        DataError: if nothing says which rows belong together.
        OptionError: if they have options that only another scenario reads.
    """
    refuse_options(dataset, "bags")
    if dataset.task == "classification" and dataset.groups is not None:
        return as_bags(dataset, {})
    if dataset.task != "bags":
        raise DataError(
            f"{dataset.name}: scenario bags needs rows that belong together: name the column of a table that says so "
            "(?bag=NAME), the subfolders of an image folder's classes (?bags=folders), or make bags of single labelled "
            "examples (?bags=20)"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: each instance takes the label of its bag.

    Args:
        dataset: decides batch size and augmentation, as in the scenario supervised.
        model: the network, of instances.
        epochs: passes over the instances; 30 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs)
    return recipe.replace(criterion=Part("torch.nn:CrossEntropyLoss"))


class BagsBench(Bench):
    """A bench on which a model of instances is judged by their bags.

    Args:
        pool: how bags are scored, one of `repertory.datasets.bags.POOLS`.
    """

    def __init__(self, *given: Any, pool: str = "mean", **more: Any) -> None:
        super().__init__(*given, **{**more, "task": "classification"})
        self.metric = main_metric(self.task)
        self.pool = pool

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset, splits: Splits, **given: Any) -> Self:
        """Return the bench for a recipe on bags cut to `splits`; `given` are further arguments of the class."""
        return super().of(recipe, dataset, splits, pool=_pool(dataset), **given)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted.

        The threshold of the accuracy is the one that is best on the validation part.
        """
        examples = self._examples(part)
        probabilities, scores, labels, _ = scores_of(model, examples, self.splits.normaliser, self.pool)
        chosen = scores, labels
        if part != "validation":
            chosen = scores_of(model, self.splits.validation, self.splits.normaliser, self.pool)[1:3]
        return judged(probabilities, scores, labels, examples.truth, best_threshold(*chosen))

    def _tasks(self, rows: Tensor | None) -> Sequence[tuple[Tensor | None, Sampler | None]]:
        sampler = self.recipe.sampler
        return [(rows, None if sampler is None else build_part(sampler, groups=self.splits.train.groups))]


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once; the settings are those of `supervised.run`.

    Returns:
        With the scores of the test part's bags and instances as tables, and what predictions of bags need to know.

    Raises:
        DivergedError: if the training loss, or a metric of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    dataset = view(dataset)
    outcome = supervised.run(recipe, dataset, kind=BagsBench, **settings)
    splits = outcome.splits
    _, scores, labels, _ = scores_of(outcome.learner, splits.validation, splits.normaliser, _pool(dataset))
    kept = {
        "column": column_of(dataset.spec),
        "pool": _pool(dataset),
        "threshold": best_threshold(scores, labels),
    }
    return dataclasses.replace(outcome, tables=_tables(outcome, dataset), about={"bags": kept})


def _tables(outcome: Outcome, dataset: Dataset) -> dict[str, dict[str, list[Any]]]:
    splits, examples = outcome.splits, outcome.splits.test
    probabilities, scores, labels, numbers = scores_of(outcome.learner, examples, splits.normaliser, _pool(dataset))
    names = dataset.group_names or tuple(map(str, range(int(numbers.max()) + 1)))
    assert examples.groups is not None
    instances: dict[str, list[Any]] = {
        "row": splits.indices["test"],
        "bag": [names[bag] for bag in examples.groups.tolist()],
        "probability": probabilities.tolist(),
    }
    if examples.truth is not None:
        instances["truth"] = [None if value < 0 else dataset.classes[value] for value in examples.truth.tolist()]
    bags = {
        "bag": [names[bag] for bag in numbers.tolist()],
        "label": [dataset.classes[label] for label in labels.tolist()],
        "score": scores.tolist(),
    }
    return {"bags": bags, "instances": instances}


def _pool(dataset: Dataset) -> str:
    return dataset.asked.get("pool", "mean")
