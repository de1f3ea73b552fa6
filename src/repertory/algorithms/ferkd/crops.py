"""Random crops that are remembered by their boxes, and cut again exactly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.errors import OptionError, check_number

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


def replay(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Cut a box out of each image, stretch it to the image's size (bilinear), and mirror it where it was mirrored.

    Args:
        images: `(batch, channels, height, width)` floats.
        boxes: as from `draw_boxes`, one an image `(batch, 4)`, or several `(batch, each, 4)`.
        flips: whether each is mirrored left to right, `(batch,)` or `(batch, each)` bool.

    Returns:
        `(batch, channels, height, width)`, or `(batch, each, channels, height, width)`. Only pixels inside a box have a
        part in its crop.

    Raises:
        OptionError: if the inputs are no images.
    """
    if images.ndim != 4:
        raise OptionError(
            f"images of shape {tuple(images.shape)} cannot be cropped; give (batch, channels, height, width)"
        )
    batch, channels, height, width = images.shape
    sizes = torch.tensor([height, width, height, width], device=images.device)
    top, left, tall, wide = (boxes.to(images.device) * sizes).round().view(-1, 4).unbind(1)

    def places(start: Tensor, length: Tensor, size: int) -> Tensor:
        """Where the centres of a crop's pixels lie along one side of its image `(crops, size)`."""
        centres = (torch.arange(size, device=images.device) + 0.5) * (length / size)[:, None] - 0.5
        return start[:, None] + centres.clamp(min=0).minimum(length[:, None] - 1)

    rows, columns = places(top, tall, height), places(left, wide, width)
    columns = torch.where(flips.to(images.device).view(-1, 1), columns.flip(1), columns)
    down, across = (2 * where / max(1, size - 1) - 1 for where, size in ((rows, height), (columns, width)))
    grid = torch.stack([across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], 3)
    # The crops of an image stand below each other, so that the image is not copied for each of them.
    grid = grid.view(batch, -1, width, 2).to(images.dtype)
    found = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    crops = found.view(batch, channels, -1, height, width).transpose(1, 2)
    return crops.reshape(*boxes.shape[:-1], channels, height, width)
