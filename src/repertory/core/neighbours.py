"""Similarities between rows, and the nearest neighbours by them, in chunks that bound the memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, check_choice, check_number

METRICS = ("cosine", "dot", "euclidean")
"""How rows are compared; larger is nearer, so distances are negated."""

_HELD = 2**24
"""Similarities that are held at once: 64 MiB of float32."""


def similarities(queries: Tensor, gallery: Tensor, metric: str = "cosine") -> Tensor:
    """Return how near each query is to each row of the gallery, `(queries, gallery)`; larger is nearer.

    Computed in float32 or wider. A zero vector has cosine 0 with everything.

    Args:
        queries: `(queries, dim)`.
        gallery: `(gallery, dim)`.
        metric: "cosine", "dot", or "euclidean" (negated distances).

    Raises:
        OptionError: if there is no such metric.
        DataError: if the rows have different widths.

    >>> similarities(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([[0.6000, 0.8000]])
    """
    check_choice("metric", metric, METRICS)
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must be (n, dim) with the same dim"
        )
    wide = torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)
    queries, gallery = queries.to(wide), gallery.to(wide)
    if metric == "cosine":
        queries, gallery = (torch.nn.functional.normalize(rows, dim=1) for rows in (queries, gallery))
    if metric == "euclidean":
        return -torch.cdist(queries, gallery)
    return queries @ gallery.T


def nearest_neighbours(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    metric: str = "cosine",
    own: Tensor | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` nearest rows of the gallery of each query, nearest first.

    Both sides are cut into chunks, so that a gallery of any length is searched in bounded memory.

    Args:
        queries: `(queries, dim)`.
        gallery: `(gallery, dim)`.
        k: neighbours a query.
        metric: see `similarities`.
        own: for each query the position in the gallery that is left out, `(queries,)` int64: its own.
        groups: of the queries `(queries,)` and of the gallery `(gallery,)`, int64; rows of a query's own group (its
            camera, say) are not found, and where too few others are there, the last similarities are -inf.

    Returns:
        Similarities `(queries, k)`, and positions in the gallery `(queries, k)`, int64.

    Raises:
        OptionError: if `k` is larger than the gallery (without the query itself).

    >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> nearest_neighbours(rows, rows, 1, own=torch.arange(3))[1].tolist()
    [[1], [0], [1]]
    """
    check_number("k", k, minimum=1, integer=True)
    there = len(gallery) - (own is not None)
    if k > there:
        raise OptionError(f"k={k} is more than the {there} rows that there are to find; lower k")
    width = min(len(gallery), max(k + 1, _HELD // 256))
    found = []
    for start, part in _chunks(queries, max(1, _HELD // width)):
        rows = slice(start, start + len(part))
        apart = None if groups is None else (groups[0][rows], groups[1])
        found.append(_search(part, gallery, k, metric, None if own is None else own[rows], apart, width))
    if not found:
        return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=queries.device)
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


def _search(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    metric: str,
    own: Tensor | None,
    groups: tuple[Tensor, Tensor] | None,
    width: int,
) -> tuple[Tensor, Tensor]:
    best: tuple[Tensor, Tensor] | None = None
    for start, part in _chunks(gallery, width):
        near = similarities(queries, part, metric)
        if own is not None:
            rows = ((own >= start) & (own < start + len(part))).nonzero().flatten()
            near[rows, own[rows] - start] = -math.inf
        if groups is not None:
            near.masked_fill_(groups[0][:, None] == groups[1][start : start + len(part)], -math.inf)
        values, places = near.topk(min(k, len(part)), dim=1)
        places = places + start
        if best is not None:
            values, places = torch.cat([best[0], values], 1), torch.cat([best[1], places], 1)
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            places = places.gather(1, order)
        best = values, places
    assert best is not None
    return best


def _chunks(rows: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]


def neighbour_graph(weights: Tensor, places: Tensor, columns: int | None = None) -> Tensor:
    """Return the graph of nearest neighbours as a sparse matrix: row i holds the weights of i's neighbours.

    Args:
        weights: of each link, `(rows, k)`.
        places: which column each link leads to, `(rows, k)` int64.
        columns: number of columns, as many as rows when not given.

    Returns:
        A sparse tensor `(rows, columns)`; multiply it with dense features `(columns, dim)`.

    >>> neighbour_graph(torch.tensor([[1.0], [2.0]]), torch.tensor([[1], [0]])) @ torch.tensor([[3.0], [4.0]])
    tensor([[4.],
            [6.]])
    """
    rows, k = weights.shape
    sources = torch.arange(rows, device=places.device).repeat_interleave(k)
    links = torch.stack([sources, places.flatten()])
    shape = (rows, rows if columns is None else columns)
    return torch.sparse_coo_tensor(links, weights.flatten(), shape, check_invariants=True).coalesce()
