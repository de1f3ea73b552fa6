"""A convolutional stem for vision transformers, with normalisation that an image's contrast does not pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, UserError, check_number


class IBN(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest.

    The first half, rounded down, forgets what changes an image as a whole, such as brightness and contrast; the rest
    keeps it. Both have a learnt scale and shift.

    Args:
        channels: at least 2.

    Raises:
        OptionError: if there are fewer.

    >>> IBN(5)(torch.zeros(2, 5, 4, 4)).shape
    torch.Size([2, 5, 4, 4])

    Reference: Pan, Luo, Shi, Tang, Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net,
    https://arxiv.org/abs/1807.09441.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_number("channels", channels, minimum=2, integer=True)
        self.instance = nn.InstanceNorm2d(channels // 2, affine=True)
        self.batch = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps `(batch, channels, height, width)`."""
        half = self.instance.num_features
        return torch.cat([self.instance(maps[:, :half]), self.batch(maps[:, half:])], 1)


class ConvStem(nn.Sequential):
    """Three convolutions with IBN in place of cutting an image into patches (ICS): the same tokens, less abruptly made.

    7x7 with a stride, IBN, ReLU; 3x3, IBN, ReLU; 3x3, batch norm, ReLU; and a convolution that makes one token of what
    is left of a patch. It gives a map, as the convolution of timm's patch embedding does.

    Args:
        dim: size of a token.
        patch: height and width of a patch in pixels, or its side.
        channels: of an image.
        width: channels inside the stem.
        stride: of the first convolution; divides both sides of a patch.

    Raises:
        OptionError: if an option is out of range.

    >>> ConvStem(dim=24, patch=16)(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 24, 4, 2])

    Reference: Luo et al., https://arxiv.org/abs/2111.12084.
    """

    def __init__(
        self, dim: int, patch: int | tuple[int, int] = 16, channels: int = 3, width: int = 64, stride: int = 2
    ) -> None:
        sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
        for name, value in (("dim", dim), ("channels", channels), ("stride", stride), *(("patch", s) for s in sides)):
            check_number(name, value, minimum=1, integer=True)
        check_number("width", width, minimum=2, integer=True)
        if any(side % stride for side in sides):
            raise OptionError(
                f"stride={stride} is not allowed: it must divide the patch of {sides[0]} x {sides[1]} pixels"
            )
        left = (sides[0] // stride, sides[1] // stride)
        super().__init__(
            *(nn.Conv2d(channels, width, 7, stride, 3, bias=False), IBN(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), IBN(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            nn.Conv2d(width, dim, left, left),
        )


def replace_patch_embed(vit: nn.Module, outputs: int | None = None, width: int = 64, stride: int = 2) -> nn.Module:
    """Replace the patch embedding's convolution of a vision transformer in place by a `ConvStem` of as many tokens.

    For timm's vision transformers and whatever else keeps it in `patch_embed.proj`. Sizes, positions and the rest of
    the network stay. Its weights are new: for networks that are trained from scratch.

    Args:
        vit: the network.
        outputs: number of classes, which the stem does not depend on; recipes name it to all surgery.
        width: channels inside the stem.
        stride: of its first convolution.

    Returns:
        The network.

    Raises:
        UserError: if it has no such convolution.
        OptionError: if an option is out of range.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), depth=1, num_classes=5)
    >>> replace_patch_embed(vit)(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 5])
    """
    embed: Any = getattr(vit, "patch_embed", None)
    old = getattr(embed, "proj", None)
    if not isinstance(old, nn.Conv2d) or old.kernel_size != old.stride:
        raise UserError(
            f"{type(vit).__name__} has no convolution patch_embed.proj that cuts images into patches; give a vision "
            "transformer such as timm:vit_tiny_patch16_224"
        )
    patch = (old.kernel_size[0], old.kernel_size[1])
    embed.proj = ConvStem(old.out_channels, patch, old.in_channels, width, stride)
    return vit
