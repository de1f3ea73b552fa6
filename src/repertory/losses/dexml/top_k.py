"""A differentiable top-k, and the loss of not having the right labels in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number
from repertory.losses.dexml.positives import Positives
from repertory.losses.dexml.scores import LossOnScores


def soft_top_k(
    scores: Tensor,
    k: int | Tensor,
    alpha: float = 2.0,
    *,
    log: bool = False,
    ignored: Tensor | None = None,
    iterations: int = 32,
) -> Tensor:
    r"""Return how much each entry belongs to the k largest of its row: numbers in (0, 1) that add up to k.

    $m_j = \sigma(\alpha (s_j + t))$ with the one t for which $\sum_j m_j = k$, found by halving an interval. The
    gradient is the exact one, through t as a function of the scores:
    $\partial m_i / \partial s_j = v_i (\delta_{ij} - v_j / \sum_l v_l)$ with $v = \alpha m (1 - m)$. It can be
    differentiated once.

    Args:
        scores: `(batch, labels)`.
        k: above 0 and below the number of labels; one for all, or `(batch,)`.
        alpha: sharpness; towards infinity the result is 1 for the k largest, else 0.
        log: return the logarithms, which do not underflow.
        ignored: entries that take no part `(batch, labels)` bool; they belong 0 (their logarithm is -inf).
        iterations: how often the interval is halved.

    Returns:
        `(batch, labels)`, float32 or wider.

    Raises:
        OptionError: if an option is outside its range.

    >>> soft_top_k(torch.tensor([[3.0, 1.0, -1.0]]), k=1)
    tensor([[0.8796, 0.1180, 0.0024]])
    """
    check_number("alpha", alpha, above=0)
    check_number("iterations", iterations, minimum=1, integer=True)
    check_choice("log", log, (True, False))
    if scores.ndim != 2:
        raise OptionError(f"scores of shape {tuple(scores.shape)} are not allowed: they must be (batch, labels)")
    wide = torch.promote_types(scores.dtype, torch.float32)
    scaled = scores.to(wide) * alpha
    if isinstance(k, Tensor):
        wanted = k[:, None].to(wide)
    else:
        check_number("k", k, minimum=1, below=scores.shape[1], integer=True)
        wanted = scaled.new_full((), k)
    shifted = scaled + _offset(scaled, wanted, ignored, iterations)
    if ignored is not None:
        shifted = shifted.masked_fill(ignored, -torch.inf)
    return nn.functional.logsigmoid(shifted) if log else shifted.sigmoid()


def _offset(scaled: Tensor, k: Tensor, ignored: Tensor | None, iterations: int) -> Tensor:
    """Solve for `alpha * t`, `(batch, 1)`, with the gradient that the implicit function has."""
    if ignored is not None:
        scaled = scaled.masked_fill(ignored, -torch.inf)
    with torch.no_grad():
        smallest = scaled if ignored is None else scaled.masked_fill(ignored, torch.inf)
        # At these ends all memberships lie near 0 and near 1, for as many labels as there are.
        room = 10 + torch.log(torch.tensor(float(scaled.shape[1]), dtype=scaled.dtype, device=scaled.device))
        low = -scaled.amax(1, keepdim=True) - room
        high = -smallest.amin(1, keepdim=True) + room
        for _ in range(iterations):
            middle = (low + high) / 2
            few = (scaled + middle).sigmoid_().sum(1, keepdim=True) < k
            low, high = torch.where(few, middle, low), torch.where(few, high, middle)
        found = (low + high) / 2
    # A step of Newton's method, which has the derivative of the implicit function. Its value takes away what the
    # halving left; where everything is saturated it says nothing, and must stay inside the interval.
    members = (scaled + found).sigmoid()
    slope = (members * (1 - members)).sum(1, keepdim=True).detach().clamp(min=torch.finfo(scaled.dtype).tiny)
    total = members.sum(1, keepdim=True)
    left = ((total.detach() - k) / slope).clamp(low - high, high - low)
    return found - left - (total - total.detach()) / slope


def top_k_values(scores: Tensor, found: Positives, k: int | str, alpha: float, ignored: Tensor | None,
                 weighted: bool, iterations: int = 32) -> Tensor:  # fmt: skip
    """Return the mean negative logarithm of how much each right label belongs to the k largest, `(batch,)`.

    Args:
        scores: `(batch, labels)`.
        found: the right labels; those not in use take no part.
        k: a number, or "positives" for the sum of a query's relevances, rounded up.
        alpha: sharpness.
        ignored: labels that take no part `(batch, labels)` bool.
        weighted: multiply by the relevances.
        iterations: how often the interval of the threshold is halved.

    Raises:
        OptionError: if `k` is not below the number of labels.
    """
    if k == "positives":
        wanted = found.relevance.sum(1).ceil()
    else:
        check_number("k", k, minimum=1, below=scores.shape[1], integer=True)
        wanted = scores.new_full((len(scores),), float(k))
    others = scores.shape[1] - (0 if ignored is None else ignored.sum(1))
    everything = wanted >= others
    # Of a row in which everything is shown, or nothing is right, there is no such threshold.
    wanted = wanted.clamp(max=others - 1).clamp(min=1)
    scaled = scores * alpha
    chosen = found.of(scaled) + _offset(scaled, wanted[:, None], ignored, iterations)
    return found.mean(-nn.functional.logsigmoid(chosen), weighted).masked_fill(everything, 0.0)


def check_k(k: object) -> None:
    """Check that `k` is a whole number above 0, or "positives".

    Raises:
        OptionError: if it is not.
    """
    if isinstance(k, str):
        check_choice("k", k, ("positives",))
    else:
        check_number("k", k, minimum=1, integer=True)


class SoftTopKLoss(LossOnScores):
    """How far the right labels are from being among the k with the largest scores.

    Where all labels that take part are among the k, the loss is 0.

    Args:
        k: how many are shown. "positives" takes as many as the query has right labels (the sum of its relevances,
            rounded up).
        alpha: sharpness of the top-k.
        temperature: divides the scores.
        weighted: multiply the loss of each right label by its relevance.
        sample: right labels to draw a query, in proportion to relevance; the others then take no part. None takes all.
        seed: of the draws.
        iterations: how often the interval of the threshold is halved.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range; in use, if `k` is not below the number of labels.
        DataError: in use, if scores and targets do not match.

    >>> criterion = SoftTopKLoss(k=1, temperature=1.0)
    >>> criterion(torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0]))
    tensor(0.1283)

    Notes:
        With a number for `k` the authors' code draws as many right labels wherever a query may have more, since more
        cannot all be shown: give `sample=k` for that.

    Reference: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, https://arxiv.org/abs/2310.10636.
    """

    def __init__(
        self,
        k: int | str = 5,
        alpha: float = 2.0,
        temperature: float = 0.05,
        weighted: bool = False,
        sample: int | None = None,
        seed: int = 0,
        iterations: int = 32,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, weighted, sample, seed, reduction)
        check_k(k)
        check_number("alpha", alpha, above=0)
        check_number("iterations", iterations, minimum=1, integer=True)
        self.k = k
        self.alpha = alpha
        self.iterations = iterations

    def per_query(self, scores: Tensor, found: Positives) -> Tensor:
        """Return each query's loss `(batch,)`."""
        ignored = None if self.sample is None else found.unused()
        return top_k_values(scores, found, self.k, self.alpha, ignored, self.weighted, self.iterations)
