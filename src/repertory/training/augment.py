"""Simple image augmentations on a batch of tensors, one draw an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.errors import UserError


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its side, edges repeated.

    Args:
        images: `(batch, channels, height, width)` of any type.
        generator: CPU generator of the draws.
    """
    return moved(images, drawn_moves(images, generator))


def flip_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right, and shift all of them.

    Args:
        images: `(batch, channels, height, width)` of any type.
        generator: CPU generator of the draws.
    """
    return moved(images, drawn_moves(images, generator, mirror=True))


def drawn_moves(images: Tensor, generator: torch.Generator, mirror: bool = False) -> dict[str, Tensor]:
    """Draw what `shift`, or with `mirror` what `flip_shift`, does to each image.

    Args:
        images: `(batch, channels, height, width)`.
        generator: CPU generator of the draws.
        mirror: whether half of the images are mirrored.

    Returns:
        `mirrored` `(batch,)` bool, before the shift; `shift` `(batch, 2)` int64: by how many pixels up and left.
    """
    mirrored = torch.zeros(len(images), dtype=torch.bool)
    if mirror:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
    shifts = []
    for side in images.shape[2:]:
        most = max(1, side // 8)
        shifts.append(torch.randint(2 * most + 1, (len(images),), generator=generator) - most)
    return {"mirrored": mirrored, "shift": torch.stack(shifts, 1)}


def moved(images: Tensor, moves: Mapping[str, Tensor]) -> Tensor:
    """Mirror and shift images, edges repeated, as `drawn_moves` says, in one pass over their pixels.

    Args:
        images: `(batch, channels, height, width)` of any type.
        moves: what is done to each.
    """
    batch, channels, height, width = images.shape
    rows, columns = (
        (first[:, None] + torch.arange(side)).clamp(0, side - 1)
        for first, side in zip(moves["shift"].unbind(1), (height, width))
    )
    columns = torch.where(moves["mirrored"][:, None], width - 1 - columns, columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width).to(images.device)
    return images.flatten(2).gather(2, flat.expand(batch, channels, height * width)).view_as(images)


def random_view(inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a version of normalised inputs to compare with another one of them, and what was drawn for it.

    Images are moved a little; all get noise of a standard deviation of 0.1, in units of the inputs' own.

    Args:
        inputs: `(batch, ...)` floats.
        generator: CPU generator of the draws.

    Returns:
        Inputs as they came in; and of images `moved` `(batch, 2)` int64: by how many pixels up and left.

    Raises:
        UserError: if the inputs are texts.
    """
    if not inputs.is_floating_point():
        raise UserError(
            "the inputs are bytes of texts, of which there are no random views; leave out methods that need them"
        )
    drawn = {}
    if inputs.ndim == 4:
        moves = drawn_moves(inputs, generator)
        inputs, drawn = moved(inputs, moves), {"moved": moves["shift"]}
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator).to(inputs), drawn


def strong_view(inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a strongly changed version of normalised inputs, which still shows what they show, and what was drawn.

    Images: two operations each, drawn with their strengths from those of RandAugment that need no histogram (identity,
    rotation, shear and translation along either side, brightness, colour, contrast, solarisation), and then a square of
    up to half a side cut out, as in FixMatch. Numbers: noise of a standard deviation of 0.3 in the inputs' own units,
    and each column of a table with probability 0.2, or a stretch of up to a quarter of a sequence, set to its mean in
    training.

    Args:
        inputs: `(batch, ...)` floats, with the mean of the training inputs at 0.
        generator: CPU generator of the draws.

    Returns:
        Inputs as they came in; and of images, one row each:

        - `operations` `(batch, 2)` int64: which of `OPERATIONS` they are;
        - `strengths` `(batch, 2)` from 0 to 1: from one end of an operation's range to the other;
        - `cut` `(batch, 3)`: the middle of the square, from 0 to 1 down and to the right, and its share of a side.

    Raises:
        UserError: if the inputs are texts.

    Reference: Cubuk, Zoph, Shlens, Le, RandAugment, https://arxiv.org/abs/1909.13719; ranges: Sohn et al., FixMatch,
    https://arxiv.org/abs/2001.07685.
    """
    if not inputs.is_floating_point():
        raise UserError(
            "the inputs are bytes of texts, of which there are no strong views; leave out methods that need them"
        )
    if inputs.ndim == 4:
        chosen = torch.randint(len(OPERATIONS), (len(inputs), 2), generator=generator)
        strengths = torch.rand(len(inputs), 2, generator=generator)
        cut = torch.stack([torch.rand(len(inputs), generator=generator) for _ in range(3)], 1)[:, [1, 2, 0]]
        cut[:, 2] /= 2
        made = _cut_out(_two_operations(inputs, chosen, strengths), cut)
        return made, {"operations": chosen, "strengths": strengths, "cut": cut}
    noisy = inputs + 0.3 * torch.randn(inputs.shape, generator=generator).to(inputs)
    if inputs.ndim == 2:
        return noisy * (torch.rand(inputs.shape, generator=generator) >= 0.2).to(inputs), {}
    share = 0.25 * torch.rand(len(inputs), generator=generator)
    gone = _stretch(inputs.shape[-1], torch.rand(len(inputs), generator=generator), share)
    return noisy * ~gone.to(inputs.device)[:, None], {}


def turned_view(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a version of images that are turned by any angle, as `random_view`s, and the angles.

    Args:
        images: `(batch, channels, height, width)` floats, with the mean of the training inputs at 0, which fills the
            corners.
        generator: CPU generator of the draws.

    Returns:
        Images as they came in, and angles in radians, counter-clockwise `(batch,)`.

    Raises:
        UserError: if the inputs are no images.
    """
    if images.ndim != 4:
        raise UserError(
            f"inputs of shape {tuple(images.shape[1:])} cannot be turned; leave out methods that need to know a "
            "change of the inputs, or yield batches with 'views' and 'change' in a loop of your own"
        )
    angle = 2 * math.pi * torch.rand(len(images), generator=generator)
    cos, sin, ratio = angle.cos(), angle.sin(), images.shape[2] / images.shape[3]
    zero = torch.zeros_like(angle)
    # Both sides of the grid go from -1 to 1, so the sine terms carry the aspect ratio.
    matrices = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1).view(-1, 2, 3).to(images)
    return random_view(_warped(images, matrices), generator)[0], angle


OPERATIONS = (
    *("identity", "rotate", "shear x", "shear y", "translate x", "translate y"),
    *("brightness", "colour", "contrast", "solarise"),
)
"""What a strong view of an image is made of."""


def _two_operations(images: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    batch = len(images)

    def signed(name: str, largest: float) -> Tensor:
        """What both operations of an image add up to; 0 where neither is of that name."""
        return ((chosen == OPERATIONS.index(name)) * (2 * strength - 1)).sum(1) * largest

    def factor(name: str) -> Tensor:
        """From 0.05 to 0.95, and 1 where the operation was not drawn."""
        factors = torch.where(chosen == OPERATIONS.index(name), 0.05 + 0.9 * strength, 1.0).prod(1)
        return factors.to(images)[:, None, None, None]

    dark, light = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    images = dark + factor("brightness") * (images - dark)
    images = torch.lerp(images.mean(1, keepdim=True), images, factor("colour"))
    images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, factor("contrast"))
    above = torch.where(chosen == OPERATIONS.index("solarise"), strength, 1.0).amin(1).to(images)[:, None, None, None]
    images = torch.where(images > torch.lerp(dark, light, above), dark + light - images, images)

    angle, ratio = signed("rotate", math.pi / 6), images.shape[2] / images.shape[3]
    cos, sin = angle.cos(), angle.sin()
    right, down = signed("shear x", 0.3), signed("shear y", 0.3)
    # Both sides of the grid go from -1 to 1, so the sine terms carry the aspect ratio.
    rows = [cos - sin * down * ratio, cos * right - sin * ratio, signed("translate x", 0.6)]
    rows += [sin / ratio + cos * down, sin * right / ratio + cos, signed("translate y", 0.6)]
    matrices = torch.stack(rows, 1).view(batch, 2, 3).to(images)
    return _warped(images, matrices)


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Images resampled where matrices `(batch, 2, 3)` say, zeros outside."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _cut_out(images: Tensor, cut: Tensor) -> Tensor:
    rows, columns = (
        _stretch(side, centre, cut[:, 2]).to(images.device) for side, centre in zip(images.shape[2:], cut[:, :2].T)
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _stretch(side: int, centre: Tensor, share: Tensor) -> Tensor:
    """Mark a stretch of places `(batch, side)`, around a centre from 0 to 1, of a share of the side."""
    places = (torch.arange(side) + 0.5) / side
    return (places - centre[:, None]).abs() <= share[:, None] / 2


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "shift": shift,
    "flip-shift": flip_shift,
}
"""What a recipe's `augment` slot may name."""

VIEWS = ("plain", "photo")
"""What a recipe's `views` slot may name: the views above, or those of `repertory.training.photo_views`."""
