"""What is learnt from a crop: its region by the teacher's confidence, its label, and mixtures within an image."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import OptionError, check_number

DROPPED, HARD, IMPORTANT = 0, 1, 2


def regions(confidence: Tensor, low: float = 0.15, middle: float = 0.3, top: float = 0.95) -> Tensor:
    """Sort crops by how sure the teacher is of them.

    Args:
        confidence: the teacher's, `(...)`.
        low: below it a crop shows nothing of its class (T_L).
        middle: below it a crop shows only the surroundings of its class (T_M).
        top: above it a crop is trivial (T_T).

    Returns:
        `(...)` int64: 0 dropped, 1 hard, 2 important.

    >>> regions(torch.tensor([0.1, 0.2, 0.5, 0.96])).tolist()
    [0, 1, 2, 0]
    """
    region = torch.where(confidence < middle, HARD, IMPORTANT)
    return region.masked_fill((confidence < low) | (confidence > top), DROPPED)


def calibrated(soft: Tensor, target: Tensor, trusted: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the labels of crops: the teacher's where it is trusted, else the smoothed true class.

    Args:
        soft: the teacher's probabilities `(..., classes)`.
        target: true classes `(...)`, int64.
        trusted: whether the teacher is sure enough, `(...)` bool.
        smoothing: what the other classes get together (epsilon), in [0, 1].

    Returns:
        `(..., classes)`, each with a sum of 1.

    Raises:
        OptionError: if `smoothing` is out of range, or a target is no class of the labels.

    >>> soft = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]])
    >>> calibrated(soft, torch.tensor([2]), torch.tensor([False]))
    tensor([[0.0250, 0.0250, 0.9000, 0.0250, 0.0250]])
    """
    check_number("smoothing", smoothing, minimum=0, maximum=1)
    classes = soft.shape[-1]
    if target.numel() and (int(target.min()) < 0 or int(target.max()) >= classes):
        raise OptionError(
            f"target holds classes from {int(target.min())} to {int(target.max())}, but the labels have {classes}; "
            f"give 0 to {classes - 1}"
        )
    smoothed = torch.full_like(soft, smoothing / (classes - 1)).scatter_(-1, target[..., None], 1 - smoothing)
    return torch.where(trusted[..., None], soft, smoothed)


def selfmix(
    crops: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    images: int | None = None,
    own: slice | None = None,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
) -> tuple[Tensor, Tensor]:
    r"""Mix crops with others of the same image, by mixup or by pasting a box.

    One draw of operation, share and box serves the whole batch; each image has a permutation of its crops.

    Args:
        crops: `(images, crops, channels, height, width)`.
        labels: `(images, crops, classes)`.
        generator: CPU generator of the draws.
        images: images for which permutations are drawn, where those given are only some of them; None for all.
        own: which of these the given ones are.
        mixup: parameter of the beta distribution of mixup's share.
        cutmix: parameter of that of the share which a pasted box leaves.
        switch: probability of pasting a box.

    Returns:
        Mixed crops and labels, shaped as given. The label of a crop with a box is mixed by the exact share of pixels.
    """
    count, each = labels.shape[:2]
    pasting = float(torch.rand((), generator=generator)) < switch
    share = beta(cutmix if pasting else mixup, generator)
    keys = torch.rand(count if images is None else images, each, generator=generator)
    order = keys[slice(None) if own is None else own].argsort(1).to(crops.device)
    rows = torch.arange(count, device=crops.device)[:, None]
    if not pasting:
        return share * crops + (1 - share) * crops[rows, order], share * labels + (1 - share) * labels[rows, order]
    height, width = crops.shape[3:]
    down, across, pixels = box(height, width, share, generator)
    mixed = crops.clone()
    mixed[..., down, across] = crops[..., down, across][rows, order]
    share = 1 - pixels / (height * width)
    return mixed, share * labels + (1 - share) * labels[rows, order]


def box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[slice, slice, int]:
    r"""Draw the box that is pasted in: its rows, its columns and its pixels.

    Its sides are those of the image times $\sqrt{1 - \mathrm{share}}$, its centre is anywhere, and what lies outside
    is cut off.
    """
    side = (1 - share) ** 0.5
    spans = []
    for size in (height, width):
        half, centre = int(size * side) // 2, int(torch.randint(size, (), generator=generator))
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    down, across = spans
    return down, across, (down.stop - down.start) * (across.stop - across.start)


def beta(parameter: float, generator: torch.Generator) -> float:
    """Draw from the symmetric beta distribution, which torch has no generator for."""
    import numpy as np

    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(parameter, parameter))
