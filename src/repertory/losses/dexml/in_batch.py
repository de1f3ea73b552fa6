"""DEXML's losses on the embeddings of a batch, where the other examples of a class are what is right."""

from __future__ import annotations

from torch import Tensor

from repertory.errors import check_choice, check_number
from repertory.losses.dexml.decoupled import decoupled_softmax
from repertory.losses.dexml.positives import positives
from repertory.losses.dexml.top_k import check_k, top_k_values
from repertory.losses.in_batch import InBatchLoss

LOSSES = ("decoupled", "top-k")


class DEXMLLoss(InBatchLoss):
    """Find the other examples of each example's class in the batch, without making them compete with each other.

    The others of the batch are the labels: those of the same class are right, all others wrong. An example without
    another one of its class counts 0. Over several processes the batch is that of all of them together. Computed in
    float32 or wider, also under autocast.

    Args:
        loss: "decoupled" (decoupled softmax), or "top-k" (soft top-k).
        temperature: divides the cosines.
        k: of the top-k: "positives" for as many as there are right ones, or a number below that of the others.
        alpha: sharpness of the top-k.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if embeddings and targets do not match.

    >>> import torch
    >>> import torch
    >>> criterion = DEXMLLoss(temperature=1.0)
    >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> criterion(rows, torch.tensor([0, 0, 1]))  # 2 log(1 + 1/e) / 3
    tensor(0.2088)

    Reference: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, https://arxiv.org/abs/2310.10636.
    """

    def __init__(
        self,
        loss: str = "decoupled",
        temperature: float = 0.05,
        k: int | str = "positives",
        alpha: float = 2.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_choice("loss", loss, LOSSES)
        check_number("temperature", temperature, above=0)
        check_k(k)
        check_number("alpha", alpha, above=0)
        self.loss = loss
        self.temperature = temperature
        self.k = k
        self.alpha = alpha

    def values(self, cosines: Tensor, target: Tensor, labels: Tensor, itself: Tensor) -> Tensor:
        """Return each example's loss `(batch,)`."""
        scores = cosines / self.temperature
        right = (target[:, None] == labels) & ~itself
        if self.loss == "decoupled":
            return decoupled_softmax(scores, right, ignored=itself)
        return top_k_values(scores, positives(scores, right), self.k, self.alpha, itself, weighted=False)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"loss={self.loss!r}, temperature={self.temperature}, reduction={self.reduction!r}"
