"""The mask that extreme points allow: sure foreground, sure background, and pixels left open."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.core.dense import IGNORED
from repertory.errors import DataError, OptionError, UserError, check_number

FOREGROUND = 1
"""The value of the object in a mask; the background has 0, and what is left open `IGNORED`."""

_FLAT = 1e-3
"""Share of the steepest gradient that crossing a pixel costs at least, so that paths do not wander over flat ground."""
_SMOOTHING = {
    2: np.array([[1.0, 2.0, 1.0]]),
    3: np.array([[[1.0, 3.0, 1.0], [3.0, 6.0, 3.0], [1.0, 3.0, 1.0]]]),
}
"""How Sobel's kernel weighs the pixels beside it, by the number of dimensions."""
_TOLERANCE = 1e-4
"""Of the conjugate gradients that replace a direct solution in three dimensions."""


def extreme_points(mask: Tensor | np.ndarray) -> Tensor:
    """Return the points of an object that lie farthest out along each axis, as an annotator would click them.

    Where several are equally far, it is the middle one in the order of memory.

    Args:
        mask: `(height, width)` or `(depth, height, width)`; 1 is the object, whatever else is not.

    Returns:
        `(2 * axes, axes)` int64: for each axis the first point, then the last; `(0, axes)` where there is no object.

    >>> mask = torch.zeros(5, 5, dtype=torch.int64)
    >>> mask[1:4, 2] = 1
    >>> extreme_points(mask).tolist()
    [[1, 2], [3, 2], [2, 2], [2, 2]]
    """
    places = (torch.as_tensor(mask) == FOREGROUND).nonzero()
    if not len(places):
        return torch.empty(0, places.shape[1], dtype=torch.int64)
    found = []
    for along in places.unbind(1):
        for end in (along.min(), along.max()):
            ties = places[along == end]
            found.append(ties[(len(ties) - 1) // 2])
    return torch.stack(found)


def initial_mask(
    image: Tensor | np.ndarray,
    points: Tensor | np.ndarray,
    *,
    margin: int | Sequence[int] = 20,
    gap: int = 5,
    spacing: Sequence[float] | None = None,
    beta: float = 130.0,
    foreground: float = 0.8,
    background: float = 0.1,
    runs: int = 8,
) -> Tensor:
    """Return a mask that is sure of some pixels, from the extreme points of one object in an image or a volume.

    The two points of each axis are joined by the cheapest path over the gradient's magnitude (Sobel, 8 or 26
    neighbours); these paths, one pixel wider on every side, are seeds of the object, and everything farther than `gap`
    from the points' box is seed of the background. A random walker gives every pixel the probability to belong to the
    object; what is sure of it becomes a seed, and the walker runs again. Inside the box what is not object stays open.

    Args:
        image: `(height, width)` or `(depth, height, width)`, or with channels before them; any scale.
        points: `(n, axes)` whole numbers, at least two, in any order: of each axis the first and the last along it are
            joined. `(0, axes)` says that there is no object.
        margin: pixels around the box that are looked at, one number or one an axis.
        gap: pixels around the box from which on all is background.
        spacing: size of a pixel along each axis, for images whose pixels are not square; in any unit.
        beta: how much a step over an edge hinders the walker; of several channels their mean counts.
        foreground: probability above which a pixel is object.
        background: probability up to which a pixel becomes a seed of the background.
        runs: how often the walker runs.

    Returns:
        int64 of the image's shape without channels: 1 object, 0 background, 255 open; all 0 without points. Where the
        background has no seed, since the box fills the image, only the paths are object.

    Raises:
        DataError: if image and points do not fit, points lie outside, or the image is not finite.
        OptionError: if an option is out of range.
        UserError: if scikit-image is not installed.

    >>> image = torch.zeros(20, 20)
    >>> image[6:14, 6:14] = 1
    >>> mask = initial_mask(image, torch.tensor([[6, 9], [13, 9], [9, 6], [9, 13]]))
    >>> mask[9, 9].item(), mask[2, 2].item(), mask.unique().tolist()
    (1, 0, [0, 1])

    Notes:
        The authors crop 10 slices and 20 pixels of a volume, `margin=(10, 20, 20)`, one less at the far end; there the
        background begins at the 5th pixel from the box, here at the 6th on both sides. They give the walker the image
        divided by its maximum; here it is brought to [0, 1], the same where the darkest pixel is 0. Crossing a flat
        pixel costs a thousandth of the steepest gradient here, and nothing there. Where an image is clean and its
        edges are sharp, seeds that reach over the edge at the extreme points flood the box, there and here.

    Reference: Zhong, Wang, https://arxiv.org/abs/2306.16714.
    """
    check_number("gap", gap, minimum=0, integer=True)
    check_number("beta", beta, above=0)
    check_number("foreground", foreground, above=0, below=1)
    check_number("background", background, minimum=0, below=foreground)
    check_number("runs", runs, minimum=1, integer=True)
    pixels, places = _read(image, points)
    axes = places.shape[1]
    margins = _each_axis("margin", margin, axes, minimum=0, integer=True)
    spacings = _each_axis("spacing", 1.0 if spacing is None else spacing, axes, above=0)
    mask = torch.zeros(pixels.shape[-axes:], dtype=torch.int64)
    if not len(places):
        return mask
    low, high = places.min(0), places.max(0) + 1
    first = np.maximum(low - margins, 0)
    last = np.minimum(high + margins, mask.shape)
    crop = tuple(map(slice, first, last))
    box = tuple(map(slice, low - first, high - first))
    pixels = pixels[(slice(None), *crop)]
    seeds = _paths(pixels, places - first)
    inner = tuple(slice(max(0, side.start - gap), side.stop + gap) for side in box)
    outside = np.ones(seeds.shape, dtype=bool)
    outside[inner] = False
    seeds[outside] = 2
    sure = seeds == 1 if not outside.any() else _walked(pixels, seeds, spacings, beta, foreground, background, runs)
    inside = torch.full(sure[box].shape, IGNORED)
    inside[torch.from_numpy(sure[box])] = FOREGROUND
    mask[tuple(map(slice, low, high))] = inside
    return mask


def _paths(pixels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Seeds of the object: cheapest paths between the ends of each axis, one pixel wider on every side."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    graph, _ = _skimage()
    # Of several channels the steepest counts.
    steep = np.max([steepness(channel) for channel in pixels], 0)
    cost = steep + (_FLAT * steep.max() or 1.0)
    seeds = np.zeros(cost.shape, dtype=bool)
    for along in places.T:
        ends = places[along.argmin()], places[along.argmax()]
        path, _ = graph.route_through_array(cost, *ends, fully_connected=True, geometric=False)
        seeds[tuple(np.transpose(path))] = True
    return binary_dilation(seeds, generate_binary_structure(seeds.ndim, seeds.ndim)).astype(np.int32)


def steepness(pixels: np.ndarray) -> np.ndarray:
    """Return the magnitude of the gradient by Sobel's kernels, in three dimensions with the weights of ITK.

    Args:
        pixels: `(height, width)` or `(depth, height, width)`; beyond the edges the last pixel goes on.
    """
    from scipy.ndimage import correlate

    total = np.zeros(pixels.shape)
    for axis in range(pixels.ndim):
        kernel = _SMOOTHING[pixels.ndim] * np.array([-1.0, 0.0, 1.0]).reshape(3, *[1] * (pixels.ndim - 1))
        total += correlate(pixels, np.moveaxis(kernel, 0, axis), mode="nearest") ** 2
    return np.sqrt(total)


def _walked(
    pixels: np.ndarray,
    seeds: np.ndarray,
    spacing: np.ndarray,
    beta: float,
    foreground: float,
    background: float,
    runs: int,
) -> np.ndarray:
    _, segmentation = _skimage()
    low, high = pixels.min(), pixels.max()
    scaled = np.moveaxis((pixels - low) / ((high - low) or 1.0), 0, -1)
    for _ in range(runs):
        if (seeds == 0).any():
            with warnings.catch_warnings():
                # Conjugate gradients leave [0, 1] by a rounding now and then.
                warnings.filterwarnings("ignore", "The probability range", UserWarning)
                share = segmentation.random_walker(
                    scaled,
                    seeds,
                    # It adds the channels up and divides by the root of their number.
                    beta=beta / len(pixels) ** 0.5,
                    mode="bf" if seeds.ndim == 2 else "cg_j",
                    tol=_TOLERANCE,
                    return_full_prob=True,
                    spacing=spacing,
                    channel_axis=-1,
                )[0]
        else:
            share = (seeds == 1).astype(float)
        found = np.zeros_like(seeds)
        found[share > foreground] = 1
        found[share <= background] = 2
        if (found == seeds).all():
            # From the same seeds the walker would find the same again.
            break
        seeds = found
    return seeds == 1


def _read(image: Tensor | np.ndarray, points: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image as `(channels, ...)` float64, and the points as `(n, axes)` int64."""
    pixels = np.asarray(torch.as_tensor(image).double())
    places = torch.as_tensor(points)
    if places.ndim != 2 or places.shape[1] not in (2, 3) or places.is_floating_point():
        raise DataError(
            f"points {tuple(places.shape)} of {places.dtype} must be whole numbers (n, 2), or (n, 3) in a volume: one "
            "row a point, in the order of the image's axes"
        )
    axes = places.shape[1]
    if pixels.ndim not in (axes, axes + 1) or not pixels.size:
        raise DataError(
            f"image {pixels.shape} does not fit points of {axes} numbers; give it {axes} axes, or channels before them"
        )
    if not np.isfinite(pixels).all():
        raise DataError("image has a value that is not finite; replace such pixels first")
    shape = torch.tensor(pixels.shape[-axes:])
    if len(places) and bool(((places < 0) | (places >= shape)).any()):
        wrong = places[((places < 0) | (places >= shape)).any(1)][0].tolist()
        raise DataError(f"points: {wrong} lies outside of the image {tuple(shape.tolist())}; count from 0, row first")
    if len(places) == 1:
        raise DataError("points has one point only; two an axis are needed, or none where there is no object")
    return pixels if pixels.ndim > axes else pixels[None], places.long().numpy()


def _each_axis(name: str, value: Any, axes: int, **limits: Any) -> np.ndarray:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * axes
    if len(values) != axes:
        raise OptionError(f"{name}={value!r} must be one number, or one for each of the {axes} axes")
    for each in values:
        check_number(name, each, **limits)
    return np.array(values)


def _skimage() -> tuple[Any, Any]:
    try:
        from skimage import graph, segmentation
    except ModuleNotFoundError as error:
        raise UserError(
            'masks from extreme points need scikit-image; install it with: pip install "repertory[segmentation]"'
        ) from error
    return graph, segmentation
