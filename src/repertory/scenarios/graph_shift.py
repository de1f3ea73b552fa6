"""Graphs under a shift: train on graphs of some kinds, judge on those of another (larger, later, otherwise biased)."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from torch import Tensor, nn

from repertory.datasets import Dataset
from repertory.datasets.graphs import shifted
from repertory.errors import DataError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options
from repertory.training.evaluate import predict

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

_EPOCHS = 50

budget_of = supervised.budget_of
default_model = supervised.default_model
main_metric = supervised.main_metric


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        DataError: if they are no graphs, or nothing says which of the test graphs are shifted.
        OptionError: if they have options that only another scenario reads.
    """
    refuse_options(dataset, "graph_shift")
    if dataset.modality != "graph":
        raise DataError(
            f"{dataset.name}: scenario graph_shift needs graphs, but the data are a {dataset.modality}; give a folder "
            "in TU format, a .jsonl or .parquet file with edges, or --data motif-graphs"
        )
    parts = dataset.fixed
    if dataset.groups is None or "test" not in parts:
        raise DataError(
            f"{dataset.name}: nothing says which graphs are shifted; give groups (the environment of each graph) and a "
            "test part with environments that the training part has not"
        )
    if not bool(shifted(dataset.groups[parts["test"]], dataset.groups[parts["train"]]).any()):
        raise DataError(
            f"{dataset.name}: all environments of the test part are in the training part too, so nothing is shifted; "
            "hold one out whole (?held=NAME)"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: Adam with a cosine schedule, and cross-entropy.

    Args:
        dataset: its size sets the batch size, as in the scenario supervised.
        model: the network.
        epochs: passes over the training set; 50 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs or _EPOCHS)
    # 0.01 is the rate of the paper on graph isomorphism networks.
    return recipe.replace(optimizer=Part("torch.optim:Adam", {"lr": 0.01}))


class ShiftBench(Bench):
    """A bench whose test part is judged apart: the shifted graphs, those like the training graphs, each environment."""

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted.

        Those of the test part are of the shifted graphs, but for `in_distribution_accuracy`, that of held-out graphs
        like the training graphs, and `worst_environment_accuracy` over all of its environments where there are more
        than these two.
        """
        if part != "test":
            return super().evaluate(model, part)
        examples, trained = self.splits.test, self.splits.train.groups
        assert examples.groups is not None
        assert trained is not None
        outputs = predict(model, examples.inputs, self.splits.normaliser)
        outside = shifted(examples.groups, trained)
        found = self.metrics_of(outputs[outside], examples.targets[outside])
        right = (outputs.argmax(1) == examples.targets).double()
        if not bool(outside.all()):
            found["in_distribution_accuracy"] = float(right[~outside].mean())
        each = environment_accuracies(right, examples.groups)
        if len(each) > 2:
            found["worst_environment_accuracy"] = float(each.min())
        return found


def environment_accuracies(right: Tensor, groups: Tensor) -> Tensor:
    """Return the accuracy in each environment that occurs, in their order.

    Args:
        right: 1 where the prediction is right, else 0 `(examples,)`.
        groups: environment of each example `(examples,)`, int64.

    >>> import torch
    >>> environment_accuracies(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([3, 3, 5])).tolist()
    [0.5, 1.0]
    """
    numbers, place = groups.unique(return_inverse=True)
    sums = right.new_zeros(len(numbers)).index_add(0, place, right)
    return sums / place.bincount()


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once; the settings are those of `supervised.run`.

    Returns:
        With a table of the test graphs: row, environment, whether it is shifted, label and prediction.

    Raises:
        DivergedError: if the training loss, or a metric of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    dataset = view(dataset)
    outcome = supervised.run(recipe, dataset, kind=ShiftBench, **settings)
    examples, trained = outcome.splits.test, outcome.splits.train.groups
    assert examples.groups is not None
    assert trained is not None
    predicted = predict(outcome.learner, examples.inputs, outcome.splits.normaliser).argmax(1)
    names = dataset.group_names or tuple(map(str, range(int(examples.groups.max()) + 1)))
    table = {
        "row": outcome.splits.indices["test"],
        "environment": [names[group] for group in examples.groups.tolist()],
        "shifted": shifted(examples.groups, trained).tolist(),
        "label": [dataset.classes[label] for label in examples.targets.tolist()],
        "prediction": [dataset.classes[label] for label in predicted.tolist()],
    }
    return dataclasses.replace(outcome, tables={"graphs": table})
