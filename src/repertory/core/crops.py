"""Boxes of random crops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.errors import check_number

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)
"""Shapes of a crop, and how often one is drawn before the whole image is taken, as in torchvision."""


def draw_boxes(
    count: int, height: int, width: int, generator: torch.Generator, smallest: float = 0.08, largest: float = 1.0
) -> Tensor:
    """Draw boxes as torchvision's `RandomResizedCrop` does: a share of the area, then a shape, then a place.

    Args:
        count: number of boxes.
        height: of the image in pixels.
        width: of the image in pixels.
        generator: CPU generator of the draws.
        smallest: least share of the image's area.
        largest: greatest share of it.

    Returns:
        `(count, 4)` float32: top, left, height and width, as shares of the image's height, width, height and width.

    >>> boxes = draw_boxes(5, 8, 12, torch.Generator().manual_seed(0))
    >>> pixels = boxes * torch.tensor([8, 12, 8, 12])
    >>> bool((pixels.round() - pixels).abs().max() < 1e-5)
    True
    """
    check_number("smallest", smallest, above=0, maximum=1)
    check_number("largest", largest, minimum=smallest, maximum=1)
    draws = torch.rand(2, count, _TRIES, generator=generator)
    area = height * width * (smallest + (largest - smallest) * draws[0])
    low, high = map(math.log, _RATIO)
    ratio = (low + (high - low) * draws[1]).exp()
    tall, wide = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    tall = torch.where(found, tall.gather(1, first)[:, 0], height)
    wide = torch.where(found, wide.gather(1, first)[:, 0], width)
    place = torch.rand(2, count, generator=generator)
    top, left = (place[0] * (height - tall + 1)).floor(), (place[1] * (width - wide + 1)).floor()
    return torch.stack([top / height, left / width, tall / height, wide / width], 1)
