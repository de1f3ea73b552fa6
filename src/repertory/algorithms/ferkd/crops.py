"""Random crops that are remembered by their boxes, and cut again exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.errors import OptionError


def replay(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Cut a box out of each image, stretch it to the image's size (bilinear), and mirror it where it was mirrored.

    Args:
        images: `(batch, channels, height, width)` floats.
        boxes: as from `repertory.core.crops.draw_boxes`, one an image `(batch, 4)`, or several `(batch, each, 4)`.
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
