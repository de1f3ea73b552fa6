"""What the scenario retrieval does with pairs of texts: queries search among the distinct passages of their part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.core.texts import bytes_text
from repertory.datasets.texts import distinct_passages
from repertory.recipe import Part, Recipe
from repertory.retrieval.metrics import retrieval_metrics

_QUERIES, _FOUND = 8, 6
"""Queries that are shown, with so many passages each."""


def default_model() -> tuple[Part, str]:
    """Return the network for pairs of texts when the user names none, and why."""
    reason = "a small encoder of hashed words and character trigrams, since the inputs are texts"
    return Part("repertory.models.text:HashedText"), reason


def baseline(recipe: Recipe) -> Recipe:
    """Return a recipe with the loss for pairs, and learning rates that text encoders are used with.

    Args:
        recipe: of the scenario supervised.
    """
    if recipe.model.factory.startswith("repertory.models.text:"):
        # The small encoder starts from nothing; 2e-5 is what BERT and its successors are fine-tuned with.
        rate = 2e-5 if recipe.model.options.get("pretrained") else 2e-3
        recipe = recipe.replace(optimizer=Part(recipe.optimizer.factory, {**recipe.optimizer.options, "lr": rate}))
    return recipe.replace(criterion=Part("repertory.losses.info_nce:InfoNCELoss", {"temperature": 0.05}))


def stacked(embeddings: Tensor, numbers: Tensor) -> Tensor:
    """Return the queries, and below them the distinct passages in rising order of their numbers.

    Args:
        embeddings: `(pairs, texts, dim)`.
        numbers: of each pair's passage `(pairs,)`, int64.

    Returns:
        `(pairs + passages, dim)`.
    """
    return torch.cat([embeddings[:, 0], embeddings[distinct_passages(numbers)[1], 1]])


def judged(rows: Tensor, numbers: Tensor, **more: Any) -> dict[str, float]:
    """Return the metrics of searching each query among the passages.

    Args:
        rows: from `stacked`.
        numbers: of each pair's passage `(pairs,)`, int64.
        more: for `retrieval_metrics`.
    """
    count = len(numbers)
    return retrieval_metrics(rows[:count], numbers, rows[count:], distinct_passages(numbers)[0], **more)


def table(rows: Tensor, inputs: Tensor, numbers: Tensor, indices: Sequence[int]) -> dict[str, list[Any]]:
    """Return the embeddings with their texts as columns of plain values: queries first, then passages.

    Args:
        rows: from `stacked`.
        inputs: the part's pairs `(pairs, texts, length)`.
        numbers: of each pair's passage `(pairs,)`, int64.
        indices: each pair's row of the data set.
    """
    first = distinct_passages(numbers)[1]
    return {
        "row": [*indices, *(indices[place] for place in first.tolist())],
        "role": ["query"] * len(numbers) + ["passage"] * len(first),
        "text": bytes_text(torch.cat([inputs[:, 0], inputs[first, 1]])),
        "embedding": rows.tolist(),
    }


def found_passages(rows: Tensor, numbers: Tensor, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return some queries with the passages that they find; which ones does not depend on the embeddings.

    Args:
        rows: from `stacked`.
        numbers: of each pair's passage `(pairs,)`, int64.
        indices: each pair's row of the data set.

    Returns:
        Mappings with `row`, `column` (0, the query), `class` (empty) and `found`: a list of mappings with `row`,
        `column` (1, the passage), `class` and `right`.
    """
    count = len(numbers)
    of_passages, first = distinct_passages(numbers)
    shown = torch.linspace(0, count - 1, min(_QUERIES, count)).long()
    _, places = nearest_neighbours(rows[shown], rows[count:], min(_FOUND, len(first)))
    return [
        {
            "row": int(indices[query]),
            "column": 0,
            "class": "",
            "found": [
                {
                    "row": int(indices[int(first[place])]),
                    "column": 1,
                    "class": "",
                    "right": bool(of_passages[place] == numbers[query]),
                }
                for place in found
            ],
        }
        for query, found in zip(shown.tolist(), places.tolist())
    ]
