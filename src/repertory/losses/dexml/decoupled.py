"""Softmax over labels in which the right labels of a query do not compete with each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.losses.dexml.positives import Positives, positives
from repertory.losses.dexml.scores import LossOnScores


def decoupled_softmax(
    scores: Tensor, target: Tensor, *, ignored: Tensor | None = None, weighted: bool = False
) -> Tensor:
    r"""Return the mean over a query's right labels of the softmax loss against the wrong ones only.

    $-\log \big( e^{s_j} / (e^{s_j} + \sum_{n \notin P} e^{s_n}) \big)$ for each right label j of P.

    Args:
        scores: logits `(batch, labels)`.
        target: as in `positives`.
        ignored: labels that are neither right nor wrong `(batch, labels)` bool; right ones are not affected.
        weighted: multiply the loss of each right label by its relevance.

    Returns:
        `(batch,)`; 0 for a query without a right label, and for one without a wrong label.

    Raises:
        DataError: if target and scores do not match.

    >>> decoupled_softmax(torch.tensor([[4.0, 2.0, 0.0, 0.0, 0.0]]), torch.tensor([[0, 1]]))
    tensor([0.1971])
    """
    return _decoupled(scores, positives(scores, target), ignored, weighted)


def _decoupled(scores: Tensor, found: Positives, ignored: Tensor | None, weighted: bool) -> Tensor:
    left_out = found.right if ignored is None else found.right | ignored
    # A finite number, since the gradient of a row of nothing but -inf is NaN.
    wrong = scores.masked_fill(left_out, torch.finfo(scores.dtype).min / 2).logsumexp(1, keepdim=True)
    return found.mean(nn.functional.softplus(wrong - found.of(scores)), weighted)


class DecoupledSoftmaxLoss(LossOnScores):
    """Decoupled softmax on a table of scores, with any number of right labels a query.

    Args:
        temperature: divides the scores.
        weighted: multiply the loss of each right label by its relevance.
        sample: right labels to draw a query, in proportion to relevance; the others are then neither right nor wrong.
            None takes all.
        seed: of the draws.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if scores and targets do not match.

    >>> criterion = DecoupledSoftmaxLoss(temperature=1.0)
    >>> criterion(torch.tensor([[4.0, 2.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]))
    tensor(0.1971)

    Notes:
        The authors' scripts draw one right label a query and step; on average that is the mean over all of them, which
        is taken here unless `sample=1` is given.

    Reference: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, https://arxiv.org/abs/2310.10636.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        weighted: bool = False,
        sample: int | None = None,
        seed: int = 0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, weighted, sample, seed, reduction)

    def per_query(self, scores: Tensor, found: Positives) -> Tensor:
        """Return each query's loss `(batch,)`."""
        return _decoupled(scores, found, None, self.weighted)
