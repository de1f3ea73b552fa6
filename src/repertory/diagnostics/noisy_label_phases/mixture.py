"""Which labels look wrong: two groups of examples by how much the network prefers another class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, check_choice, check_number

_ROUNDS = 100
_CLIPPED = 0.01
"""Share of the values that are brought in at either end, so that a few extremes are no group of their own."""
_NARROWEST = 0.01
"""Smallest standard deviation of a group, as a share of the range: a group of equal values is still a group."""
_APART = 1.0
"""Separation from which two groups are two: equal normal densities then have two peaks."""
_LEAN = 0.25
"""How far the wrong ones must lie on their side of zero, as a share of the distance of the others on theirs. Theory has
both at the same distance; a group of examples that are not learnt yet lies at zero."""


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how much the best other class is preferred to the label; above zero the network would say another one.

    Args:
        logits: `(examples, classes)`.
        targets: labels `(examples,)`, int64.

    Returns:
        `(examples,)`.

    Raises:
        DataError: if labels are not classes, or there are not as many as logits.

    >>> margins(torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([1]))
    tensor([1.5000])
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise DataError(
            f"logits {tuple(logits.shape)} and labels {tuple(targets.shape)} ({targets.dtype}) must be "
            "(examples, classes) and one class an example, int64"
        )
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]):
        raise DataError(f"labels must lie from 0 to {logits.shape[1] - 1}, one for each logit of the network")
    own = functional.one_hot(targets, logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(1) - logits[own]


@dataclass(frozen=True)
class TwoGroups:
    """Two normal distributions that values come from, that of the lower mean first.

    Args:
        weights: shares of the groups `(2,)`.
        means: their means `(2,)`, ascending.
        deviations: their standard deviations `(2,)`.
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    @property
    def separation(self) -> float:
        """Distance of the means over the sum of the standard deviations."""
        return float((self.means[1] - self.means[0]) / self.deviations.sum())

    @property
    def wrong_apart(self) -> bool:
        """Whether the groups, of margins, are one of right labels and one of wrong ones."""
        low, high = self.means.tolist()
        return self.separation > _APART and low < 0 < high and high >= _LEAN * -low

    def upper(self, values: Tensor) -> Tensor:
        """Return the probability of each value to be of the upper group; beyond the means it stays as it is there."""
        return _shares(values.double().clamp(*self.means.tolist()), self.weights, self.means, self.deviations)[:, 1]


def two_groups(values: Tensor) -> TwoGroups:
    """Fit two normal distributions by expectation maximisation, in float64 and without chance.

    Args:
        values: `(examples,)`; the outermost hundredth at either end counts as no further out.

    Raises:
        DataError: if there are fewer than two values, or one is not finite.

    >>> values = torch.cat([torch.linspace(-2.1, -1.9, 70), torch.linspace(0.9, 1.1, 30)])
    >>> [round(mean, 2) for mean in two_groups(values).means.tolist()]
    [-2.0, 1.0]
    """
    if values.ndim != 1 or len(values) < 2 or not bool(values.isfinite().all()):
        raise DataError(
            f"two groups need at least 2 finite values in one row, not {tuple(values.shape)} with "
            f"{int((~values.isfinite()).sum())} that are not finite"
        )
    exact = values.double().sort().values
    cut = int(_CLIPPED * len(exact))
    exact = exact.clamp(exact[cut], exact[-1 - cut])
    narrowest = (_NARROWEST * (exact[-1] - exact[0])).clamp_min(1e-12)
    means = exact[[len(exact) // 10, len(exact) - 1 - len(exact) // 10]]
    deviations = (exact.std(correction=0) / 2).clamp_min(narrowest).expand(2)
    weights = torch.full_like(means, 0.5)
    for _ in range(_ROUNDS):
        shares = _shares(exact, weights, means, deviations)
        sizes = shares.sum(0).clamp_min(1e-9)
        weights, means = sizes / len(exact), (shares * exact[:, None]).sum(0) / sizes
        spread = (shares * (exact[:, None] - means).square()).sum(0) / sizes
        deviations = torch.maximum(spread.sqrt(), narrowest)
    order = means.argsort()
    return TwoGroups(weights[order], means[order], deviations[order])


def estimate_noise_rate(values: Tensor) -> float:
    """Return the share of labels that look wrong, 0 where no group of them stands apart.

    Args:
        values: margins of the examples `(examples,)`, best at the end of phase one.

    >>> right, wrong = torch.linspace(-3.0, -1.0, 80), torch.linspace(1.0, 3.0, 20)
    >>> round(estimate_noise_rate(torch.cat([right, wrong])), 2), estimate_noise_rate(right)
    (0.2, 0.0)
    """
    groups = two_groups(values)
    return float(groups.weights[1]) if groups.wrong_apart else 0.0


def noise_scores(values: Tensor) -> Tensor:
    """Return how likely each label is wrong: the probability of the upper group, averaged over runs.

    Args:
        values: margins `(examples,)`, or of several runs `(runs, examples)`, each at the end of its phase one.

    Returns:
        `(examples,)` in [0, 1], float32. Where no group stands apart they are still an order, but no probabilities.
    """
    runs = values[None] if values.ndim == 1 else values
    return torch.stack([two_groups(run).upper(run) for run in runs]).mean(0).float()


def first_step_margin(rate: float, classes: int, lr: float = 1.0, kind: str = "symmetric") -> float:
    r"""Return how much the true class leads after the first full step of gradient descent on the simplest model.

    For softmax regression from zero weights on balanced classes with orthonormal means and no noise in the inputs it is
    $\frac{\eta}{K} (1 - \rho - \frac{\rho}{K - 1})$ where each wrong class is as likely, and
    $\frac{\eta}{K} (1 - 2\rho)$, over the class it is taken for, where there is one such class. It is also how much
    larger the loss of a wrong label is than that of a right one.

    Args:
        rate: share of wrong labels of each class, in [0, 1].
        classes: number of classes, from 2 on.
        lr: learning rate.
        kind: "symmetric" or "pair".

    >>> round(first_step_margin(0.5, 10), 5), first_step_margin(0.5, 10, kind="pair")
    (0.04444, 0.0)
    """
    check_number("rate", rate, minimum=0, maximum=1)
    check_number("classes", classes, minimum=2, integer=True)
    check_choice("kind", kind, ("symmetric", "pair"))
    return lr / classes * (1 - rate - (rate if kind == "pair" else rate / (classes - 1)))


def _shares(values: Tensor, weights: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    logs = weights.log() - deviations.log() - ((values[:, None] - means) / deviations).square() / 2
    return logs.softmax(1)
