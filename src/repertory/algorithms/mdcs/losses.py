"""The two losses of the experts: each on its own view of the class frequencies, and each from its own weak view."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.core.consistency import wide
from repertory.core.distributed import sum_over_processes, world_size
from repertory.errors import DataError
from repertory.losses.balanced_softmax import log_counts


def expert_adjustments(class_counts: Tensor | Sequence[int], lambdas: Sequence[float]) -> Tensor:
    """Return what is added to the experts' logits in training, `(experts, 1, classes)`, float32 or wider.

    Args:
        class_counts: training examples of each class `(classes,)`.
        lambdas: factor of each expert on the logarithm of the counts.

    Raises:
        OptionError: if the counts are not allowed.

    >>> expert_adjustments([100, 1], [-0.5, 1.0])
    tensor([[[-2.3026, -0.0000]],
    <BLANKLINE>
            [[ 4.6052,  0.0000]]])
    """
    logarithms = log_counts(class_counts)
    return torch.tensor(list(lambdas)).to(logarithms)[:, None, None] * logarithms


def diversity_loss(
    adjusted: Tensor, target: Tensor, criterion: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Return the sum of the experts' losses on their adjusted logits: `(batch,)`, or 0-d where the criterion's is.

    Args:
        adjusted: logits of each expert with its adjustment `(experts, batch, classes)`.
        target: classes `(batch,)`, int64.
        criterion: the loss on logits `(rows, classes)` and classes `(rows,)`; cross-entropy by default.

    Raises:
        DataError: if there is not one class for each row.

    >>> zero = torch.zeros(3, 1, 2) + expert_adjustments([100, 10], [-0.5, 1.0, 2.5])
    >>> diversity_loss(zero, torch.tensor([1])).round(decimals=2)  # 0.27 + 2.40 + 5.76
    tensor([8.4300])
    """
    experts, size = adjusted.shape[:2]
    if target.shape != (size,):
        raise DataError(
            f"logits {tuple(adjusted.shape)} and classes {tuple(target.shape)} must be (experts, batch, classes) and "
            "(batch,)"
        )
    rows, classes = wide(adjusted).flatten(0, 1), target.repeat(experts)
    values = F.cross_entropy(rows, classes, reduction="none") if criterion is None else criterion(rows, classes)
    return values.unflatten(0, (experts, size)).sum(0) if values.ndim else experts * values


def consistency_loss(weak: Tensor, strong: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Return how far each expert's answer to the strong views is from its own to the weak ones, summed over experts.

    An expert learns from the weak views that it recognises, and its divergence is the mean over those, of all
    processes together; 0 where it recognises none. With micro-batches it is the mean within one.

    Args:
        weak: adjusted logits of the weak views `(experts, batch, classes)`; no gradient flows to them.
        strong: those of the strong views of the same examples.
        target: classes `(batch,)`, int64.
        temperature: of both softmaxes; the divergence is multiplied by its square.

    Returns:
        0-d, float32 or wider.

    Raises:
        DataError: if shapes do not belong together.

    >>> weak = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]])
    >>> consistency_loss(weak, torch.zeros(1, 2, 2), torch.tensor([0, 1]))  # the second is not recognised
    tensor(0.3278)
    """
    if weak.shape != strong.shape or weak.ndim != 3 or target.shape != weak.shape[1:2]:
        raise DataError(
            f"weak {tuple(weak.shape)}, strong {tuple(strong.shape)} and classes {tuple(target.shape)} must be twice "
            "(experts, batch, classes), and (batch,)"
        )
    weak = wide(weak.detach())
    right = weak.argmax(-1) == target
    teacher, student = (weak / temperature).log_softmax(-1), (wide(strong) / temperature).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    count = sum_over_processes(right.sum(1)) / world_size()
    return temperature**2 * ((divergence * right).sum(1) / count.clamp(min=1 / world_size())).sum()
