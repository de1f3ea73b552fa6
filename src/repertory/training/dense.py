"""Predicted masks and how well they agree with true ones, in chunks: a logit a class a pixel is never kept for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from repertory.core.dense import IGNORED
from repertory.training.evaluate import predict

LOGITS = 2**23
"""Most logits held at a time."""


def predict_masks(
    model: nn.Module, inputs: Tensor, classes: int, normaliser: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the most likely class of each pixel, uint8 `(examples, height, width)` on the CPU.

    Args:
        model: gives logits `(examples, classes, height, width)`.
        inputs: images `(examples, channels, height, width)`.
        classes: their number, which decides how many images are passed at a time.
        normaliser: applied to each chunk first.
    """
    return torch.cat(list(_masks(model, inputs, classes, normaliser)))


def confusion(
    model: nn.Module, inputs: Tensor, masks: Tensor, classes: int, normaliser: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return how many pixels of each true class (rows) were given each class (columns), int64 `(classes, classes)`.

    Args:
        model: gives logits `(examples, classes, height, width)`.
        inputs: images `(examples, channels, height, width)`.
        masks: true classes, int64 `(examples, height, width)`; `IGNORED` pixels do not count.
        classes: their number.
        normaliser: applied to each chunk first.
    """
    counts, place = torch.zeros(classes**2, dtype=torch.int64), 0
    for found in _masks(model, inputs, classes, normaliser):
        truth = masks[place : place + len(found)].cpu()
        place += len(found)
        known = truth != IGNORED
        counts += (classes * truth[known] + found[known].long()).bincount(minlength=classes**2)
    return counts.view(classes, classes)


def overlaps(counts: Tensor) -> dict[str, Tensor]:
    """Return the intersection over union and the Dice coefficient of each class, float64 `(classes,)`.

    Args:
        counts: `(classes, classes)`, as `confusion` gives it.

    Returns:
        "iou" and "dice"; not a number for a class that neither masks nor predictions have.

    >>> overlaps(torch.tensor([[3, 1], [0, 2]]))["iou"].mul(12).round()
    tensor([9., 8.], dtype=torch.float64)
    """
    hit, both = counts.diagonal().double(), (counts.sum(0) + counts.sum(1)).double()
    return {"iou": hit / (both - hit), "dice": 2 * hit / both}


def mask_metrics(counts: Tensor) -> dict[str, float]:
    """Return mean_iou and mean_dice, over the classes that occur, and the pixel_accuracy.

    Args:
        counts: `(classes, classes)`, as `confusion` gives it; 0 everywhere where no pixel has a class.
    """
    found = overlaps(counts)
    accuracy = float(counts.diagonal().sum() / counts.sum().clamp(min=1))
    return {
        "mean_iou": float(found["iou"].nanmean().nan_to_num()),
        "mean_dice": float(found["dice"].nanmean().nan_to_num()),
        "pixel_accuracy": accuracy,
    }


def _masks(
    model: nn.Module, inputs: Tensor, classes: int, normaliser: Callable[[Tensor], Tensor] | None
) -> Iterator[Tensor]:
    size = max(1, LOGITS // (classes * inputs[0, 0].numel()))
    for part in inputs.split(size):
        yield predict(model, part, normaliser, chunk=size).argmax(1).to(torch.uint8)
