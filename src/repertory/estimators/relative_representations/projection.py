"""Latents described by how near they are to anchors, and how alike two spaces are by these descriptions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from repertory.core.neighbours import nearest_neighbours, similarities
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows

SIMILARITIES = ("cosine", "angular", "euclidean", "l1", "basis")
MEASURES = ("cosine", "jaccard", "mrr")
_HELD = 2**24
"""Similarities that are held at once."""
_INSIDE = 1 - 1e-6
"""Cosines beyond this have an angle, but no gradient: it grows without bound towards 1."""


def check_similarity(similarity: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the similarities.

    Raises:
        OptionError: if one of them is none, or there is none.
    """
    names = (similarity,) if isinstance(similarity, str) or not isinstance(similarity, Sequence) else tuple(similarity)
    for name in names or ("",):
        check_choice("similarity", name, SIMILARITIES)
    return names


def relative_projection(
    latents: Tensor, anchors: Tensor, similarity: str | Sequence[str] = "cosine", *, center: bool = False
) -> Tensor:
    r"""Return how near each latent is to each anchor.

    Args:
        latents: `(rows, dim)`.
        anchors: latents of the anchors, from the same encoder `(anchors, dim)`.
        similarity: "cosine"; "angular", the angle over $\pi$; the distances "euclidean" and "l1"; "basis", coordinates
            in the anchors by least squares. Several names give several blocks side by side.
        center: subtract the mean of the anchors from both first, so that a translation of the space changes nothing.

    Returns:
        `(rows, anchors)` times the number of similarities, in float32 or wider. A zero latent has cosine 0 with all,
        and no gradient from it.

    Raises:
        OptionError: if there is no such similarity.
        DataError: if latents and anchors are not `(rows, dim)` with the same dim.

    >>> relative_projection(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.8000]])
    """
    names = check_similarity(similarity)
    if latents.ndim != 2 or anchors.ndim != 2 or latents.shape[1] != anchors.shape[1] or not len(anchors):
        raise DataError(
            f"latents {tuple(latents.shape)} and anchors {tuple(anchors.shape)} must be (rows, dim) with the same dim, "
            "and at least one anchor"
        )
    with torch.autocast(latents.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(latents.dtype, anchors.dtype), torch.float32)
        latents, anchors = latents.to(wide), anchors.to(wide)
        if center:
            mean = anchors.mean(0)
            latents, anchors = latents - mean, anchors - mean
        return torch.cat([_projected(latents, anchors, name) for name in names], 1)


def _projected(latents: Tensor, anchors: Tensor, similarity: str) -> Tensor:
    if similarity == "basis":
        return latents @ torch.linalg.pinv(anchors)
    if similarity in ("euclidean", "l1"):
        # The shortcut by matrix products is off by far more than rounding where rows are near each other.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(latents, anchors, p=2.0 if similarity == "euclidean" else 1.0, compute_mode=exact)
    cosines = unit_rows(latents) @ unit_rows(anchors).T
    if similarity == "cosine":
        return cosines
    inside = cosines.abs() < _INSIDE
    angles = torch.where(inside, cosines, 0).arccos()
    return torch.where(inside, angles, cosines.detach().clamp(-1, 1).arccos()) / math.pi


def quantise(values: Tensor, bin_size: float, kind: str = "round") -> Tensor:
    r"""Return the values moved towards whole multiples of the bin size, so that small distortions are forgotten.

    Args:
        values: of any shape.
        bin_size: distance $b$ of the values that are left.
        kind: "round", with the gradient of no rounding; or "smooth", $v - b \sin(2 \pi v / b) / (2 \pi)$, steps with
            a gradient of their own.

    Raises:
        OptionError: if an option is not allowed.

    >>> quantise(torch.tensor([0.12, 0.31]), 0.1)
    tensor([0.1000, 0.3000])
    """
    check_number("bin_size", bin_size, above=0)
    check_choice("kind", kind, ("round", "smooth"))
    if kind == "smooth":
        return values - bin_size * (2 * math.pi * values / bin_size).sin() / (2 * math.pi)
    return values + ((values / bin_size).round() * bin_size - values).detach()


def latent_similarity(
    first: Tensor, second: Tensor, anchors: Tensor | None = None, *, measure: str = "cosine", k: int = 10
) -> float:
    """Return how alike two latent spaces are, from the same examples in both, without training anything.

    Both are described by the same anchors. A rotation or scaling of either space changes nothing.

    Args:
        first: latents of one encoder `(rows, dim)`.
        second: latents of another, of the same examples in the same order `(rows, other dim)`.
        anchors: rows that serve as anchors `(anchors,)` int64; None takes all.
        measure: "cosine", the mean of the cosines between the two descriptions of an example; "jaccard", the mean
            overlap of its `k` nearest neighbours in both; "mrr", how early each example finds itself when its first
            description is searched among all second ones (mean of one over its place).
        k: neighbours for "jaccard".

    Returns:
        At most 1, for spaces that are alike.

    Raises:
        OptionError: if an option is not allowed.
        DataError: if there are not as many rows in both.

    >>> latents = torch.tensor([[1.0, 0.2], [0.3, -1.0], [-0.5, 0.5]])
    >>> round(latent_similarity(latents, 3 * latents.flip(1)), 4)
    1.0
    """
    check_choice("measure", measure, MEASURES)
    if len(first) != len(second):
        raise DataError(f"first has {len(first)} rows and second {len(second)}; give the same examples in both")
    chosen = torch.arange(len(first), device=first.device) if anchors is None else anchors
    one, two = (relative_projection(latents, latents[chosen.to(latents.device)]) for latents in (first, second))
    two = two.to(one)
    if measure == "cosine":
        return float(cosine_similarity(one, two).mean())
    if measure == "mrr":
        return float(_reciprocal_ranks(one, two).mean())
    own = torch.arange(len(one), device=one.device)
    near = [nearest_neighbours(rows, rows, k, own=own)[1] for rows in (one, two)]
    shared = (near[0][:, :, None] == near[1][:, None, :]).sum((1, 2))
    return float((shared / (2 * k - shared)).mean())


def _reciprocal_ranks(queries: Tensor, gallery: Tensor) -> Tensor:
    found = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, _HELD // len(gallery))):
        near = similarities(queries[rows], gallery)
        found.append(1 / (near >= near.gather(1, rows[:, None])).sum(1))
    return torch.cat(found)


def alignment_errors(first: Tensor, second: Tensor) -> Tensor:
    """Return how differently two spaces place each example among all others; those with the least are good anchors.

    Args:
        first: latents of one encoder `(rows, dim)`.
        second: latents of another, of the same examples in the same order `(rows, other dim)`.

    Returns:
        Length of the difference between the distances of unit latents to all others in both spaces `(rows,)`.

    Raises:
        DataError: if there are not as many rows in both.
    """
    if len(first) != len(second):
        raise DataError(f"first has {len(first)} rows and second {len(second)}; give the same examples in both")
    units = [
        normalize(latents.to(torch.promote_types(latents.dtype, torch.float32)), dim=1) for latents in (first, second)
    ]
    found = []
    for rows in torch.arange(len(first), device=first.device).split(max(1, _HELD // max(1, len(first)))):
        one, two = (torch.cdist(unit[rows], unit) for unit in units)
        found.append((one - two.to(one)).norm(dim=1))
    return torch.cat(found)
