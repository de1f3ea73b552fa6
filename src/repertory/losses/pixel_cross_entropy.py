"""Cross-entropy of the classes of pixels, some of which have none: what dense predictions are compared by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.dense import IGNORED, mean_over_valid
from repertory.errors import DataError, check_choice, check_number


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignored: int = IGNORED) -> Tensor:
    """Return the cross-entropy of each pixel in nats, 0 where it has no class.

    Args:
        logits: `(batch, classes, height, width)`, or any number of dimensions after the classes.
        target: classes `(batch, height, width)`, int64; `ignored` where a pixel has none.
        ignored: that value.

    Returns:
        `(batch, height, width)`, float32 or wider.

    Raises:
        DataError: if the shapes do not belong together, or a class is out of range.

    >>> pixel_cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 255]]])).mul(1e4).round()
    tensor([[[6931.,    0.]]])
    """
    if logits.ndim < 3 or target.shape != (len(logits), *logits.shape[2:]):
        raise DataError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not belong together; give logits "
            "(batch, classes, height, width) and a class for each pixel, (batch, height, width)"
        )
    # A compiled graph cannot stop for an error, and a GPU should not wait for this one.
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = target[(target != ignored) & ((target < 0) | (target >= logits.shape[1]))]
        if len(wrong):
            raise DataError(
                f"target holds the class {int(wrong[0])}, but the logits are for classes 0 to {logits.shape[1] - 1}; "
                f"number the classes from 0, and give pixels without one the value ignored={ignored}"
            )
    # Sums over many pixels, and small probabilities, need more than half precision.
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    values: Tensor = F.cross_entropy(wide, target, reduction="none", ignore_index=ignored)
    return values


class PixelCrossEntropyLoss(nn.Module):
    """Mean cross-entropy of an image's labelled pixels: the baseline loss of the scenario segmentation.

    The mean is over the labelled pixels of each image, then over images, so that it is a value an example: an image
    has the same say whatever part of it is labelled. Where all pixels are, it equals torch's `CrossEntropyLoss`. An
    image without a labelled pixel counts 0.

    Args:
        ignored: value of pixels without a class.
        reduction: "mean" over images, "none" for one value an image.

    Shape:
        logits `(batch, classes, height, width)`, target `(batch, height, width)` int64.

    Raises:
        OptionError: if an option is out of range.

    >>> loss = PixelCrossEntropyLoss(reduction="none")
    >>> loss(torch.zeros(3, 4, 8, 8), torch.zeros(3, 8, 8, dtype=torch.int64)).shape
    torch.Size([3])
    """

    def __init__(self, ignored: int = IGNORED, reduction: str = "mean") -> None:
        super().__init__()
        check_number("ignored", ignored, integer=True)
        check_choice("reduction", reduction, ("mean", "none"))
        self.ignored = ignored
        self.reduction = reduction

    def elements(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each pixel, and whether it has a class: `(batch, height, width)` each."""
        return pixel_cross_entropy(logits, target, self.ignored), target != self.ignored

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean 0-d, or `(batch,)` with `reduction="none"`."""
        values = mean_over_valid(*self.elements(logits, target))
        return values if self.reduction == "none" else values.mean()
