"""Generated scenes with a known class for every pixel: blobs, thin lines and small dots on noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.stratify import generator_for
from repertory.errors import OptionError, check_number

KEYS = ("examples", "side")
"""Options of the data, as in `shapes?examples=900&side=48`."""
CLASSES = ("background", "blob", "line", "dot")
_BLOBS, _LINES, _DOTS = 3, 2, 4
"""Most objects of a kind in one scene; there may be fewer."""
_DARK, _STEP = 64.0, 56.0
"""Grey value of the background, and what an object of strength 1 adds: three of them over each other fit a byte."""


def load_shapes(name: str, spec: str, examples: str = "400", side: str = "32") -> Dataset:
    """Return the generated data set.

    Args:
        name: of the data.
        spec: what the user typed.
        examples: number of scenes.
        side: of a scene in pixels, at least 16.

    Raises:
        OptionError: if an option is not a whole number in its range.
    """
    numbers = {}
    for option, text, least in (("examples", examples, 20), ("side", side, 16)):
        if not text.isdecimal() or int(text) < least:
            raise OptionError(f"{option}={text} must be a whole number, at least {least}, as in {option}={2 * least}")
        numbers[option] = int(text)
    images, masks = scenes(numbers["examples"], numbers["side"])
    return Dataset(
        name=name,
        spec=spec,
        task="segmentation",
        modality="image",
        inputs=images,
        targets=masks,
        classes=CLASSES,
        encoder=Encoder("image", tuple(images.shape[1:])),
    )


def scenes(examples: int, size: int = 32, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw grey scenes: 1 to 3 elliptic blobs, up to 2 lines of one pixel's width, 1 to 4 dots of 2x2 pixels.

    An object adds a strength of its own, drawn from 0.7 to 1.3 for all kinds alike, so that classes differ by shape and
    size only. A line hides a blob, a dot hides both.

    Args:
        examples: number of scenes.
        size: side in pixels.
        noise: standard deviation of the noise of each pixel, where an object's strength is about 1.
        seed: of everything that is drawn.

    Returns:
        Images uint8 `(examples, 1, size, size)`, and the class of each pixel int64 `(examples, size, size)`.

    >>> images, masks = scenes(2, size=16)
    >>> images.shape, masks.shape
    (torch.Size([2, 1, 16, 16]), torch.Size([2, 16, 16]))
    """
    check_number("examples", examples, minimum=1, integer=True)
    check_number("size", size, minimum=8, integer=True)
    check_number("noise", noise, minimum=0)
    generator = generator_for(seed, "shapes")
    image, masks = torch.zeros(examples, size, size), torch.zeros(examples, size, size, dtype=torch.int64)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(examples, generator=generator)

    for number, (label, most, least, draw) in enumerate(
        [(1, _BLOBS, 1, _blob), (2, _LINES, 0, _line), (3, _DOTS, 1, _dot)]
    ):
        count = torch.randint(least, most + 1, (examples,), generator=generator_for(seed, f"shapes/{number}"))
        for k in range(most):
            inside = draw(size, [drawn(0, 1) for _ in range(5)]) & (k < count)[:, None, None]
            image += inside * drawn(0.7, 1.3)[:, None, None]
            masks = torch.where(inside, label, masks)
    image += noise * torch.randn(image.shape, generator=generator)
    return (_DARK + _STEP * image).round().clamp(0, 255).to(torch.uint8)[:, None], masks


def _grid(size: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(size)
    return places[:, None], places[None, :]


def _blob(size: int, draws: list[Tensor]) -> Tensor:
    """Ellipses anywhere, with half axes of an eighth to a quarter of the side, turned by any angle."""
    row, column, first, second, turn = (draw[:, None, None] for draw in draws)
    rows, columns = _grid(size)
    down, right = rows - row * (size - 1), columns - column * (size - 1)
    cos, sin = (math.pi * turn).cos(), (math.pi * turn).sin()
    along, across = (cos * down + sin * right, cos * right - sin * down)
    return (along / (size * (1 + first) / 8)).square() + (across / (size * (1 + second) / 8)).square() <= 1


def _line(size: int, draws: list[Tensor]) -> Tensor:
    """Lines across the whole scene, one pixel for each step along the axis they are nearer to."""
    start, slope, upright = draws[0] * (size - 1), 2 * draws[1] - 1, draws[2] < 0.5
    steps = torch.arange(size)
    places = (start[:, None] + slope[:, None] * (steps - size / 2)).round()
    flat = places[:, :, None] == steps
    return torch.where(upright[:, None, None], flat, flat.transpose(1, 2))


def _dot(size: int, draws: list[Tensor]) -> Tensor:
    """Squares of two pixels' side."""
    rows, columns = _grid(size)
    top, left = ((draw * (size - 1)).floor()[:, None, None] for draw in draws[:2])
    return ((rows - top) // 2 == 0) & ((columns - left) // 2 == 0)
