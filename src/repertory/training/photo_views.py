"""The field's random views of photos, through the kernels of `torchvision.transforms.v2`, with what was drawn for each.

The classes of torchvision draw from the global generator, and once for a whole batch. So only its kernels are used; the
draws are here, for each image, from the generator that is given. All are made whatever comes of them, so that an option
changes what it says and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from repertory.core.crops import draw_boxes
from repertory.errors import OptionError, check_number
from repertory.training import photo_kernels as kernels

JITTER = ("brightness", "contrast", "saturation", "hue")
"""Changes of colour, in the order in which `order` of a view's parameters counts them."""

OPERATIONS: dict[str, tuple[float, float]] = {
    "identity": (0, 0),
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "brightness": (0.05, 0.95),
    "colour": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "posterize": (4, 9),
    "solarize": (0, 1),
    "rotate": (-30, 30),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.3, 0.3),
    "translate_y": (-0.3, 0.3),
}
"""The operations of a strong view, in the order in which `operations` counts them, and from where to where their
strengths are drawn: factors; whole bits kept, below 9; the light from 0 to 1 from which on it is inverted; degrees
clockwise; slopes; shares of the side."""

_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_CHUNK = 2**20
"""Numbers that are changed at a time: what fits a processor's cache is done sooner."""


def photo_view(
    images: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    mirror: float = 0.5,
    jitter: float = 0.8,
    strength: float = 1.0,
    grey: float = 0.2,
    blur: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a random view of each photo, as SimCLR makes them, and what was drawn for it.

    A random part of the image brought to the image's size; mirrored; brightness, contrast, saturation and hue changed
    in a random order; without colour; blurred, if the sides are longer than 32 pixels, by a kernel of a tenth of the
    shorter one.

    Args:
        images: uint8, or floats from 0 to 1, `(batch, 1 or 3, height, width)`, on any device.
        generator: CPU generator of the draws.
        scale: least and greatest share of the image's area that is kept.
        mirror: probability of mirroring left to right.
        jitter: probability of changing the colours.
        strength: of that change: factors on brightness, contrast and saturation from `1 - 0.8 * strength` (0 at least)
            to `1 + 0.8 * strength`, hue by up to `0.2 * strength` of its circle; 2.5 at most.
        grey: probability of taking out the colour.
        blur: probability of blurring.

    Returns:
        Images as they came in; and on the CPU, one row an image:

        - `crop` `(batch, 4)` int64: top, left, height and width of the part, in pixels;
        - `mirrored` `(batch,)` bool, after the crop;
        - `jittered` `(batch,)` bool, and `order` `(batch, 4)` int64: which of `JITTER` came first, second, ...;
        - `brightness`, `contrast`, `saturation` `(batch,)` factors, 1 where not jittered;
        - `hue` `(batch,)` in turns of the circle, 0 where not jittered;
        - `grey` `(batch,)` bool;
        - `blur` `(batch,)` standard deviation in pixels, 0 where not blurred.

    Raises:
        OptionError: if an option is out of its range, or the images are none.

    >>> images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> view, drawn = photo_view(images, torch.Generator().manual_seed(0))
    >>> view.shape == images.shape, drawn["crop"].shape
    (True, torch.Size([2, 4]))

    Reference: Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations,
    https://arxiv.org/abs/2002.05709 (there with parts from 0.08 of the area on; 0.2 is what smaller photos are given).
    """
    check_photos(images)
    for name, value in (("mirror", mirror), ("jitter", jitter), ("grey", grey), ("blur", blur)):
        check_number(name, value, minimum=0, maximum=1)
    check_number("strength", strength, minimum=0, maximum=2.5)
    batch, (height, width) = len(images), images.shape[2:]
    boxes = draw_boxes(batch, height, width, generator, *scale)
    crop = (boxes * torch.tensor([height, width, height, width])).round().long()
    mirrored, jittered, greyed, blurs = (
        torch.rand(4, batch, generator=generator) < torch.tensor([mirror, jitter, grey, blur])[:, None]
    ).unbind()
    amounts, sigma = torch.rand(4, batch, generator=generator), torch.rand(batch, generator=generator)
    order = torch.rand(batch, 4, generator=generator).argsort(1)
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    factors = torch.where(jittered, low + (high - low) * amounts[:3], 1.0)
    hue = torch.where(jittered, 0.2 * strength * (2 * amounts[3] - 1), 0.0)
    blurs &= min(height, width) > 32
    drawn = {
        "crop": crop,
        "mirrored": mirrored,
        "jittered": jittered,
        "order": order,
        **dict(zip(JITTER, [*factors, hue])),
        "grey": greyed,
        "blur": torch.where(blurs, 0.1 + 1.9 * sigma, 0.0),
    }
    return _made(images, drawn, _viewed), drawn


def strong_photo_view(
    images: Tensor, generator: torch.Generator, *, operations: int = 2, cut: float = 0.5
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a strongly changed version of each photo, which still shows what it shows, and what was drawn for it.

    RandAugment with the operations and ranges of FixMatch, one after the other, and then a square cut out around a
    place that is drawn anywhere. What an image is moved away from, or cut out of, turns grey.

    Args:
        images: uint8, or floats from 0 to 1, `(batch, 1 or 3, height, width)`, on any device.
        generator: CPU generator of the draws.
        operations: how many operations an image undergoes; the same one may come again.
        cut: largest share of a side that is cut out.

    Returns:
        Images as they came in; and on the CPU, one row an image:

        - `operations` `(batch, operations)` int64: which of `OPERATIONS` came first, second, ...;
        - `strengths` `(batch, operations)`: the factor of brightness, colour, contrast and sharpness; the bits that
          posterize keeps; the light from 0 to 1 from which on solarize inverts; degrees clockwise that it is rotated;
          the slope of a shear about the upper left corner; pixels moved to the right or down; 0 for the others;
        - `cut` `(batch, 4)` int64: top, left, height and width of what is cut out, in pixels, inside the image.

    Raises:
        OptionError: if an option is out of its range, or the images are none.

    >>> images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> view, drawn = strong_photo_view(images, torch.Generator().manual_seed(0))
    >>> view.shape == images.shape, drawn["operations"].shape, drawn["cut"].shape
    (True, torch.Size([2, 2]), torch.Size([2, 4]))

    Reference: Cubuk, Zoph, Shlens, Le, RandAugment, https://arxiv.org/abs/1909.13719; ranges: Sohn et al., FixMatch,
    https://arxiv.org/abs/2001.07685.
    """
    check_photos(images)
    check_number("operations", operations, minimum=0, integer=True)
    check_number("cut", cut, minimum=0, maximum=1)
    batch, sides = len(images), torch.tensor(images.shape[2:])
    chosen = torch.randint(len(OPERATIONS), (batch, operations), generator=generator)
    low, high = torch.tensor(list(OPERATIONS.values()))[chosen].unbind(-1)
    strengths = low + (high - low) * torch.rand(batch, operations, generator=generator)
    strengths = torch.where(_is(chosen, "posterize"), strengths.floor(), strengths)
    for side, name in zip(sides, ("translate_y", "translate_x")):
        strengths = torch.where(_is(chosen, name), strengths * side, strengths)
    centre = (torch.rand(batch, 2, generator=generator) * sides).long()
    length = (cut * torch.rand(batch, 1, generator=generator) * sides).round().long()
    first = (centre - length // 2).clamp(min=0)
    last = (centre - length // 2 + length).minimum(sides)
    drawn = {"operations": chosen, "strengths": strengths, "cut": torch.cat([first, last - first], 1)}
    return _made(images, drawn, _strongly_changed), drawn


def check_photos(images: Tensor) -> None:
    """Refuse what is no batch of grey or colour images.

    Raises:
        OptionError: naming what was given and what is allowed.
    """
    shape = f"inputs of shape {tuple(images.shape[1:])}"
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise OptionError(
            f"{shape} have no photo views, which are of images (1 or 3 channels, height, width); take plain views"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise OptionError(f"{shape} of {images.dtype} have no photo views; give uint8, or floats from 0 to 1")
    if images.is_floating_point() and len(images) and not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise OptionError(
            f"{shape} run from {float(images.min()):g} to {float(images.max()):g}; photo views are made of uint8, or "
            "of floats from 0 to 1, before any normalisation: give these, or take plain views"
        )


_Change = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def _made(images: Tensor, drawn: Mapping[str, Tensor], change: _Change) -> Tensor:
    """Change a few images at a time; uint8 ones as floats, rounded once."""
    made, count = torch.empty_like(images), max(1, _CHUNK // max(1, images[:1].numel()))
    for start in range(0, len(images), count):
        rows = slice(start, start + count)
        changed = change(images[rows], {name: value[rows].to(images.device) for name, value in drawn.items()})
        made[rows] = vision.to_dtype(changed, images.dtype, scale=True)
    return made


_JITTERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": kernels.brightened,
    "contrast": kernels.contrasted,
    "saturation": kernels.saturated,
    "hue": kernels.hue_turned,
}


def _viewed(images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    # While they are bytes: that is faster, and a part of a photo has no more than its precision.
    images = kernels.cropped(images, drawn["crop"], drawn["mirrored"])
    images = vision.to_dtype(images, torch.float32, scale=True)
    for place in drawn["order"].unbind(1):
        for number, name in enumerate(JITTER):
            _put(images, drawn["jittered"] & (place == number), _JITTERED[name], drawn[name])
    _put(images, drawn["grey"], lambda some, _: vision.rgb_to_grayscale(some, some.shape[1]), drawn["grey"])
    size = min(images.shape[2:]) // 10 | 1
    _put(images, drawn["blur"] > 0, lambda some, sigmas: kernels.blurred(some, sigmas, size), drawn["blur"])
    return images


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, _: vision.autocontrast(images),
    "equalize": lambda images, _: vision.equalize(images),
    "brightness": kernels.brightened,
    "colour": kernels.saturated,
    "contrast": kernels.contrasted,
    "sharpness": kernels.sharpened,
    "posterize": kernels.posterised,
    "solarize": kernels.solarised,
}


def _strongly_changed(images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    # A copy, since what are floats already comes back as it is.
    images = vision.to_dtype(images, torch.float32, scale=True).clone()
    for chosen, strengths in zip(drawn["operations"].unbind(1), drawn["strengths"].unbind(1)):
        for name, change in _CHANGES.items():
            _put(images, _is(chosen, name), change, strengths)
        # All that move an image are done in one pass.
        rows = (chosen >= list(OPERATIONS).index(_GEOMETRIC[0])).nonzero()[:, 0]
        amounts = {name: torch.where(_is(chosen, name), strengths, 0.0)[rows] for name in _GEOMETRIC}
        if len(rows):
            images[rows] = kernels.geometric(images.index_select(0, rows), **amounts)
    return kernels.cut_out(images, drawn["cut"])


def _put(images: Tensor, which: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> None:
    """Change some of the images in place, each with its value."""
    rows = which.nonzero()[:, 0]
    if len(rows):
        # Several times as fast as to index by rows.
        images[rows] = change(images.index_select(0, rows), values[rows])


def _is(chosen: Tensor, name: str) -> Tensor:
    return chosen == list(OPERATIONS).index(name)
