"""Continual learning: classes come in a sequence of tasks, and what was learnt before must not be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from repertory.core.step import Step
from repertory.datasets import Dataset
from repertory.datasets.sequence import deal_classes, rehearsal, remembered, task_count
from repertory.datasets.stratify import random_ranks
from repertory.errors import DataError, DivergedError, OptionError
from repertory.recipe import Part, Recipe
from repertory.retrieval.compatibility import (
    average_compatibility,
    average_multi_model_accuracy,
    cross_version_matrix,
)
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.evaluate import predict
from repertory.training.learner import Learner
from repertory.training.loaders import Sampler

__all__ = ["Versions", "baseline", "budget_of", "default_model", "forgetting", "main_metric", "run", "view"]

default_model = supervised.default_model
budget_of = supervised.budget_of


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: accuracy over all classes after the last task."""
    return "accuracy"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        DataError: if there are no classes to come one after the other.
        OptionError: if they have options that only another scenario reads.
    """
    if dataset.task != "classification":
        raise DataError(
            f"{dataset.name}: in scenario continual classes come one after the other, but the task is {dataset.task}; "
            "give data with classes, or choose --scenario supervised"
        )
    refuse_options(dataset, "continual")
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: that of scenario supervised, trained on task after task.

    Args:
        dataset: decides batch size and augmentation.
        model: the network.
        epochs: passes over the training set, all tasks together; 30 when not given.
    """
    return supervised.baseline(view(dataset), model, epochs=epochs)


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe over the sequence of tasks once.

    The classes are dealt to tasks of equal size in an order drawn from the seed. Each task gets an equal share of the
    budget, over which the learning rate goes once through its schedule; network, optimizer and methods live on from
    task to task, and methods are told of each task's end. From the second task on half of each batch are stored
    examples of the tasks before. The network has an output for every class from the start, and is never told the task.

    Args:
        recipe: what to run.
        dataset: the data; their options `tasks` and `rehearsal` set the number of tasks and of stored examples a class.
        **settings: of the run, see `Settings`. One process learns a sequence, so there is no fabric; checkpoints are
            not used: a run that is cut off starts afresh.

    Returns:
        With the table "versions": what queries of each version find in the gallery of each version.

    Raises:
        DivergedError: if the training loss, or a metric of a version, is not finite.
        OptionError: if several devices are asked for.
        UserError: if recipe and data do not fit.
    """
    if settings.get("fabric") is not None:
        raise OptionError("fabric is not allowed with scenario continual: one process learns a sequence; leave it out")
    dataset = view(dataset)
    splits = dataset.prepare(split_seed(settings))
    bench = ContinualBench.of(recipe, dataset, splits, **settings)
    bench.begin(task_count(dataset.asked, dataset.outputs), rehearsal(dataset.asked))
    learner, after = supervised.trained(bench)
    if after:
        bench.judge(learner, again=True)
    found = {part: versions.metrics() for part, versions in bench.versions.items()}
    refuse_non_finite(found)
    tables = {"versions": bench.versions["test"].table()}
    return Outcome(learner, found, bench.curve, cost_of(bench), splits, tables=tables)


class ContinualBench(Bench):
    """A bench whose training goes from task to task, and which judges the version at the end of each."""

    def begin(self, tasks: int, kept: int) -> None:
        """Deal the classes, and choose what is kept of each.

        Args:
            tasks: number of tasks.
            kept: examples a class to keep.
        """
        self.classes = deal_classes(self.outputs, tasks, self.generator("tasks"))
        targets = self.splits.train.targets
        self._memory = torch.zeros(len(targets), dtype=torch.bool)
        self._memory[remembered(targets, kept, self.generator("rehearsal"))] = True
        self.versions = {part: Versions(self._examples(part).targets, self.classes) for part in ("validation", "test")}

    def judge(self, model: Learner, again: bool = False) -> None:
        """Note what the network as it is now makes of the validation and the test part; nothing is counted.

        Args:
            model: the network.
            again: in place of the last version.
        """
        for part, versions in self.versions.items():
            outputs = predict(model, self._examples(part).inputs, self.splits.normaliser)
            versions.add(outputs, self.embeddings(model, part), again)

    def _tasks(self, rows: Tensor | None) -> Sequence[tuple[Tensor | None, Sampler | None]]:
        targets, tasks = self.splits.train.targets, []
        allowed = torch.ones(len(targets), dtype=torch.bool)
        if rows is not None:
            allowed = torch.zeros_like(allowed).index_fill_(0, rows, True)
        for number, classes in enumerate(self.classes):
            new = torch.isin(targets, classes) & allowed
            old = torch.isin(targets, torch.cat([classes[:0], *self.classes[:number]])) & self._memory & allowed
            sampler: Sampler | None = Rehearsal(old) if bool(old.any()) else None
            if self.recipe.sampler is not None:
                sampler = self.recipe.sampler.build()
            tasks.append(((new | old).nonzero().flatten(), sampler))
        return tasks

    def _task_end(self, step: Step, model: Learner) -> None:
        step.end_task()
        self.judge(model)


class Rehearsal:
    """The order of an epoch in which every other example is a stored one, however few there are of them.

    Args:
        stored: which rows of the training part are stored ones `(examples,)`, bool.

    >>> order = Rehearsal(torch.tensor([True, False, False, False]))
    >>> rows, generator = torch.arange(4), torch.Generator().manual_seed(0)
    >>> order(rows, torch.zeros(4), generator).tolist()
    [3, 0, 1, 0, 2, 0]
    """

    def __init__(self, stored: Tensor) -> None:
        self.stored = stored

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return each new row once, in random order, each before a stored one; these come equally often."""
        stored = self.stored[rows]
        new, old = rows[~stored], rows[stored]
        new = new[torch.randperm(len(new), generator=generator)]
        rounds = -(-len(new) // len(old))
        replayed = torch.cat([old[torch.randperm(len(old), generator=generator)] for _ in range(rounds)])
        return torch.stack([new, replayed[: len(new)]], 1).flatten()


class Versions:
    """What the versions of a network, one a task, make of one part of the data.

    Half of the examples of each class are a gallery, and the others queries that search in it.

    Args:
        targets: classes `(examples,)`, int64.
        tasks: the classes of each task, in their order.
    """

    def __init__(self, targets: Tensor, tasks: Sequence[Tensor]) -> None:
        self.targets = targets
        self.tasks = tasks
        self._right: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        # A class with one example has it in the gallery.
        self._searched = random_ranks(targets, torch.Generator().manual_seed(0)) % 2 == 0

    def add(self, outputs: Tensor, embeddings: Tensor, again: bool = False) -> None:
        """Add a version.

        Args:
            outputs: its logits `(examples, classes)`.
            embeddings: what it searches by `(examples, dim)`.
            again: in place of the last one.

        Raises:
            DivergedError: if a number is not finite.
        """
        if not bool(outputs.isfinite().all()) or not bool(embeddings.isfinite().all()):
            raise DivergedError(
                f"an output is not finite after task {len(self._right) + 1 - again}; a smaller learning rate helps most"
            )
        if again:
            del self._right[-1], self._embeddings[-1]
        self._right.append(outputs.argmax(1) == self.targets)
        self._embeddings.append(embeddings)

    def accuracies(self) -> Tensor:
        """Return each version's accuracy on the classes of each task, `(versions, tasks)`; NaN without examples."""
        own = torch.stack([torch.isin(self.targets, classes) for classes in self.tasks]).double()
        return torch.stack(self._right).double() @ own.T / own.sum(1)

    def cross_version(self) -> Tensor | None:
        """Return the matrix of what queries of one version find in the gallery of another, as far as there are queries.

        See `repertory.retrieval.compatibility.cross_version_matrix`.
        """
        asked = ~self._searched
        if not bool(asked.any()) or len({found.shape[1] for found in self._embeddings}) > 1:
            return None
        queries = [found[asked] for found in self._embeddings]
        galleries = [found[self._searched] for found in self._embeddings]
        return cross_version_matrix(queries, self.targets[asked], galleries, self.targets[self._searched])

    def metrics(self) -> dict[str, float]:
        """Return what is reported once all tasks are learnt.

        Returns:
            `accuracy` over all classes; `average_accuracy`, the mean over tasks of the accuracy on the classes so far
            right after each; `forgetting`; and where there are queries `compatibility`, `cross_version` and
            `new_on_old`, the last version's queries in the first version's gallery.
        """
        seen = [
            self._right[number][torch.isin(self.targets, torch.cat(list(self.tasks[: number + 1])))]
            for number in range(len(self._right))
        ]
        found = {
            "accuracy": float(self._right[-1].double().mean()),
            # A part that came with the data may lack some classes.
            "average_accuracy": float(torch.stack([right.double().mean() for right in seen]).nanmean()),
            "forgetting": forgetting(self.accuracies()),
        }
        matrix = self.cross_version()
        if matrix is not None:
            found["compatibility"] = average_compatibility(matrix)
            found["cross_version"] = average_multi_model_accuracy(matrix)
            found["new_on_old"] = float(matrix[-1, 0])
        return found

    def table(self) -> dict[str, list[Any]]:
        """Return the accuracy on each task and the cross-version matrix as columns, a row a pair."""
        accuracies, matrix = self.accuracies(), self.cross_version()
        pairs = [(i, j) for i in range(len(accuracies)) for j in range(i + 1)]
        return {
            "version": [i + 1 for i, _ in pairs],
            "task": [j + 1 for _, j in pairs],
            "accuracy_on_task": [float(accuracies[i, j]) for i, j in pairs],
            "found_in_gallery_of_that_version": [None if matrix is None else float(matrix[i, j]) for i, j in pairs],
        }


def forgetting(accuracies: Tensor) -> float:
    r"""Return the mean over all tasks but the last of what its accuracy has lost since it was best.

    $$ \frac{1}{T-1} \sum_{j<T} \max_{j \le l < T} a_{lj} - a_{Tj} , $$
    which is below 0 where tasks gained by those that came after them.

    Args:
        accuracies: of the version after each task, on the classes of each task, `(tasks, tasks)`; tasks with NaN are
            left out.

    >>> round(forgetting(torch.tensor([[0.9, 0.0], [0.6, 0.8]])), 4)
    0.3
    """
    last = len(accuracies) - 1
    lost = [accuracies[j:last, j].max() - accuracies[last, j] for j in range(last)]
    return float(torch.stack(lost).double().nanmean())
