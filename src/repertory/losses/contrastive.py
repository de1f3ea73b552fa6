"""The supervised contrastive loss over a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import check_number
from repertory.losses.in_batch import InBatchLoss


class ContrastiveLoss(InBatchLoss):
    r"""Pull the examples of a class together, against all others of the batch (SupCon).

    For an example i with the others A(i) of the batch and those of its class P(i), with cosines $s$:
    $$ \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
       \log \frac{\exp(s_{ip} / \tau)}{\sum_{a \in A(i)} \exp(s_{ia} / \tau)} . $$
    An example without another one of its class in the batch counts 0. Over several processes the batch is that of all
    of them together. Computed in float32 or wider, also under autocast.

    Args:
        temperature: divides the cosines.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if embeddings and targets do not match.

    >>> loss = ContrastiveLoss(temperature=1.0)
    >>> loss(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])) # (2 log(1 + 1/e)) / 3
    tensor(0.2088)

    Reference: Khosla et al., Supervised Contrastive Learning, https://arxiv.org/abs/2004.11362 (the form with the sum
    outside of the logarithm).
    """

    def __init__(self, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("temperature", temperature, above=0)
        self.temperature = temperature

    def values(self, cosines: Tensor, target: Tensor, labels: Tensor, itself: Tensor) -> Tensor:
        """Return each example's loss `(batch,)`."""
        # A finite number, since the gradient of a row of nothing but -inf is NaN.
        logits = (cosines / self.temperature).masked_fill(itself, torch.finfo(cosines.dtype).min / 2)
        positive = (target[:, None] == labels) & ~itself
        shares = logits.log_softmax(1).masked_fill(~positive, 0)
        return -shares.sum(1) / positive.sum(1).clamp(min=1)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
