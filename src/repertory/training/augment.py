"""Simple image augmentations on a batch of tensors, one draw an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its side, edges repeated.

    Args:
        images: `(batch, channels, height, width)` floats.
        generator: CPU generator of the draws.
    """
    batch, _, height, width = images.shape
    pads = (max(1, height // 8), max(1, width // 8))
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]), mode="replicate")
    top = torch.randint(2 * pads[0] + 1, (batch,), generator=generator).to(images.device)
    left = torch.randint(2 * pads[1] + 1, (batch,), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right, and shift all of them.

    Args:
        images: `(batch, channels, height, width)` floats.
        generator: CPU generator of the draws.
    """
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return shift(torch.where(mirrored[:, None, None, None], images.flip(3), images), generator)


def random_view(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return a version of normalised inputs to compare with another one of them: images moved a little, all with noise.

    The noise has a standard deviation of 0.1, in units of the inputs' own.

    Args:
        inputs: `(batch, ...)` floats.
        generator: CPU generator of the draws.
    """
    moved = shift(inputs, generator) if inputs.ndim == 4 else inputs
    return moved + 0.1 * torch.randn(inputs.shape, generator=generator).to(inputs)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "shift": shift,
    "flip-shift": flip_shift,
}
"""What a recipe's `augment` slot may name."""
