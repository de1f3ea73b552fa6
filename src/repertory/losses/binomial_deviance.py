"""The binomial deviance of the pairs of a batch: a smooth hinge on cosines."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from repertory.errors import check_number
from repertory.losses.in_batch import InBatchLoss


class BinomialDevianceLoss(InBatchLoss):
    r"""Raise the cosine of pairs of one class above a threshold, and lower that of other pairs below it.

    With the cosines $s_{ij}$ of the pairs P of one class and N of different classes in the batch,
    $$ L = \frac{1}{|P|} \sum_P \log\big(1 + e^{-\alpha (s_{ij} - \beta)}\big)
         + \frac{1}{|N|} \sum_N \log\big(1 + e^{\alpha c\, (s_{ij} - \beta)}\big) . $$
    A batch without pairs of one kind has no sum over them. Each pair belongs half to either example, so that there is
    one value an example, whose mean is the loss. Over several processes the batch is that of all of them together.
    Computed in float32 or wider, also under autocast.

    Args:
        alpha: how sharp the threshold is.
        beta: the threshold, a cosine.
        negative_cost: how much sharper it is for pairs of different classes (c).
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if embeddings and targets do not match.

    >>> import torch
    >>> loss = BinomialDevianceLoss()
    >>> loss(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]))  # log(1 + 1/e)
    tensor(0.3133)

    Notes:
        The defaults are those of the code released for ECAML.

    Reference: Yi, Lei, Li, Deep Metric Learning for Practical Person Re-Identification,
    https://arxiv.org/abs/1407.4979; with the costs of Opitz et al., BIER, https://arxiv.org/abs/1801.04815.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 0.5, negative_cost: float = 25.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        check_number("alpha", alpha, above=0)
        check_number("beta", beta, minimum=-1, maximum=1)
        check_number("negative_cost", negative_cost, above=0)
        self.alpha = alpha
        self.beta = beta
        self.negative_cost = negative_cost

    def values(self, cosines: Tensor, target: Tensor, labels: Tensor, itself: Tensor) -> Tensor:
        """Return each example's loss `(batch,)`."""
        above = self.alpha * (cosines - self.beta)
        other = target[:, None] != labels
        # Of all ordered pairs, those of other processes included.
        each = labels[:, None] == labels
        different = (~each).sum().clamp(min=1)
        alike = (each.sum() - len(labels)).clamp(min=1)
        positive = functional.softplus(-above).masked_fill(other | itself, 0).sum(1) / alike
        negative = functional.softplus(self.negative_cost * above).masked_fill(~other, 0).sum(1) / different
        return len(labels) * (positive + negative)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"alpha={self.alpha}, beta={self.beta}, negative_cost={self.negative_cost}, reduction={self.reduction!r}"
