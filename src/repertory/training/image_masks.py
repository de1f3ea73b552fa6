"""Predicted masks of image files, each of its image's own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.datasets.images import decode_whole, each, size_of, unreadable
from repertory.training.dense import LOGITS
from repertory.training.evaluate import predict

_STEP = 2 / 3
"""Of the network's side, the farthest from one window to the next: they overlap by a third at least."""


class ImageMasks(Sequence[Tensor]):
    """The class of each pixel of some image files, uint8 `(height, width)`, predicted as they are asked for.

    An image is scaled until it covers what the network takes, as in training. Where it juts out, nothing is cropped:
    the network sees overlapping windows, whose logits are averaged. Logits are then interpolated to the image's size,
    and the most likely class is taken there.

    Args:
        model: gives logits `(windows, classes, height, width)`.
        files: the images.
        shape: channels, height and width that the network takes.
        classes: their number.
        normaliser: applied to the windows first.
    """

    def __init__(
        self,
        model: nn.Module,
        files: Sequence[Path],
        shape: tuple[int, int, int],
        classes: int,
        normaliser: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.files = list(files)
        self.shape = shape
        self.classes = classes
        self.normaliser = normaliser

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Tensor:  # type: ignore[override]
        return next(self._predicted([self.files[place]]))

    def __iter__(self) -> Iterator[Tensor]:
        size = max(1, LOGITS // (self.classes * self.shape[1] * self.shape[2]))
        for start in range(0, len(self.files), size):
            yield from self._predicted(self.files[start : start + size])

    def _predicted(self, files: Sequence[Path]) -> Iterator[Tensor]:
        found, bad = each(lambda file: (decode_whole(file, self.shape), size_of(file)), files)
        if bad:
            raise unreadable(bad, len(files), "replace or remove them")
        _, height, width = self.shape
        images = [torch.from_numpy(np.array(pixels)) for pixels, _ in found]
        windows = [
            (number, y, x)
            for number, image in enumerate(images)
            for y in starts(image.shape[1], height)
            for x in starts(image.shape[2], width)
        ]
        given = torch.stack([images[n][:, y : y + height, x : x + width] for n, y, x in windows])
        chunk = max(1, LOGITS // (self.classes * height * width))
        logits = predict(self.model, given, self.normaliser, chunk=chunk)
        place = 0
        for number, (image, (_, (own_width, own_height))) in enumerate(zip(images, found)):
            total = logits.new_zeros(self.classes, *image.shape[1:])
            times = logits.new_zeros(image.shape[1:])
            while place < len(windows) and windows[place][0] == number:
                _, y, x = windows[place]
                total[:, y : y + height, x : x + width] += logits[place]
                times[y : y + height, x : x + width] += 1
                place += 1
            yield most_likely(total / times, own_height, own_width)


def starts(length: int, side: int) -> list[int]:
    """Return where windows of a side begin that cover a length, evenly and overlapping by a third at least.

    >>> starts(10, 10), starts(18, 10), starts(30, 10)
    ([0], [0, 4, 8], [0, 5, 10, 15, 20])
    """
    steps = math.ceil((length - side) / max(1, int(_STEP * side)))
    return [round(k * (length - side) / max(1, steps)) for k in range(steps + 1)]


def most_likely(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the most likely class of each pixel at another size, uint8 `(height, width)`.

    Args:
        logits: `(classes, rows, columns)`, interpolated bilinearly.
        height: of the result.
        width: of the result.
    """
    if logits.shape[1:] == (height, width):
        return logits.argmax(0).to(torch.uint8)
    best = torch.full((height, width), -math.inf)
    found = torch.zeros(height, width, dtype=torch.uint8)
    # A class at a time: all of them at the size of a photo would take gigabytes.
    for number, each_class in enumerate(logits):
        values = functional.interpolate(each_class[None, None], (height, width), mode="bilinear")[0, 0]
        higher = values > best
        best = torch.where(higher, values, best)
        found[higher] = number
    return found
