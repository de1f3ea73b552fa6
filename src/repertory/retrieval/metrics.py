"""How good a search is: by the classes of what it finds, nearest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError

RECALLS = (1, 5, 10)
"""Numbers of neighbours whose recall is reported."""


def retrieval_metrics(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    metric: str = "cosine",
    recalls: Sequence[int] = RECALLS,
) -> dict[str, float]:
    r"""Search every query in the gallery and return the metrics of what is found, each a mean over queries.

    With $R$ items of the query's class in the gallery: `recall_at_k` is the share of queries with one of them among
    the first k; `r_precision` the share of them among the first $R$; `map_at_r` the mean over the first $R$ places of
    the precision up to each place that holds one (Musgrave et al., 2020); `mrr` the mean of one over the place of the
    first one. Queries without any in the gallery are left out.

    Args:
        queries: `(queries, dim)`.
        query_labels: `(queries,)`, int64.
        gallery: `(gallery, dim)`; None searches each query among the others.
        gallery_labels: `(gallery,)`, int64.
        metric: "cosine", "dot" or "euclidean".
        recalls: numbers of neighbours for the recall; larger ones than the gallery are left out.

    Returns:
        By name, in [0, 1].

    Raises:
        DataError: if numbers of rows and labels differ, an embedding is not finite, or no query has its class in
            the gallery.

    >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> retrieval_metrics(rows, torch.tensor([0, 0, 1, 1]), recalls=(1,))
    {'recall_at_1': 1.0, 'r_precision': 1.0, 'map_at_r': 1.0, 'mrr': 1.0}
    """
    own = None
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels, own = queries, query_labels, torch.arange(len(queries), device=queries.device)
    check_embeddings(queries, query_labels, "queries")
    check_embeddings(gallery, gallery_labels, "gallery")
    relevant = _counts(query_labels, gallery_labels) - (0 if own is None else 1)
    asked = relevant > 0
    if not bool(asked.any()):
        raise DataError("no query has another item of its class in the gallery; add some to search for")
    queries, query_labels, relevant = queries[asked], query_labels[asked], relevant[asked]
    there = len(gallery) - (own is not None)
    recalls = [k for k in recalls if k <= there]
    depth = min(there, max([int(relevant.max()), *recalls]))
    hits = _hits(queries, query_labels, gallery, gallery_labels, depth, metric, None if own is None else own[asked])
    return {
        **{f"recall_at_{k}": float(hits[:, :k].any(1).double().mean()) for k in recalls},
        **_precisions(hits, relevant),
        "mrr": _reciprocal_rank(hits, queries, query_labels, gallery, gallery_labels, metric, own, asked),
    }


def clustering_agreement(embeddings: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Return the normalised mutual information of k-means clusters, as many as classes, with the classes.

    Args:
        embeddings: `(n, dim)`; compared at length 1.
        labels: `(n,)`, int64.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    check_embeddings(embeddings, labels, "embeddings")
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1).cpu().numpy()
    classes = len(labels.unique())
    found = KMeans(classes, n_init=3, random_state=seed).fit_predict(unit)
    return float(normalized_mutual_info_score(labels.cpu().numpy(), found))


def check_embeddings(embeddings: Tensor, labels: Tensor, name: str) -> None:
    """Check that there are rows, a label for each, and no number that is not finite.

    Raises:
        DataError: naming what is wrong.
    """
    if embeddings.ndim != 2 or labels.ndim != 1 or len(embeddings) != len(labels):
        raise DataError(
            f"{name} have shape {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; they must be (n, dim), (n,)"
        )
    if not len(embeddings):
        raise DataError(f"{name} have no rows; give at least one")
    if not bool(embeddings.isfinite().all()):
        bad = int((~embeddings.isfinite()).any(1).nonzero()[0])
        raise DataError(f"{name}: row {bad} is not finite; look at the model that made it")


def _counts(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    classes, places = torch.unique(torch.cat([gallery_labels, query_labels]), return_inverse=True)
    counts = torch.bincount(places[: len(gallery_labels)], minlength=len(classes))
    return counts[places[len(gallery_labels) :]]


def _hits(
    queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, depth: int, metric: str, own: Any
) -> Tensor:
    _, places = nearest_neighbours(queries, gallery, depth, metric=metric, own=own)
    return gallery_labels[places] == labels[:, None]


def _precisions(hits: Tensor, relevant: Tensor) -> dict[str, float]:
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    counted = hits & (ranks <= relevant[:, None])
    found = counted.cumsum(1).double()
    average = (found / ranks * counted).sum(1) / relevant
    return {
        "r_precision": float((counted.sum(1).double() / relevant).mean()),
        "map_at_r": float(average.mean()),
    }


def _reciprocal_rank(
    hits: Tensor,
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    metric: str,
    own: Tensor | None,
    asked: Tensor,
) -> float:
    ranks = torch.where(hits.any(1), hits.double().argmax(1) + 1, 0).double()
    missed = (ranks == 0).nonzero().flatten()
    if len(missed):
        # The first right one lies deeper than was looked so far.
        there = len(gallery) - (own is not None)
        rest = None if own is None else own[asked][missed]
        deep = _hits(queries[missed], labels[missed], gallery, gallery_labels, there, metric, rest)
        ranks[missed] = deep.double().argmax(1).double() + 1
    return float((1 / ranks).mean())
