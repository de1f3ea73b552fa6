"""How good a ranking of labels is: precision, recall, nDCG and propensity-scored precision at k."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, check_number
from repertory.losses.dexml.positives import Positives, positives


def precision_at_k(scores: Tensor, target: Tensor, k: int) -> float:
    """Return the mean share of right labels among the k with the largest scores (P@k).

    Args:
        scores: `(queries, labels)`.
        target: relevances `(queries, labels)`, right where above 0; or lists of right labels `(queries, most)` filled
            up with -1, int64. Queries without a right label are left out, here and in all metrics.
        k: labels shown.

    Raises:
        DataError: if target and scores do not match, or no query has a right label.
        OptionError: if `k` is more than there are labels.

    >>> precision_at_k(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[1, 0, 1]]), k=2)
    0.5
    """
    hits, _, _ = _ranked(scores, target, k)
    return float(hits.double().mean())


def recall_at_k(scores: Tensor, target: Tensor, k: int) -> float:
    """Return the mean share of a query's right labels that are among the k with the largest scores (R@k).

    Args, Raises: as in `precision_at_k`.

    >>> recall_at_k(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[1, 0, 1]]), k=1)
    0.5
    """
    hits, _, found = _ranked(scores, target, k)
    return float((hits.sum(1).double() / found.right.sum(1)).mean())


def ndcg_at_k(scores: Tensor, target: Tensor, k: int) -> float:
    """Return the mean discounted gain of the k with the largest scores, over the largest possible one (nDCG@k).

    Right labels gain 1 whatever their relevance. For gains of different size there is `sklearn.metrics.ndcg_score`.

    Args, Raises: as in `precision_at_k`.

    >>> round(ndcg_at_k(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0, 1, 0]]), k=2), 4)
    0.6309
    """
    hits, _, found = _ranked(scores, target, k)
    discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=hits.device).log2()
    best = discounts.cumsum(0)[found.right.sum(1).clamp(max=k) - 1]
    return float(((hits * discounts).sum(1) / best).mean())


def propensity_precision_at_k(scores: Tensor, target: Tensor, propensities: Tensor, k: int) -> float:
    """Return precision at k in which a right label counts the more, the less often it is annotated (PSP@k).

    Each right label counts one over its propensity; the sum over all queries is divided by the largest possible one.

    Args:
        scores: `(queries, labels)`.
        target: as in `precision_at_k`.
        propensities: of each label `(labels,)`, in (0, 1]; from `label_propensities`.
        k: labels shown.

    Raises:
        DataError: if shapes do not match, or no query has a right label.
        OptionError: if `k` is more than there are labels.

    Reference: Jain, Prabhu, Varma, Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking & Other
    Missing Label Applications, KDD 2016.
    """
    hits, shown, found = _ranked(scores, target, k)
    if propensities.shape != scores.shape[1:]:
        raise DataError(f"propensities {tuple(propensities.shape)} must be one for each of {scores.shape[1]} labels")
    counts = 1 / propensities.double().to(scores.device)
    best = (found.right * counts).topk(k, dim=1).values
    return float((hits * counts[shown]).sum() / best.sum())


def label_propensities(counts: Tensor, examples: int, a: float = 0.55, b: float = 1.5) -> Tensor:
    r"""Return how likely a right label is to be annotated, by how often it is: $1 / (1 + C (n + b)^{-a})$.

    $C = (\log N - 1) (b + 1)^a$ for N training examples.

    Args:
        counts: training examples of each label, `(labels,)`.
        examples: number of training examples.
        a: 0.5 for Wikipedia, 0.6 for Amazon, else 0.55.
        b: 0.4 for Wikipedia, 2.6 for Amazon, else 1.5.

    Returns:
        `(labels,)`, float64.

    >>> label_propensities(torch.tensor([1.0, 100.0]), examples=1000)
    tensor([0.1448, 0.5648], dtype=torch.float64)
    """
    check_number("examples", examples, minimum=3, integer=True)
    check_number("a", a, above=0)
    check_number("b", b, above=0)
    scale = (torch.tensor(float(examples), dtype=torch.float64).log() - 1) * (b + 1) ** a
    return 1 / (1 + scale.to(counts.device) * (counts.double() + b) ** -a)


def _ranked(scores: Tensor, target: Tensor, k: int) -> tuple[Tensor, Tensor, Positives]:
    """Which of the k labels shown are right, which they are, and all right ones, of queries that have any."""
    check_number("k", k, minimum=1, maximum=scores.shape[-1], integer=True)
    right = positives(scores, target).right
    asked = right.any(1)
    if not bool(asked.any()):
        raise DataError("no query has a right label; give targets with some above 0")
    shown = scores[asked].topk(k, dim=1).indices
    return right[asked].gather(1, shown), shown, Positives(right[asked].to(scores.dtype), right[asked])
