"""Pseudo-labels of parts: an image's own tokens, clustered, and numbered from top to bottom."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, check_number


@torch.no_grad()
def foreground(lengths: Tensor) -> Tensor:
    """Return which tokens of each image are in the foreground: the longer ones of two groups, found by 2-means.

    The split is the exact one, at which the lengths vary least within both groups. Where all are equal there is none.

    Args:
        lengths: of the tokens `(images, tokens)`.

    Returns:
        `(images, tokens)` bool.

    >>> foreground(torch.tensor([[0.1, 3.0, 0.2, 2.5]])).tolist()
    [[False, True, False, True]]
    """
    count = lengths.shape[1]
    if count < 2:
        return torch.zeros_like(lengths, dtype=torch.bool)
    # Differences from the mean keep their digits in the squares below.
    centred = (lengths - lengths.mean(1, keepdim=True)).double()
    ordered = centred.sort(dim=1).values
    below = ordered.cumsum(1)[:, :-1]
    size = torch.arange(1, count, device=lengths.device)
    between = below.square() / size + (ordered.sum(1, keepdim=True) - below).square() / (count - size)
    between = between.masked_fill(ordered[:, 1:] <= ordered[:, :-1], -1.0)
    best, place = between.max(1)
    threshold = ordered.gather(1, place[:, None])
    return (centred > threshold) & (best >= 0)[:, None]


@torch.no_grad()
def part_labels(features: Tensor, parts: int = 3, steps: int = 10) -> tuple[Tensor, Tensor]:
    """Return the part that each place of an image's feature map belongs to, and which images have a foreground.

    The foreground are the tokens of the larger length, see `foreground`; an image is used where that is more than half
    of them. They are clustered by k-means, all images at once, and the clusters numbered by their mean row. The centres
    start at the token farthest from the mean and then, one by one, at the one farthest from those before.

    Args:
        features: maps `(images, channels, height, width)`.
        parts: clusters of the foreground.
        steps: of k-means.

    Returns:
        Labels `(images, height, width)` int64: 0 for the background, 1 for the topmost part, up to `parts`; all 0 for
        an image that is not used. And which images are used, `(images,)` bool.

    Raises:
        DataError: if the maps have no more places than parts.

    >>> column = torch.tensor([3.0, 3.0, 3.0, 3.0, 0.0]).view(1, 1, 5, 1) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    >>> column[0, :, 2:4] = torch.tensor([0.0, 3.0]).view(2, 1, 1)
    >>> labels, used = part_labels(column, parts=2)
    >>> labels.flatten().tolist(), used.tolist()
    ([1, 1, 2, 2, 0], [True])
    """
    check_number("parts", parts, minimum=1, integer=True)
    if features.ndim != 4 or features.shape[2] * features.shape[3] <= parts:
        raise DataError(
            f"features {tuple(features.shape)} must be maps (images, channels, height, width) with more places than "
            f"parts={parts}; give larger images, an earlier stage, or fewer parts"
        )
    images, _, height, width = features.shape
    tokens = features.flatten(2).transpose(1, 2).to(torch.promote_types(features.dtype, torch.float32))
    front = foreground(tokens.norm(dim=2))
    used = front.sum(1) * 2 > height * width
    clusters = _k_means(tokens, front, parts, steps)
    members = functional.one_hot(clusters, parts) * front[..., None]
    rows = torch.arange(height, device=features.device).repeat_interleave(width)
    counts = members.sum(1)
    # A cluster without a token comes last.
    mean_row = ((members * rows[:, None]).sum(1) / counts).nan_to_num(nan=float(height))
    numbers = mean_row.argsort(dim=1, stable=True).argsort(dim=1)
    labels = (numbers.gather(1, clusters) + 1) * (front & used[:, None])
    return labels.view(images, height, width), used


def _k_means(tokens: Tensor, front: Tensor, parts: int, steps: int) -> Tensor:
    """Return the cluster of each token of each image `(images, tokens)`, of those in front alone."""
    weight = front.to(tokens.dtype)[..., None]
    mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
    nearest = (tokens - mean[:, None]).square().sum(2).masked_fill(~front, -1.0)
    images = torch.arange(len(tokens), device=tokens.device)
    centres = tokens[images, nearest.argmax(1)][:, None]
    for _ in range(parts - 1):
        nearest = torch.cdist(tokens, centres).square().amin(2).masked_fill(~front, -1.0)
        centres = torch.cat([centres, tokens[images, nearest.argmax(1)][:, None]], 1)
    clusters = torch.cdist(tokens, centres).argmin(2)
    for _ in range(steps):
        members = functional.one_hot(clusters, parts).to(tokens.dtype) * weight
        counts = members.sum(1)[..., None]
        # A centre that lost all its tokens stays where it is.
        centres = torch.where(counts > 0, torch.bmm(members.transpose(1, 2), tokens) / counts.clamp(min=1), centres)
        clusters = torch.cdist(tokens, centres).argmin(2)
    return clusters
