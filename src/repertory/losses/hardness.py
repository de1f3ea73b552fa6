"""A weighted mean of losses whose weights a head learns: the harder an element is found to be, the more it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.distributed import gather_with_gradient, world_size
from repertory.errors import DataError, check_number

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class HardnessWeighted(NamedTuple):
    """What `hardness_weighted` returns.

    Args:
        task: what each example adds to the weighted loss, `(batch,)`, of which the loss is the mean. Gradient to the
            losses only.
        hardness: what each adds to the loss of the hardness head, `(batch,)`. Gradient to the head only.
        weights: of each element, as the losses; they sum to 1 over the batches of all processes.
    """

    task: Tensor
    hardness: Tensor
    weights: Tensor


def hardness_weighted(
    losses: Tensor, raw: Tensor, valid: Tensor | None = None, eps: float = 0.1, weight: float = 0.01
) -> HardnessWeighted:
    r"""Weight losses by hardness, and let the hardness rise where the losses are above their weighted mean.

    $h = \sigma(g) + \epsilon$ and $H = h / \sum h$ over the whole batch; the loss is $\sum H \ell$ without gradient to
    $H$, and that of the head $-w \sum H \ell$ without gradient to $\ell$. Since weights are bounded by $\epsilon$ and
    $1 + \epsilon$, none is more than $(1 + \epsilon) / \epsilon$ times another one.

    Args:
        losses: of each element, `(batch, ...)`; 0 where there is nothing to learn.
        raw: what the head gives for each, $g$, in the same shape.
        valid: bool, which elements may have a weight; None lets those without a loss share in the sum.
        eps: added to the hardness.
        weight: $w$.

    Returns:
        Values in float32 or wider.

    Raises:
        DataError: if the shapes differ.

    >>> found = hardness_weighted(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 100.0]))
    >>> found.weights.mul(1e4).round(), found.task.mean().mul(1e4).round(), found.hardness.mean().mul(1e6).round()
    (tensor([3529., 6471.]), tensor(16471.), tensor(-16471.))
    """
    if raw.shape != losses.shape or (valid is not None and valid.shape != losses.shape):
        shapes = f"losses {tuple(losses.shape)}, raw {tuple(raw.shape)}"
        shapes += "" if valid is None else f", valid {tuple(valid.shape)}"
        raise DataError(f"{shapes} must have one shape: a hardness for each loss; resize what the head gives")
    # Sums over all pixels of a batch overflow in half precision.
    losses, raw = (value.float() if value.dtype.itemsize < 4 else value for value in (losses, raw))
    hardness = raw.sigmoid() + eps
    if valid is not None:
        hardness = hardness.where(valid, 0.0)
        losses = losses.where(valid, 0.0)
    total = gather_with_gradient(hardness.sum()[None]).sum()
    weights = hardness / total.clamp(min=torch.finfo(hardness.dtype).tiny)
    # Of so many examples each is one, and the mean over them all is the sum of the weighted losses.
    examples, fixed = len(losses) * world_size(), weights.detach()
    task = examples * (fixed * losses).reshape(len(losses), -1).sum(1)
    learnt = examples * (weights * losses.detach()).reshape(len(losses), -1).sum(1)
    return HardnessWeighted(task, -weight * learnt, fixed)


class HardnessWeightedLoss(nn.Module):
    """Losses of pixels, or of any other elements, weighted by a hardness that a head of its own learns.

    The head sees features without passing gradient on to them, and is trained to make the weighted loss large, while
    everything else makes it small. It is needed in training only.

    Args:
        head: gives one number a place for features, `(batch, 1, ...)`, brought to the size of the losses by linear
            interpolation; or one an example, `(batch, 1)` or `(batch,)`.
        eps: added to the hardness, which a sigmoid gives: weights differ by a factor of $(1 + eps) / eps$ at most.
        weight: of the head's own loss.
        count_ignored: let elements without a loss share in the sum that weights are divided by, as the released code
            does. Their hardness falls to the least, and the more there are, the smaller the loss.

    Raises:
        OptionError: if an option is out of range.

    >>> loss = HardnessWeightedLoss(nn.Conv2d(8, 1, 3, padding=1))
    >>> found = loss(torch.zeros(2, 8, 4, 4), torch.ones(2, 16, 16))
    >>> found.weights.shape, round(found.task.mean().item(), 4)
    (torch.Size([2, 16, 16]), 1.0)
    >>> (found.task + found.hardness).mean().backward()
    """

    def __init__(self, head: nn.Module, eps: float = 0.1, weight: float = 0.01, count_ignored: bool = True) -> None:
        super().__init__()
        check_number("eps", eps, above=0)
        check_number("weight", weight, minimum=0)
        self.head = head
        self.eps = eps
        self.weight = weight
        self.count_ignored = count_ignored

    def hardness(self, features: Tensor | Sequence[Tensor], size: Sequence[int] = ()) -> Tensor:
        """Return the head's output before the sigmoid, of the size of the losses; gradient to the head only.

        Args:
            features: what the head takes; a list of maps is handed on as a list.
            size: sizes after the batch that are wanted, `(height, width)` for images.

        Raises:
            DataError: if the head gives more than one number a place.
        """
        alone = features.detach() if isinstance(features, Tensor) else [each.detach() for each in features]
        raw: Tensor = self.head(alone)
        if raw.ndim > 1:
            if raw.shape[1] != 1 or raw.ndim - 2 != len(size):
                raise DataError(
                    f"head gives {tuple(raw.shape)}, but losses of size {tuple(size)} need (batch, 1) and as many "
                    "sizes after it; end it in a layer with one output"
                )
            if size and raw.shape[2:] != tuple(size):
                wide = raw.float() if raw.dtype.itemsize < 4 else raw
                raw = F.interpolate(wide, size=tuple(size), mode=_MODES[len(size)], align_corners=False)
            raw = raw.squeeze(1)
        return raw

    def forward(
        self, features: Tensor | Sequence[Tensor], losses: Tensor, valid: Tensor | None = None
    ) -> HardnessWeighted:
        """Return the weighted losses, those of the head, and the weights.

        Args:
            features: what the head takes, with a row an example.
            losses: `(batch, ...)`, up to three sizes after the batch.
            valid: bool, where there is something to learn; only read with `count_ignored=False`.
        """
        raw = self.hardness(features, losses.shape[1:])
        return hardness_weighted(losses, raw, None if self.count_ignored else valid, self.eps, self.weight)
