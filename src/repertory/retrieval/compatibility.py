"""How well the versions of a network search in each other's galleries, which then need not be embedded anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError
from repertory.retrieval.metrics import check_embeddings


def identification(queries: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> float:
    """Return the share of queries whose nearest class, by cosine, is their own.

    A class stands where the mean of its gallery's unit embeddings points to. Queries whose class is not in the gallery
    are left out.

    Args:
        queries: `(queries, dim)`, of any length.
        query_labels: `(queries,)`, int64.
        gallery: `(gallery, dim)`.
        gallery_labels: `(gallery,)`, int64.

    Raises:
        DataError: if numbers of rows, of labels or of dimensions differ, an embedding is not finite, or no query's
            class is in the gallery.

    >>> gallery = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> identification(torch.tensor([[3.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), gallery, torch.tensor([0, 1]))
    0.5
    """
    check_embeddings(queries, query_labels, "queries")
    check_embeddings(gallery, gallery_labels, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}; versions that search in "
            "each other's gallery embed in the same space"
        )
    classes, place = gallery_labels.unique(return_inverse=True)
    asked = torch.isin(query_labels, classes)
    if not bool(asked.any()):
        raise DataError("no query's class is in the gallery; add some to search for")
    unit = torch.nn.functional.normalize(gallery.float(), dim=1)
    templates = unit.new_zeros(len(classes), unit.shape[1]).index_add_(0, place, unit)
    _, nearest = nearest_neighbours(queries[asked].float(), templates, 1)
    return float((classes[nearest[:, 0]] == query_labels[asked]).double().mean())


def cross_version_matrix(
    queries: Sequence[Tensor], query_labels: Tensor, galleries: Sequence[Tensor], gallery_labels: Tensor
) -> Tensor:
    r"""Return $M_{ij}$: the `identification` of queries embedded by version i in the gallery embedded by version j.

    Args:
        queries: a version each, oldest first, `(queries, dim)`.
        query_labels: `(queries,)`, int64.
        galleries: a version each, `(gallery, dim)`.
        gallery_labels: `(gallery,)`, int64.

    Returns:
        `(versions, versions)`, float64; galleries of later versions than the query's are not searched, and NaN.

    Raises:
        DataError: as `identification`, and if there are not as many galleries as versions of the queries.
    """
    if len(queries) != len(galleries):
        raise DataError(
            f"{len(queries)} versions of the queries and {len(galleries)} of the gallery; give as many of each"
        )
    matrix = torch.full((len(queries), len(queries)), torch.nan, dtype=torch.float64)
    for i, asked in enumerate(queries):
        for j, searched in enumerate(galleries[: i + 1]):
            matrix[i, j] = identification(asked, query_labels, searched, gallery_labels)
    return matrix


def average_compatibility(matrix: Tensor) -> float:
    r"""Return AC: the share of pairs $j < i$ with $M_{ij} > M_{jj}$, where newer queries find more than old ones.

    A tie does not count, so versions that never change have an AC of 0.

    Args:
        matrix: `(versions, versions)` of `cross_version_matrix`; what is above the diagonal is not read.

    Raises:
        DataError: if it is not square, or has fewer than two versions.

    >>> average_compatibility(torch.tensor([[0.6, 0.0, 0.0], [0.7, 0.8, 0.0], [0.5, 0.8, 0.9]])) # doctest: +ELLIPSIS
    0.3333...
    """
    rows, columns = _pairs(matrix)
    return float((matrix[rows, columns] > matrix[columns, columns]).double().mean())


def average_multi_model_accuracy(matrix: Tensor) -> float:
    r"""Return AA: the mean of $M_{ij}$ over $j \le i$, every version's queries in its own and in all older galleries.

    Args:
        matrix: `(versions, versions)` of `cross_version_matrix`; what is above the diagonal is not read.

    Raises:
        DataError: if it is not square, or has fewer than two versions.

    >>> average_multi_model_accuracy(torch.tensor([[0.5, 0.0], [0.25, 0.75]]))
    0.5
    """
    _pairs(matrix)
    rows, columns = torch.tril_indices(len(matrix), len(matrix))
    return float(matrix[rows, columns].double().mean())


def _pairs(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise DataError(f"matrix has shape {tuple(matrix.shape)}; it must be square, a row a version, two at least")
    return torch.tril_indices(len(matrix), len(matrix), -1)
