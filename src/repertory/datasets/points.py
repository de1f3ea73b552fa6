"""Extreme points in place of masks: which pixels of an image an annotator clicked, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from repertory.core.dense import IGNORED
from repertory.errors import DataError, OptionError, nearest

KEYS = ("object",)
"""Options after the `?` of a data spec that only the scenario weak_segmentation reads."""

_MADE: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""First masks by the images they were made for: the seeds of a comparison share a process, and most of their images."""


def check(options: Mapping[str, str], task: str, classes: Sequence[str]) -> None:
    """Refuse options that the data cannot carry.

    Raises:
        OptionError: if there are no masks, or they have no such class.
    """
    for key, value in options.items():
        if task != "segmentation":
            raise OptionError(f"{key}={value} names a class of masks, but the task is {task}; leave it out")
        if value not in classes:
            hint = nearest(value, classes) or f"there are {', '.join(classes[:12])}"
            raise OptionError(f"{key}={value} is no class of these masks; {hint}")


def one_kind(targets: Tensor, task: str, classes: Sequence[str], named: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return masks in which one class is 1 and all others are 0, and the names of both.

    Args:
        targets: masks, int64 `(examples, height, width)`; pixels of 255 stay.
        task: of the data.
        classes: names of their classes.
        named: the one that is the object.

    Raises:
        OptionError: if there are no masks, or they have no such class.
    """
    check({"object": named}, task, classes)
    masks = torch.where(targets == IGNORED, targets, (targets == list(classes).index(named)).long())
    return masks, ("other" if named == "background" else "background", named)


def check_points(name: str, points: Tensor | None, images: Tensor) -> None:
    """Refuse points that lie in no image, or are too few for an object.

    Args:
        name: of the data.
        points: `(points, 4)`: row of the image, number of the object in it, y and x; None is fine.
        images: `(examples, channels, height, width)`.

    Raises:
        DataError: naming the first.
    """
    if points is None:
        return
    if points.ndim != 2 or points.shape[1] != 4 or points.dtype != torch.int64:
        raise DataError(f"{name}: points {tuple(points.shape)} {points.dtype} must be int64 (points, 4)")
    limits = torch.tensor([len(images), torch.iinfo(torch.int64).max, *images.shape[2:]])
    outside = ((points < 0) | (points >= limits)).any(1)
    if bool(outside.any()):
        raise DataError(
            f"{name}: the point {points[outside][0].tolist()} (image, object, y, x) lies in none of the {len(images)} "
            f"images of {images.shape[2]} x {images.shape[3]} pixels; count from 0"
        )
    objects, counts = points[:, :2].unique(dim=0, return_counts=True)
    if bool((counts < 2).any()):
        image, number = objects[counts < 2][0].tolist()
        raise DataError(
            f"{name}: object {number} of image {image} has one point; an object needs those farthest out along each "
            "axis, up to 4"
        )


def placed_points(
    found: Sequence[tuple[int, tuple[int, int], Sequence[tuple[int, int, int]]]], shape: tuple[int, int, int]
) -> Tensor:
    """Return points in pixels of the images as they were brought to one size.

    Args:
        found: row, width and height of the file, and its points (number of the object, y, x), of each image.
        shape: channels, height and width that images were brought to: scaled to cover it, and what juts out cropped.

    Returns:
        `(points, 4)` int64; a point in what was cropped moves to the edge.

    >>> placed_points([(7, (20, 10), [(0, 4, 19), (0, 9, 10)])], (1, 5, 5)).tolist()
    [[7, 0, 2, 4], [7, 0, 4, 2]]
    """
    rows = []
    for row, (width, height), points in found:
        scale = max(shape[2] / width, shape[1] / height)
        for number, *place in points:
            moved = [row, number]
            for at, side, wanted in zip(place, (height, width), shape[1:]):
                middle = (at + 0.5 - side / 2) * scale + wanted / 2
                moved.append(min(max(int(middle // 1), 0), wanted - 1))
            rows.append(moved)
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


def clicked(masks: Tensor) -> Tensor:
    """Return the points that an annotator would have clicked: of each connected piece of class 1 its extreme points.

    Args:
        masks: int64 `(examples, height, width)`.

    Returns:
        `(points, 4)` int64: row of the image, number of the object in it, y and x; four an object.

    >>> mask = torch.zeros(1, 4, 9, dtype=torch.int64)
    >>> mask[0, 1:3, 1:3] = mask[0, 1:3, 6] = 1
    >>> clicked(mask)[:, 1].tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    from scipy.ndimage import label

    from repertory.curation.simple_propagation import extreme_points

    rows = []
    for image, mask in enumerate(masks.numpy()):
        pieces, count = label(mask == 1, structure=np.ones((3, 3)))
        for number in range(count):
            ends = extreme_points(torch.from_numpy((pieces == number + 1).astype(np.int64)))
            rows.append(torch.cat([torch.tensor([[image, number]]).expand(len(ends), 2), ends], 1))
    return torch.cat(rows) if rows else torch.empty(0, 4, dtype=torch.int64)


def first_masks(images: Tensor, points: Tensor, rows: Sequence[int]) -> Tensor:
    """Return what extreme points alone say of every pixel, see `repertory.curation.initial_mask`.

    Where boxes of several objects overlap, what one is sure of counts, then what one leaves open.

    Args:
        images: `(examples, channels, height, width)`.
        points: `(points, 4)`, as from `clicked`.
        rows: of the images that are asked for.

    Returns:
        int64 `(rows, height, width)`: 1 object, 0 background, 255 open. An image without a point is all background.
    """
    made = _MADE.setdefault(images, {})
    masks = torch.zeros(len(rows), *images.shape[2:], dtype=torch.int64)
    for place, row in enumerate(rows):
        own = points[points[:, 0] == row, 1:]
        known = tuple(own.flatten().tolist())
        if (row, known) not in made:
            made[row, known] = _together(images[row], own)
        masks[place] = made[row, known]
    return masks


def _together(image: Tensor, points: Tensor) -> Tensor:
    from repertory.curation.simple_propagation import initial_mask

    mask = torch.zeros(image.shape[1:], dtype=torch.uint8)
    for number in points[:, 0].unique():
        one = initial_mask(image, points[points[:, 0] == number, 1:]).to(torch.uint8)
        # 1 before 255 before 0.
        mask = torch.where((mask == 1) | (one == 0), mask, one)
    return mask
