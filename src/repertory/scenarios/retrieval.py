"""Retrieval: learn embeddings on some classes or pairs of texts, search by them among others."""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from repertory.datasets import Dataset, Splits
from repertory.errors import DivergedError, UserError
from repertory.layers.embedding import with_embedding
from repertory.recipe import Part, Recipe
from repertory.retrieval.metrics import clustering_agreement, retrieval_metrics
from repertory.retrieval.sheet import neighbour_rows
from repertory.scenarios import pairs, supervised
from repertory.scenarios.accounts import cost_of
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.learner import Learner

__all__ = ["baseline", "budget_of", "default_model", "main_metric", "run", "view"]

_DIM = 64
"""Size of the baseline's embedding."""
_FIRST = 8
"""One part in so many of the embedding, its first numbers, is searched by too: how well it can be cut short."""

budget_of = supervised.budget_of


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: mean average precision at R, for pairs mean reciprocal rank.

    Where a query has one passage only, the precision just says whether it comes first.
    """
    return "mrr" if task == "pairs" else "map_at_r"


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that suits the data when the user names none, and why."""
    return pairs.default_model() if dataset.task == "pairs" else supervised.default_model(dataset)


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are cut for a search.

    Raises:
        UserError: if there are no classes to search for, or too few to hold some out, or if they have options that
            only another scenario reads.
    """
    refuse_options(dataset, "retrieval")
    if dataset.task == "regression":
        raise UserError(
            f"{dataset.name}: scenario retrieval searches for examples of a class, but the task is {dataset.task}; "
            "give data with classes, or leave the scenario out"
        )
    if dataset.task == "pairs":
        return dataset
    asked = dataset.asked_by("retrieval")
    if (camera := asked.pop("group", None)) is not None and dataset.groups is None:
        raise UserError(
            f"group={camera} names nothing in {dataset.name}; it is a column of a table, or 'folders' for images in "
            "FOLDER/CLASS/CAMERA folders; leave it out otherwise"
        )
    if dataset.apart and asked:
        raise UserError(
            f"{dataset.name}: the test part has classes of its own, so "
            f"{', '.join(f'{key}={value}' for key, value in asked.items())} does not apply; leave it out"
        )
    seen = dataclasses.replace(dataset, searched=True)
    assert seen.outputs > 0
    return seen


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: an embedding trained by a softmax on cosines.

    The cosines are those with a direction a class, for pairs those with the other passages of the batch.

    Args:
        dataset: decides batch size and augmentation, as in the scenario supervised.
        model: the network; its classifier gives way to the embedding.
        epochs: passes over the training set; 30 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs)
    if dataset.task == "pairs":
        return pairs.baseline(recipe)
    recipe = with_embedding(recipe, _DIM, None)
    loss = Part("repertory.losses.normalised_softmax:NormalisedSoftmaxLoss", {"dim": _DIM})
    return recipe.replace(criterion=loss)


class RetrievalBench(Bench):
    """A bench on which a model is judged by searching with its embeddings."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.metric = main_metric(self.task)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics of searching each example of a part among the others, for the record: nothing counts."""
        examples = self._examples(part)
        if part == "train":
            return {}
        if self.task == "pairs":
            return pairs.judged(pairs.stacked(self.embeddings(model, part), examples.targets), examples.targets)
        return retrieval_metrics(self.embeddings(model, part), examples.targets)


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe once; the settings are those of `supervised.run`.

    Returns:
        With metrics of the search, the test part's embeddings as a table, and some queries with what they found.

    Raises:
        DivergedError: if the training loss, or an embedding of the trained model, is not finite.
        UserError: if recipe and data do not fit.
    """
    dataset, seed = view(dataset), settings["seed"]
    splits = dataset.prepare(split_seed(settings))
    bench = RetrievalBench.of(recipe, dataset, splits, **settings)
    learner, parts = supervised.trained(bench)
    found, embeddings = {}, torch.empty(0)
    for part in ("validation", "test"):
        embeddings = _searched(learner, bench, parts, part)
        found[part] = _judged(embeddings, getattr(splits, part).targets, None if dataset.task == "pairs" else seed)
    if dataset.task == "pairs":
        targets, indices = splits.test.targets, splits.indices["test"]
        table = pairs.table(embeddings, splits.test.inputs, targets, indices)
        neighbours = pairs.found_passages(embeddings, targets, indices)
    else:
        table = _table(embeddings, splits, dataset)
        neighbours = neighbour_rows(embeddings, splits.test.targets, splits.indices["test"], dataset.classes)
    return Outcome(
        learner,
        found,
        bench.curve,
        cost_of(bench),
        splits,
        tables={"embeddings": table},
        neighbours=neighbours,
        after=parts,
    )


def _searched(learner: Learner, bench: Bench, parts: list[Any], part: str) -> Tensor:
    """What a part of the data is searched by, after what recipes do to all embeddings together."""
    embeddings, groups = bench.embeddings(learner, part), bench._examples(part).groups
    asked = {} if groups is None else {"groups": groups}
    if bench.task == "pairs":
        embeddings = pairs.stacked(embeddings, bench._examples(part).targets)
    for each in parts:
        if hasattr(each, "refine"):
            with bench.timed():
                embeddings = each.refine(embeddings, **asked)
    if not bool(embeddings.isfinite().all()):
        raise DivergedError(f"an embedding of the {part} part is not finite; a smaller learning rate helps most")
    return embeddings


def _judged(embeddings: Tensor, targets: Tensor, seed: int | None) -> dict[str, float]:
    """The metrics of a search; without a seed, of queries and passages."""
    judge = retrieval_metrics if seed is not None else pairs.judged
    found = judge(embeddings, targets)
    first = max(1, embeddings.shape[1] // _FIRST)
    found["map_at_r_eighth"] = judge(embeddings[:, :first], targets, recalls=())["map_at_r"]
    if seed is not None:
        found["nmi"] = clustering_agreement(embeddings, targets, seed)
    return found


def _table(embeddings: Tensor, splits: Splits, dataset: Dataset) -> dict[str, list[Any]]:
    return {
        "row": splits.indices["test"],
        "class": [dataset.classes[label] for label in splits.test.targets.tolist()],
        "embedding": embeddings.tolist(),
    }
