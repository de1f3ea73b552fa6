"""Kernels of `torchvision.transforms.v2` on a batch of images, with a factor of its own for each.

Most kernels take a batch, but one factor for all of it; called for each image, they cost more than a small network's
step. What is here equals such a kernel, called for each image with its factor: those that blend an image with something
made of it are called once at factor 0, which makes that something for all images, and the blend is ours.

Images are floats from 0 to 1 `(batch, 1 or 3, height, width)`; factors are `(batch,)` on the same device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

GREY = 0.5
"""What fills the places that an image was moved away from, or that were cut out: about the mean of photos."""


def cropped(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut a box out of each image and bring it to the images' size, as `resized_crop` does, and mirror some.

    Args:
        images: `(batch, channels, height, width)`, also uint8.
        boxes: top, left, height and width in pixels `(batch, 4)`, int64.
        mirrored: which are mirrored left to right `(batch,)`, bool.
    """
    made, size = torch.empty_like(images), list(images.shape[2:])
    for row, (box, mirror) in enumerate(zip(boxes.tolist(), mirrored.tolist())):
        crop = vision.resized_crop(images[row], *box, size=size, antialias=True)
        made[row] = vision.horizontal_flip(crop) if mirror else crop
    return made


def brightened(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the light of each image, as `adjust_brightness` does."""
    return (images * _each(factors)).clamp_(0, 1)


def contrasted(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with the mean of its light, as `adjust_contrast` does."""
    return _blended(vision.adjust_contrast, images, factors)


def saturated(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with what it is without colour, as `adjust_saturation` does."""
    return _blended(vision.adjust_saturation, images, factors)


def sharpened(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with a smooth version of it, as `adjust_sharpness` does."""
    return _blended(vision.adjust_sharpness, images, factors)


def hue_turned(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each image, as `adjust_hue` does; grey images stay.

    Args:
        images: the images.
        turns: from -0.5 to 0.5, of the whole circle `(batch,)`.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    most, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = most - least
    # In sixths of the circle, from red on. Where there is no spread, any hue gives the same grey.
    from_green, from_blue = (blue - red).add_(spread, alpha=2), (red - green).add_(spread, alpha=4)
    hue = torch.where(most == red, green - blue, torch.where(most == green, from_green, from_blue))
    hue = hue.div_(spread.clamp(min=1e-12)).add_(6 * turns.to(images)[:, None, None])
    # Faster than a remainder.
    hue -= 6 * (hue / 6).floor_()
    # How much of the spread a channel has at a hue is a trapezium over the circle.
    made = torch.empty_like(images)
    for channel, (sign, centre, offset) in enumerate(((1, 3, -1), (-1, 2, 2), (-1, 4, 2))):
        share = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(least, share, spread, out=made[:, channel])
    return made


def blurred(images: Tensor, sigmas: Tensor, size: int) -> Tensor:
    """Blur each image, as `gaussian_blur` does, edges reflected.

    Args:
        images: the images, of sides longer than half of `size`.
        sigmas: standard deviations in pixels `(batch,)`.
        size: of the kernel in pixels, odd.
    """
    places = torch.arange(size, device=images.device) - size // 2
    weights = (-(places**2) / (2 * sigmas.to(images)[:, None] ** 2)).softmax(1)
    half = size // 2
    for dim, padding in ((3, (half, half, 0, 0)), (2, (0, 0, half, half))):
        padded, length = F.pad(images, padding, mode="reflect"), images.shape[dim]
        images = padded.narrow(dim, 0, length) * _each(weights[:, 0])
        for tap in range(1, size):
            images.addcmul_(padded.narrow(dim, tap, length), _each(weights[:, tap]))
    return images


def solarised(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the light of each image from its threshold on, as `solarize` does."""
    return torch.where(images >= _each(thresholds), vision.invert(images), images)


def posterised(images: Tensor, bits: Tensor) -> Tensor:
    """Keep so many bits of each image's values, as `posterize` does; one call for the images that keep the same."""
    made = images.clone()
    for count in bits.unique().tolist():
        rows = (bits == count).nonzero()[:, 0]
        made[rows] = vision.posterize(images[rows], int(count))
    return made


def geometric(images: Tensor, **amounts: Tensor) -> Tensor:
    """Turn, shear and move each image, as `affine` does bilinearly, with grey where nothing is left.

    Args:
        images: the images.
        **amounts: `(batch,)` each, 0 for nothing: `rotate` in degrees clockwise about the middle; `shear_x` and
            `shear_y` slopes about the upper left corner; `translate_x` and `translate_y` pixels to the right and down.
            Of these no image has more than one, or they are as if the last were done first.
    """
    height, width = images.shape[2:]
    angle = amounts["rotate"] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y = amounts["shear_x"], amounts["shear_y"]
    # Where a pixel comes from, in pixels from the middle.
    rows = [cos, sin + shear_x, shear_x * height / 2 - amounts["translate_x"]]
    rows += [shear_y - sin, cos, shear_y * width / 2 - amounts["translate_y"]]
    # Both sides of the sampled grid go from -1 to 1.
    scales = torch.tensor([1, height / width, 2 / width, width / height, 1, 2 / height], device=images.device)
    matrices = (torch.stack(rows, 1) * scales).view(-1, 2, 3).to(images)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - GREY, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.add_(GREY)


def cut_out(images: Tensor, boxes: Tensor) -> Tensor:
    """Fill a box of each image with grey, as `erase` does.

    Args:
        images: the images.
        boxes: top, left, height and width in pixels `(batch, 4)`, int64; height or width of 0 cuts nothing out.
    """
    top, left, height, width = boxes.to(images.device)[:, :, None].unbind(1)
    down, across = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows, columns = (down >= top) & (down < top + height), (across >= left) & (across < left + width)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], GREY)


def _blended(kernel: Callable[[Tensor, float], Tensor], images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(kernel(images, 0.0), images, _each(factors).to(images)).clamp_(0, 1)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
