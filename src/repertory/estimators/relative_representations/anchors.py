"""Which examples serve as anchors."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import normalize

from repertory.errors import DataError, OptionError, check_choice, check_number

CHOICES = ("random", "stratified", "farthest", "kmeans")


def choose_anchors(
    latents: Tensor, count: int, choice: str = "random", *, labels: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Return the rows of examples that serve as anchors.

    Args:
        latents: `(rows, dim)`; only directions count.
        count: how many anchors.
        choice: "random"; "stratified", as evenly over the classes as their sizes allow; "farthest", each the farthest
            from those before it, from a random start; "kmeans", the row nearest to the mean of each cluster.
        labels: the class of each row `(rows,)`, for "stratified".
        seed: of the draws.

    Returns:
        Distinct rows `(count,)`, int64.

    Raises:
        OptionError: if an option is not allowed, or there are fewer rows than anchors.
        DataError: if labels are missing, or not one a row.

    >>> latents = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> sorted(choose_anchors(latents, 2, "farthest").tolist())[1]
    2
    """
    check_choice("choice", choice, CHOICES)
    check_number("anchors", count, minimum=1, integer=True)
    if count > len(latents):
        raise OptionError(f"anchors={count} is more than the rows there are (n_samples={len(latents)}); lower anchors")
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed)).to(latents.device)
    if choice == "random":
        return order[:count]
    if choice == "stratified":
        return order[_stratified(labels, order)][:count]
    unit = normalize(latents.to(torch.promote_types(latents.dtype, torch.float32)), dim=1)
    return _farthest(unit, count, int(order[0])) if choice == "farthest" else nearest_to_means(unit, count, order, seed)


def _stratified(labels: Tensor | None, order: Tensor) -> Tensor:
    """One of each class, then another of each, as long as they last."""
    if labels is None or labels.shape != order.shape:
        shape = None if labels is None else tuple(labels.shape)
        raise DataError(f"choice='stratified' needs one label a row, y {tuple(order.shape)}, and was given {shape}")
    classes, codes, counts = labels.to(order.device)[order].unique(return_inverse=True, return_counts=True)
    grouped = codes.argsort(stable=True)
    place = torch.empty_like(grouped)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    place[grouped] = torch.arange(len(grouped), device=grouped.device) - starts
    return (place * len(classes) + codes).argsort()


def _farthest(unit: Tensor, count: int, start: int) -> Tensor:
    chosen = torch.empty(count, dtype=torch.int64, device=unit.device)
    nearest = torch.full_like(unit[:, 0], torch.inf)
    chosen[0] = start
    for number in range(1, count):
        last = unit[chosen[number - 1]]
        nearest = torch.minimum(nearest, (unit - last).square().sum(1))
        nearest[chosen[number - 1]] = -1.0
        chosen[number] = nearest.argmax()
    return chosen


def nearest_to_means(unit: Tensor, count: int, order: Tensor, seed: int) -> Tensor:
    """Return the row nearest to the mean of each k-means cluster `(count,)`, all different.

    Args:
        unit: rows `(n, dim)`, of unit length or not.
        count: number of clusters, at most `n`.
        order: all rows in a random order `(n,)`; the first of them make up for empty clusters.
        seed: of the clustering.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: some clusters stay empty and are made up for below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(unit.cpu().numpy())
    labels, means = (torch.from_numpy(made).to(unit.device) for made in (found.labels_, found.cluster_centers_))
    labels = labels.long()
    distances = (unit - means.to(unit)[labels]).square().sum(1)
    by_distance = distances.argsort()
    sorted_labels, places = labels[by_distance].sort(stable=True)
    first = torch.ones_like(sorted_labels, dtype=torch.bool)
    first[1:] = sorted_labels[1:] != sorted_labels[:-1]
    chosen = by_distance[places[first]]
    others = order[~torch.isin(order, chosen)]
    return torch.cat([chosen, others])[:count]
