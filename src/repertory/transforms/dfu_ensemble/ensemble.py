"""Several classifiers as one: the mean of their probabilities, with equal or fitted weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from repertory.errors import DataError


class Ensemble(nn.Module):
    """A module whose logits are the logarithm of the members' mean probabilities.

    So softmax gives the mean, cross-entropy its likelihood, and whatever takes a classifier takes the ensemble. The
    mean of logits would be another classifier, in which one very sure member outvotes the rest.

    Args:
        members: modules from inputs to logits `(batch, classes)`.
        weights: of each member, from 0 on, scaled to sum 1; None for equal ones.

    Raises:
        DataError: if there is no member, or the weights are no weights.

    Shape:
        What the members take; gives `(batch, classes)`, float32 or wider.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> pair, x = Ensemble([first, second]), torch.ones(1, 2)
    >>> mean = (first(x).softmax(1) + second(x).softmax(1)) / 2
    >>> torch.allclose(pair(x).softmax(1), mean)
    True
    """

    weights: Tensor

    def __init__(self, members: Iterable[nn.Module], weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        count = len(self.members)
        if not count:
            raise DataError("members is empty; an ensemble needs at least one")
        self.register_buffer("weights", _weights(weights, count))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithm of the members' weighted mean probabilities `(batch, classes)`."""
        outputs = [member(inputs) for member in self.members]
        # In float32 or wider: the mean of small probabilities vanishes in half precision.
        logs = torch.stack([each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(1) for each in outputs])
        return (logs + self.weights.to(logs).log()[:, None, None]).logsumexp(0)


def mean_probabilities(probabilities: Sequence[Tensor] | Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the members' probabilities.

    Args:
        probabilities: of each member `(members, examples, classes)`.
        weights: `(members,)` as of `Ensemble`; None for equal ones.

    Returns:
        `(examples, classes)`.

    >>> mean_probabilities(torch.tensor([[[0.6, 0.4]], [[0.2, 0.8]]]))
    tensor([[0.4000, 0.6000]])
    """
    stacked = probabilities if isinstance(probabilities, Tensor) else torch.stack(list(probabilities))
    return torch.tensordot(_weights(weights, len(stacked)).to(stacked), stacked, 1)


def fit_weights(probabilities: Sequence[Tensor] | Tensor, targets: Tensor) -> Tensor:
    """Return the weights of the members whose mean is nearest to the labels: non-negative least squares, sum 1.

    Args:
        probabilities: of each member on held-out examples `(members, examples, classes)`.
        targets: their classes `(examples,)`, int64.

    Returns:
        `(members,)` float32.

    Raises:
        DataError: if probabilities and targets do not go together.

    >>> right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> fit_weights([wrong, right], torch.tensor([0]))
    tensor([0., 1.])
    """
    from scipy.optimize import nnls

    stacked = probabilities if isinstance(probabilities, Tensor) else torch.stack(list(probabilities))
    if stacked.ndim != 3 or targets.shape != stacked.shape[1:2] or not len(targets):
        raise DataError(
            f"probabilities {tuple(stacked.shape)} and targets {tuple(targets.shape)} must be (members, n, classes) "
            "and (n,)"
        )
    wanted = nn.functional.one_hot(targets, stacked.shape[2]).double().flatten()
    found, _ = nnls(stacked.double().flatten(1).T.numpy(), wanted.numpy())
    weights = torch.from_numpy(found)
    # All are zero where every member gives probability 0 to every label.
    return _weights(weights if float(weights.sum()) > 0 else None, len(stacked))


def _weights(given: Sequence[float] | Tensor | None, count: int) -> Tensor:
    if given is None:
        return torch.full((count,), 1 / count)
    weights = torch.as_tensor(given, dtype=torch.float32)
    total = float(weights.sum()) if weights.shape == (count,) else math.nan
    if not math.isfinite(total) or total <= 0 or bool((weights < 0).any()):
        raise DataError(
            f"weights={weights.tolist()} are not allowed: give {count} finite numbers from 0 on, not all of them 0"
        )
    return weights / total
