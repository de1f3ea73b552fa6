"""Some queries with their neighbours, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours

_QUERIES, _NEIGHBOURS = 8, 6


def neighbour_rows(
    embeddings: Tensor, labels: Tensor, rows: Sequence[int], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return queries spread over the classes, with their nearest neighbours among the others.

    Which queries does not depend on the embeddings, so that methods can be compared on them.

    Args:
        embeddings: `(n, dim)`.
        labels: `(n,)`, int64.
        rows: position of each in the data set.
        classes: names by label.

    Returns:
        Mappings with `row`, `class` and `found`: a list of mappings with `row`, `class` and `right`.
    """
    count = min(_NEIGHBOURS, len(embeddings) - 1)
    if count < 1:
        return []
    queries = torch.tensor(_spread(labels)[:_QUERIES])
    _, places = nearest_neighbours(embeddings[queries], embeddings, count, own=queries)
    return [
        {
            **_named(query, labels, rows, classes),
            "found": [
                {**_named(other, labels, rows, classes), "right": bool(labels[other] == labels[query])}
                for other in found
            ],
        }
        for query, found in zip(queries.tolist(), places.tolist())
    ]


def _spread(labels: Tensor) -> list[int]:
    """All positions, the first of each class in front, then the second of each, and so on."""
    seen: dict[int, int] = {}
    keys = []
    for place, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        keys.append((seen[label], label, place))
    return [place for _, _, place in sorted(keys)]


def _named(place: int, labels: Tensor, rows: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    return {"row": int(rows[place]), "class": classes[int(labels[place])]}
