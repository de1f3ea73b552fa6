"""How alike the images of a batch are: peak signal-to-noise ratios, and a code in [0, 1] made of them."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def psnr_matrix(images: Tensor) -> Tensor:
    r"""Return the peak signal-to-noise ratio of every pair, $-10 \log_{10}(\mathrm{MSE} + 10^{-8})$, in decibel.

    The peak is 1. Differences below the rounding of float32 count as none, so equal images have 80 dB. In float32 or
    wider, without gradient.

    Args:
        images: `(batch, ...)`, of any scale: another one adds a constant.

    Returns:
        `(batch, batch)`, symmetric.

    >>> psnr_matrix(torch.tensor([[0.0, 0.0], [0.1, 0.1]]))[0, 1]
    tensor(20.0000)
    """
    rows = images.detach().flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    with torch.autocast(rows.device.type, enabled=False):
        # The nearer to zero, the less is lost in the difference below.
        rows = rows - rows.mean(0)
        squares = rows.square().sum(1)
        sums = squares[:, None] + squares
        distances = sums - 2 * rows @ rows.T
        distances = distances.masked_fill(distances <= 8 * torch.finfo(rows.dtype).eps * sums, 0.0)
        return -10 * torch.log10((distances + distances.T) / (2 * rows.shape[1]) + _EPSILON)


def relation_codes(images: Tensor) -> Tensor:
    """Return how alike two images of a batch are, from 0 for the least to 1 for the most, and 1 with themselves.

    The scale of the images has no part in it. Where all pairs are equally alike, all codes of pairs are 0.

    Args:
        images: `(batch, ...)`.

    Returns:
        `(batch, batch)`, symmetric, without gradient.

    >>> relation_codes(torch.tensor([[0.0], [0.1], [1.0]]))
    tensor([[1.0000, 1.0000, 0.0000],
            [1.0000, 1.0000, 0.0458],
            [0.0000, 0.0458, 1.0000]])
    """
    ratios = psnr_matrix(images)
    if len(ratios) == 1:
        return torch.ones_like(ratios)
    itself = torch.eye(len(ratios), dtype=torch.bool, device=ratios.device)
    # No pair has a larger ratio than an image with itself.
    least, most = ratios.min(), ratios.masked_fill(itself, -torch.inf).max()
    return ((ratios - least) / (most - least + _EPSILON)).masked_fill(itself, 1.0)
