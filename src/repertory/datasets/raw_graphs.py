"""Graphs as they come from files, and how the features of their nodes become numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.core.graphs import distinct, pack
from repertory.datasets.columns import Column
from repertory.errors import DataError

DEGREE = "degree"
"""Name of the column that stands for the number of neighbours, where nodes have no features of their own."""
_MOST_DEGREES = 64
"""Numbers of neighbours that are told apart; a node with more counts as one with the most."""


@dataclass(frozen=True)
class RawGraphs:
    """Graphs of a file or folder.

    Args:
        source: the file or folder, for messages.
        edges: both ends of each edge, numbers of nodes over all graphs `(2, edges)`, int64.
        graph: number of each node's graph `(nodes,)`, int64, ascending.
        count: how many graphs there are.
        labels: class of each graph, as it was written; None where they have none.
        attributes: numbers of each node `(nodes, width)`, None where there are none.
        kinds: by name, what each node is one of several of, as text `(nodes,)`.
        environments: where each graph comes from, as text; None where nobody says.
        notes: what was handled on reading.
    """

    source: str
    edges: Tensor
    graph: Tensor
    count: int
    labels: np.ndarray[Any, Any] | None = None
    attributes: Tensor | None = None
    kinds: dict[str, np.ndarray[Any, Any]] | None = None
    environments: list[str] | None = None
    notes: tuple[str, ...] = ()


def columns_of(raw: RawGraphs) -> tuple[Column, ...]:
    """Return the features of nodes: attributes, then what they are one of; the degree where there is neither."""
    columns = [Column(f"attribute {n + 1}") for n in range(0 if raw.attributes is None else raw.attributes.shape[1])]
    for name, values in (raw.kinds or {}).items():
        columns.append(Column(name, tuple(sorted(set(values.tolist()), key=_order))))
    if columns:
        return tuple(columns)
    most = min(int(_degrees(raw).max()) if len(raw.graph) else 0, _MOST_DEGREES - 1)
    return (Column(DEGREE, tuple(map(str, range(most + 1)))),)


def packed(raw: RawGraphs, columns: Sequence[Column], lines: int | None = None) -> Tensor:
    """Return the graphs as packed rows.

    Args:
        raw: the graphs; edges that come twice, and those from a node to itself, are left out.
        columns: the features of nodes, as `columns_of` gave them for the training graphs.
        lines: of a row at least; None takes what the largest graph needs.

    Raises:
        DataError: if a graph has no node, or nodes lack a feature or are of a kind that is not among the columns.
    """
    empty = (raw.graph.bincount(minlength=raw.count) == 0).nonzero().flatten()
    if len(empty):
        raise DataError(
            f"{raw.source}: graph {int(empty[0]) + 1} has no nodes{_more(len(empty))}; give it some, or leave it out"
        )
    nodes = len(raw.graph)
    edges = distinct(raw.edges, nodes)
    rows = pack(_features(raw, columns), edges, raw.graph, raw.count)
    if lines is not None and rows.shape[1] < lines:
        rows = torch.cat([rows, rows.new_zeros(len(rows), lines - rows.shape[1], rows.shape[2])], 1)
    return rows


def _features(raw: RawGraphs, columns: Sequence[Column]) -> Tensor:
    if columns[0].name == DEGREE and columns[0].categories is not None and raw.attributes is None and not raw.kinds:
        return torch.eye(columns[0].width)[_degrees(raw).clamp(max=columns[0].width - 1)]
    numbers = sum(column.categories is None for column in columns)
    have = 0 if raw.attributes is None else raw.attributes.shape[1]
    if have != numbers or (columns[0].name == DEGREE and columns[0].categories is not None):
        raise DataError(
            f"{raw.source}: nodes have {have} numbers, but the model was trained on {numbers}; give the features of "
            "the training graphs"
        )
    parts = [] if raw.attributes is None else [raw.attributes]
    for column in columns:
        if column.categories is not None:
            parts.append(torch.eye(column.width)[_codes(raw, column)])
    return torch.cat(parts, 1)


def _codes(raw: RawGraphs, column: Column) -> Tensor:
    values = (raw.kinds or {}).get(column.name)
    assert column.categories is not None
    if values is None:
        raise DataError(f"{raw.source}: nodes have no {column.name}, which the model was trained on; add it")
    known = {name: place for place, name in enumerate(column.categories)}
    places = [known.get(name, -1) for name in values.tolist()]
    if -1 in places:
        node = places.index(-1)
        raise DataError(
            f"{raw.source}: node {node + 1} has the {column.name} {str(values[node])!r}, which the training graphs do "
            f"not have; they have {', '.join(column.categories[:20])}"
        )
    return torch.tensor(places, dtype=torch.int64)


def _degrees(raw: RawGraphs) -> Tensor:
    return distinct(raw.edges, len(raw.graph))[1].bincount(minlength=len(raw.graph))


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, then text by its letters."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def in_order(names: Sequence[str]) -> list[str]:
    """Return the different names, numbers by their value and before other text.

    >>> in_order(["10", "9", "b", "a", "9"])
    ['9', '10', 'a', 'b']
    """
    return sorted(set(names), key=_order)


def _more(count: int) -> str:
    return "" if count == 1 else f", nor have {count - 1} more"
