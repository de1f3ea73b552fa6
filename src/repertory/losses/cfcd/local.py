"""Triplets of local descriptors: matched positions of two images of a class, against the nearest of other images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.errors import DataError, check_number
from repertory.layers.embedding import unit_rows


def local_descriptors(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a feature map has at each position: unit descriptors, and how strongly it answers there.

    Args:
        maps: `(images, channels, height, width)`, or any number of axes of positions.

    Returns:
        Descriptors `(images, positions, channels)`, float32 or wider, and attention `(images, positions)`, the sum of
        absolute values over channels, without gradient.

    Raises:
        DataError: if the maps have no positions.
    """
    if maps.ndim < 3:
        raise DataError(f"feature maps must be (images, channels, height, width), but have shape {tuple(maps.shape)}")
    columns = maps.flatten(2).transpose(1, 2)
    return unit_rows(columns), columns.detach().float().abs().sum(2)


@torch.no_grad()
def match_descriptors(
    anchor: Tensor, positive: Tensor, attention: Tensor, ratio: float = 0.9, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return which position of the anchor each position of the positive matches, and whether the match is kept.

    Kept are matches in which each is the other's nearest, the nearest is nearer than `ratio` times the second nearest
    of the anchor, and the positive's position is among the share with most attention.

    Args:
        anchor: unit descriptors `(pairs, positions, channels)`.
        positive: the same of the other images `(pairs, places, channels)`.
        attention: of the positive's positions `(pairs, places)`.
        ratio: of the distances to the nearest and the second nearest, at most.
        share: of positions with most attention, rounded down.

    Returns:
        Positions of the anchor `(pairs, places)` int64, and which are kept, bool.
    """
    distances = (2 - 2 * anchor @ positive.transpose(1, 2)).clamp(min=0).sqrt()
    back = distances.argmin(2)
    nearest, best = distances.min(1)
    places = torch.arange(positive.shape[1], device=best.device)
    mutual = back.gather(1, best) == places
    second = distances.scatter(1, best[:, None], math.inf).amin(1)
    distinct = (nearest <= ratio * second) & (second > 0)
    strong = torch.zeros_like(mutual).scatter(1, attention.topk(int(share * len(places)), dim=1).indices, True)
    return best, mutual & distinct & strong


def local_triplets(
    maps: Tensor,
    target: Tensor | None = None,
    *,
    size: int = 8,
    margin: float = 0.1,
    ratio: float = 0.9,
    share: float = 0.5,
) -> Tensor:
    r"""Return for each tuple the sum of $\max(0, \lVert a - p \rVert^2 - \lVert a - n \rVert^2 + \text{margin})$.

    A tuple is an anchor, a positive and further images as negatives. The pairs (a, p) are the kept matches of anchor
    and positive, and n is the descriptor of each negative that is nearest to a. Which descriptors are compared is
    decided without gradient.

    Args:
        maps: feature maps of the tuples one after the other, `(size * tuples, channels, height, width)`.
        target: classes of the images. A tuple whose positive is not of the anchor's class counts 0, and negatives of
            the anchor's class do not count. None trusts the order.
        size: images in a tuple.
        margin: by how much the negatives must be farther, of squared distances between unit vectors.
        ratio: of the match, at most, to the second best one.
        share: of the positive's positions with most attention that may be matched.

    Returns:
        `(tuples,)`; 0, with a gradient of 0, where nothing matches.

    Raises:
        OptionError: if an option is outside its range.
        DataError: if the images are not whole tuples.

    >>> local_triplets(torch.ones(8, 3, 4, 4)).tolist()
    [0.0]

    Notes:
        As in the authors' code it is a sum over matches, not a mean, and so grows with the size of the map.
    """
    check_number("size", size, minimum=3, integer=True)
    check_number("margin", margin, minimum=0)
    check_number("ratio", ratio, above=0)
    check_number("share", share, minimum=0, maximum=1)
    if len(maps) % size or (target is not None and target.shape != maps.shape[:1]):
        raise DataError(
            f"{len(maps)} images with targets {None if target is None else tuple(target.shape)} are not tuples of "
            f"{size}; give anchor, positive and {size - 2} negatives of each tuple, one after the other"
        )
    with torch.autocast(maps.device.type, enabled=False):
        descriptors, attention = (each.unflatten(0, (-1, size)) for each in local_descriptors(maps))
        anchor, positive, negatives = descriptors[:, 0], descriptors[:, 1], descriptors[:, 2:]
        best, kept = match_descriptors(anchor, positive, attention[:, 1], ratio, share)
        counted = kept.new_ones(len(kept), size - 2)
        if target is not None:
            classes = target.unflatten(0, (-1, size))
            kept = kept & (classes[:, :1] == classes[:, 1:2])
            counted = classes[:, 2:] != classes[:, :1]
        # As many places as the tuple with most matches has; the others fill up with what is not kept.
        most = int(kept.sum(1).max()) if len(kept) else 0
        if not most:
            return descriptors[:, 0, 0, 0] * 0
        places = kept.to(torch.int8).argsort(1, descending=True)[:, :most]
        tuples = torch.arange(len(kept), device=kept.device)[:, None]
        a, p = anchor[tuples, best.gather(1, places)], positive[tuples, places]
        nearest = _nearest(a, negatives)
        n = negatives[tuples[..., None], torch.arange(size - 2, device=kept.device)[:, None], nearest]
        near = (a - p).square().sum(-1)
        far = (a[:, None] - n).square().sum(-1)
        values = (near[:, None] - far + margin).clamp(min=0)
        return (values * kept.gather(1, places)[:, None] * counted[..., None]).sum((1, 2))


@torch.no_grad()
def _nearest(anchors: Tensor, negatives: Tensor) -> Tensor:
    """Where in each negative the descriptor nearest to each anchor is, `(tuples, negatives, anchors)`."""
    cosines = anchors @ negatives.flatten(1, 2).transpose(1, 2)
    return cosines.unflatten(2, negatives.shape[1:3]).argmax(3).transpose(1, 2)
