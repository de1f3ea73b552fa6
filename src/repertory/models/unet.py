"""A small U-Net: what a comparison trains for a class a pixel when the user names no model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import OptionError, check_number


class UNet(nn.Module):
    """Convolutions on ever smaller maps, and back up again with the maps of the way down beside them.

    Each level has two 3x3 convolutions with batch norm and ReLU; maps are halved by max pooling and doubled by
    bilinear interpolation to the size of the map beside them, so the sides of an image may have any length.

    Args:
        in_shape: `(channels, height, width)` of one image, or its channels alone.
        outputs: number of classes.
        widths: channels of each level, the finest first.

    Attributes:
        classifier: the 1x1 convolution from the features of a pixel to its classes.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of an image.

    >>> network = UNet((3, 20, 30), 4)
    >>> network(torch.zeros(2, 3, 20, 30)).shape, network.forward_features(torch.zeros(2, 3, 20, 30)).shape
    (torch.Size([2, 4, 20, 30]), torch.Size([2, 16, 20, 30]))

    Reference: Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation,
    https://arxiv.org/abs/1505.04597.
    """

    def __init__(self, in_shape: tuple[int, ...], outputs: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        if len(in_shape) != 3 or any(size < 1 for size in in_shape):
            raise OptionError(
                f"in_shape={tuple(in_shape)} is not allowed: UNet takes images (channels, height, width); give images"
            )
        check_number("outputs", outputs, minimum=1, integer=True)
        if not widths:
            raise OptionError("widths=() is not allowed: widths must name the channels of at least one level")
        for width in widths:
            check_number("widths", width, minimum=1, integer=True)
        inputs = (in_shape[0], *widths)
        self.down = nn.ModuleList(_level(a, b) for a, b in zip(inputs, widths))
        self.up = nn.ModuleList(_level(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.classifier = nn.Conv2d(widths[0], outputs, 1)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the map that the classifier reads, `(batch, widths[0], height, width)`."""
        maps: list[Tensor] = []
        for level in self.down:
            images = level(F.max_pool2d(images, 2, ceil_mode=True) if maps else images)
            maps.append(images)
        for level, beside in zip(self.up, maps[-2::-1]):
            raised = F.interpolate(images, size=beside.shape[2:], mode="bilinear", align_corners=False)
            images = level(torch.cat([raised, beside], 1))
        return images

    def get_classifier(self) -> nn.Conv2d:
        """Return the convolution from features to classes."""
        return self.classifier

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits `(batch, outputs, height, width)` of a map of features."""
        logits: Tensor = self.classifier(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every pixel, `(batch, outputs, height, width)`."""
        return self.forward_head(self.forward_features(images))


def small_unet(in_shape: tuple[int, ...], outputs: int, width: int = 8) -> UNet:
    """Build a U-Net of three levels.

    Args:
        in_shape: `(channels, height, width)` of one image.
        outputs: number of classes.
        width: channels of the finest level; each coarser one has twice as many.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of an image.

    >>> small_unet((1, 32, 32), 4)(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 4, 32, 32])
    """
    check_number("width", width, minimum=1, integer=True)
    return UNet(in_shape, outputs, (width, 2 * width, 4 * width))


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
