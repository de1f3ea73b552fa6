"""A loss that makes features of the object alike, and unlike those of the background."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.core.state import State
from repertory.curation.simple_propagation.initial import FOREGROUND
from repertory.curation.simple_propagation.pixels import PixelTerm, at_pixels, drawn
from repertory.errors import DataError, check_number
from repertory.layers.embedding import unit_rows


def pair_contrast(foreground: Tensor, background: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Return the binary cross-entropy of whether two pixels both belong to the object, over pairs with one that does.

    With q = sigmoid(cos / temperature) it is the mean of -log q over all pairs of the object's pixels and of
    -log(1 - q) over all pairs of one of the object and one of the background; pairs of the background do not count.

    Args:
        foreground: features of the object's pixels `(n, dim)`.
        background: features of the background's `(m, dim)`.
        temperature: divides the cosines.

    Returns:
        0-d, in float32 or wider, also under autocast; 0 where there is no pair. A zero vector has the cosine 0 with
        every other.

    Raises:
        DataError: if the features differ in size.

    >>> alike = torch.ones(2, 3)
    >>> round(float(pair_contrast(alike, alike)), 4)
    8.0
    """
    check_number("temperature", temperature, above=0)
    if foreground.ndim != 2 or background.ndim != 2 or foreground.shape[1] != background.shape[1]:
        raise DataError(
            f"foreground {tuple(foreground.shape)} and background {tuple(background.shape)} must be (pixels, dim) with "
            "the same dim"
        )
    with torch.autocast(foreground.device.type, enabled=False):
        own, other = unit_rows(foreground), unit_rows(background)
        first, second = torch.triu_indices(len(own), len(own), 1, device=own.device)
        # -log sigmoid(s) is softplus(-s), which is finite at any temperature.
        alike = F.softplus(-(own @ own.T)[first, second] / temperature)
        unlike = F.softplus(own @ other.T / temperature)
        return (alike.sum() + unlike.sum()) / max(1, alike.numel() + unlike.numel())


class PairContrast(PixelTerm):
    """Add the contrast of pixels to the loss of a network that segments.

    The features are what enters the network's last convolution. Of all labelled pixels of the batch, up to `n` of the
    object and `n` of the background are drawn. With several processes each compares the pixels of its own images.

    Args:
        n: pixels drawn of the object, and of the background.
        temperature: divides the cosines.
        weight: of the contrast beside the loss; 0 is the baseline.

    Raises:
        OptionError: if an option is out of range.

    >>> from repertory import Step
    >>> from repertory.losses import PixelCrossEntropyLoss
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, PixelCrossEntropyLoss(), methods=[PairContrast()])
    >>> mask = torch.zeros(3, 8, 8, dtype=torch.int64)
    >>> mask[:, 2:5], mask[:, 5] = 1, 255
    >>> step({"input": torch.randn(3, 1, 8, 8), "target": mask}).isfinite()
    tensor(True)

    Notes:
        The authors' code marks pairs by their place among 100 and 100 drawn pixels, which holds only if there are as
        many; here it goes by the pixels there are.

    Reference: Zhong, Wang, https://arxiv.org/abs/2306.16714.
    """

    slug = "pair-contrast"

    def __init__(self, n: int = 100, temperature: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(n, weight)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature

    def term(self, state: State, maps: Tensor, generator: torch.Generator) -> Tensor:
        """Return the contrast of drawn pixels of the object and of the background."""
        target = state.batch["target"]
        chosen = [at_pixels(maps, drawn(target == label, self.n, generator)) for label in (FOREGROUND, 0)]
        return pair_contrast(chosen[0], chosen[1], self.temperature)
