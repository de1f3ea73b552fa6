"""How well scores rank examples of one kind above the others."""

from __future__ import annotations

from torch import Tensor

from repertory.errors import DataError


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    r"""Return the area under the ROC curve: how often a positive scores above a negative, ties counting one half.

    With the ranks $r_i$ of all scores, ties sharing their mean rank, and $m$ positives among $n$,
    $\bigl(\sum_{i\,\mathrm{positive}} r_i - m(m+1)/2\bigr) / (m(n-m))$.

    Args:
        scores: `(examples,)`.
        positive: which are positive `(examples,)`, bool, or 0 and 1.

    Raises:
        DataError: if shapes differ, a score is not a number, or one of the two kinds is missing.

    >>> import torch
    >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise DataError(
            f"scores {tuple(scores.shape)} and positive {tuple(positive.shape)} must be of one length; give one of "
            "each an example"
        )
    if bool(scores.isnan().any()):
        raise DataError(f"{int(scores.isnan().sum())} scores are not numbers; leave these examples out")
    positive = positive.bool()
    count = int(positive.sum())
    if not 0 < count < len(positive):
        raise DataError(f"{count} of {len(positive)} examples are positive; some of both kinds are needed")
    _, place, times = scores.unique(return_inverse=True, return_counts=True)
    ranks = times.cumsum(0).double() - (times.double() - 1) / 2
    above = float(ranks[place[positive]].sum()) - count * (count + 1) / 2
    return above / (count * (len(positive) - count))
