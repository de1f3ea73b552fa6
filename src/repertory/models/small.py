"""Small networks for small problems: what a comparison trains when the user names no model.

Each is a plain `nn.Sequential` that ends in one `nn.Linear`, so that heads and features are
found without help.
"""

from __future__ import annotations

import math

from torch import nn

from repertory.errors import OptionError, check_number

_LARGEST_MAP = 16
_LONGEST_SEQUENCE = 8


def mlp(in_shape: tuple[int, ...], outputs: int, width: int = 128, depth: int = 2) -> nn.Sequential:
    """Build a perceptron with ReLU that flattens its input.

    Args:
        in_shape: shape of one input, of any length.
        outputs: number of classes, or of values.
        width: units of a hidden layer.
        depth: number of hidden layers; 0 gives a linear model.

    Returns:
        A network from `(batch, *in_shape)` to `(batch, outputs)`.

    Raises:
        OptionError: if an option is outside its range.

    >>> mlp((3,), 2, width=4, depth=1)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=3, out_features=4, bias=True)
      (2): ReLU()
      (3): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    check_number("outputs", outputs, minimum=1, integer=True)
    check_number("width", width, minimum=1, integer=True)
    check_number("depth", depth, minimum=0, integer=True)
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(in_shape)
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, outputs))


def small_cnn(in_shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Sequential:
    """Build a network of three stages of convolution, batch norm and ReLU for images of any size.

    The first stage brings maps above 16 x 16 down to that at once, since time is spent where maps are
    large; the next two halve them and double the channels.

    Args:
        in_shape: `(channels, height, width)` of one image.
        outputs: number of classes, or of values.
        width: channels of the first stage.

    Returns:
        A network from `(batch, *in_shape)` to `(batch, outputs)`.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of an image.

    >>> import torch
    >>> small_cnn((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    _check_shape("small_cnn", in_shape, ("channels", "height", "width"))
    check_number("outputs", outputs, minimum=1, integer=True)
    check_number("width", width, minimum=1, integer=True)
    stride = math.ceil(max(in_shape[1:]) / _LARGEST_MAP)
    return nn.Sequential(
        *_image_stage(in_shape[0], width, max(3, stride | 1), stride),
        *_image_stage(width, 2 * width, 3, 2),
        *_image_stage(2 * width, 4 * width, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, outputs),
    )


def convnet(in_shape: tuple[int, ...], outputs: int, width: int = 32, depth: int = 3) -> nn.Sequential:
    """Build the network of the literature on condensed data sets: convolution, instance norm, ReLU and pooling.

    Each image is normalised by itself, so a batch may be of any size, and no statistics are kept. The first stage
    brings maps above 16 x 16 down to that; the stages pool as long as the map stays 2 x 2 or larger, and what is left
    is flattened, since averages of normalised maps say little.

    Args:
        in_shape: `(channels, height, width)` of one image.
        outputs: number of classes, or of values.
        width: channels of every stage.
        depth: number of stages.

    Returns:
        A network from `(batch, *in_shape)` to `(batch, outputs)`.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of an image of 2 x 2 or larger.

    >>> import torch
    >>> convnet((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

    Reference: Gidaris, Komodakis, https://arxiv.org/abs/1804.09458, as in Zhao et al., https://arxiv.org/abs/2006.05929.
    """
    _check_shape("convnet", in_shape, ("channels", "height", "width"))
    for name, value in (("outputs", outputs), ("width", width), ("depth", depth)):
        check_number(name, value, minimum=1, integer=True)
    stride = math.ceil(max(in_shape[1:]) / _LARGEST_MAP)
    height, breadth = (math.ceil(side / stride) for side in in_shape[1:])
    if height * breadth < 2:
        raise OptionError(f"in_shape={tuple(in_shape)} leaves one place, which instance norm turns into 0; use mlp")
    layers: list[nn.Module] = []
    channels, kernel = in_shape[0], max(3, stride | 1)
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.GroupNorm(width, width), nn.ReLU()]
        channels, kernel, stride = width, 3, 1
        if min(height, breadth) >= 4:
            layers.append(nn.AvgPool2d(2))
            height, breadth = height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, outputs))


def conv1d(in_shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Sequential:
    """Build the three-stage convolutional network of the MNIST-1D baseline for sequences of any length.

    Every stage halves the sequence. What is left is flattened, since position matters in a sequence; more
    than eight positions are first averaged down to eight.

    Args:
        in_shape: `(channels, length)` of one sequence.
        outputs: number of classes, or of values.
        width: channels of every stage.

    Returns:
        A network from `(batch, *in_shape)` to `(batch, outputs)`.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of a sequence.

    >>> import torch
    >>> conv1d((1, 40), 10)(torch.zeros(2, 1, 40)).shape
    torch.Size([2, 10])
    """
    _check_shape("conv1d", in_shape, ("channels", "length"))
    check_number("outputs", outputs, minimum=1, integer=True)
    check_number("width", width, minimum=1, integer=True)
    length = min(math.ceil(in_shape[1] / 8), _LONGEST_SEQUENCE)
    return nn.Sequential(
        *(nn.Conv1d(in_shape[0], width, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv1d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv1d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool1d(length),
        nn.Flatten(),
        nn.Linear(width * length, outputs),
    )


def _image_stage(channels: int, width: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU()


def _check_shape(model: str, in_shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(in_shape) != len(axes) or any(size < 1 for size in in_shape):
        raise OptionError(
            f"in_shape={tuple(in_shape)} is not allowed: {model} takes inputs of shape ({', '.join(axes)}); "
            f"use repertory.models.small:mlp for inputs of any shape"
        )
