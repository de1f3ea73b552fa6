"""Differentiable Siamese augmentation: one random change, the same for real and for made images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from repertory.errors import DataError, check_choice

STRATEGY = ("colour", "crop", "cutout", "flip", "scale", "rotate")
"""The operations of Zhao and Bilen (2021), of which each draw takes one."""

_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
_CROP, _CUTOUT, _SCALE, _ROTATE = 0.125, 0.5, 1.2, 15.0
"""Shares of the side, a factor, and degrees; all as published."""

Change = Callable[[Tensor], Tensor]


def draw_augmentation(
    generator: torch.Generator, strategy: Sequence[str] = STRATEGY, batch: int | None = None
) -> Change:
    """Draw one operation with its strengths, and return it as a function of images that can be differentiated.

    Images are `(n, channels, height, width)`, normalised: what comes in from outside is 0, the mean.

    Args:
        generator: CPU generator of the draws.
        strategy: operations of `STRATEGY`, of which one is drawn; an empty one changes nothing.
        batch: number of images, each with a strength of its own; None draws one for all, so that the function makes
            the same change whatever images it is given (Siamese).

    Raises:
        DataError: by the function, if its inputs are no images.
        OptionError: if an operation is unknown.

    >>> change = draw_augmentation(torch.Generator().manual_seed(0))
    >>> change(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])

    Reference: Zhao, Bilen, Dataset Condensation with Differentiable Siamese Augmentation,
    https://arxiv.org/abs/2102.08259.
    """
    for name in strategy:
        check_choice("strategy", name, STRATEGY)
    if not strategy:
        return lambda images: images
    name = strategy[int(torch.randint(len(strategy), (1,), generator=generator))]
    count = 1 if batch is None else batch
    # As many draws whatever the operation, all from 0 to 1.
    draws = torch.rand(3, count, generator=generator)

    def change(images: Tensor) -> Tensor:
        if images.ndim != 4:
            raise DataError(
                f"inputs of shape {tuple(images.shape)} are no images (n, channels, height, width), which the "
                "augmentation changes; leave the augmentation out"
            )
        return _OPERATIONS[name](images, draws.to(images))

    return change


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    images = images + _column(draws[0] - 0.5) * _BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _column(draws[1]) * _SATURATION
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * _column(draws[2] + _CONTRAST)


def _crop(images: Tensor, draws: Tensor) -> Tensor:
    height, width = images.shape[2:]
    reach = (int(height * _CROP + 0.5), int(width * _CROP + 0.5))
    moved = [(draw * (2 * most + 1)).floor().clamp(max=2 * most).long() for draw, most in zip(draws, reach)]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = (moved[0][:, None] + torch.arange(height, device=images.device)).expand(len(images), -1)
    columns = (moved[1][:, None] + torch.arange(width, device=images.device)).expand(len(images), -1)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, draws: Tensor) -> Tensor:
    kept = []
    for draw, side in zip(draws, images.shape[2:]):
        size = int(side * _CUTOUT + 0.5)
        choices = side + 1 - size % 2
        centre = (draw * choices).floor().clamp(max=choices - 1)
        places = torch.arange(side, device=images.device)
        start = centre[:, None] - size // 2
        kept.append((places < start) | (places >= start + size))
    return images * (kept[0][:, :, None] | kept[1][:, None, :])[:, None].to(images)


def _flip(images: Tensor, draws: Tensor) -> Tensor:
    return torch.where(_column(draws[0]) < 0.5, images.flip(3), images)


def _scale(images: Tensor, draws: Tensor) -> Tensor:
    width, height = draws[0] * (_SCALE - 1 / _SCALE) + 1 / _SCALE, draws[1] * (_SCALE - 1 / _SCALE) + 1 / _SCALE
    zero = torch.zeros_like(width)
    return _moved(images, torch.stack([width, zero, zero, zero, height, zero], 1))


def _rotate(images: Tensor, draws: Tensor) -> Tensor:
    angle = (draws[0] - 0.5) * 2 * math.radians(_ROTATE)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _moved(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    matrices = matrices.view(-1, 2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
