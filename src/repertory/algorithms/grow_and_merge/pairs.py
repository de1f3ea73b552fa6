"""Which examples without a label are taken for the same class, and the loss that makes a head agree with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.core.consistency import wide
from repertory.core.distributed import gather_with_gradient, sum_over_processes, world_size
from repertory.errors import DataError, OptionError, check_number

_EPSILON = 1e-7
"""Keeps the logarithm finite, as in AutoNovel's code."""


def top_places(features: Tensor, k: int) -> Tensor:
    """Return where the k largest entries of each row are, ascending; of equal ones the first are taken.

    Args:
        features: `(examples, width)`; no gradient goes to them.
        k: number of entries, from 1 to the width.

    Returns:
        `(examples, k)`, int64.

    Raises:
        DataError: if the features are not rows of numbers.
        OptionError: if k is out of range.

    >>> top_places(torch.tensor([[3.0, 1.0, 2.0]]), 2)
    tensor([[0, 2]])
    """
    if features.ndim != 2:
        raise DataError(f"features of shape {tuple(features.shape)} must be rows (examples, width); flatten them first")
    if not isinstance(k, int) or not 1 <= k <= features.shape[1]:
        raise OptionError(f"k={k} is not from 1 to {features.shape[1]}, the width of the features; choose a smaller k")
    return features.detach().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


def pair_targets(features: Tensor, k: int = 5) -> Tensor:
    """Return which examples have their k largest features in the same places, whatever the order of these.

    Features after a ReLU suit it: the places of the largest ones then say which parts an input shows.

    Args:
        features: `(examples, width)`; no gradient goes to them.
        k: number of places, from 1 to the width.

    Returns:
        `(examples, examples)`, bool; every example is like itself.

    Raises:
        DataError: if the features are not rows of numbers.
        OptionError: if k is out of range.

    >>> pair_targets(torch.tensor([[3.0, 1.0, 2.0], [6.0, 0.0, 5.0], [1.0, 3.0, 2.0]]), k=2).int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)

    Reference: Han et al., Automatically Discovering and Learning New Visual Categories with Ranking Statistics,
    https://arxiv.org/abs/2002.05714.
    """
    places = top_places(features, k)
    return (places[:, None] == places[None]).all(2)


def pair_bce(first: Tensor, second: Tensor, similar: Tensor) -> Tensor:
    r"""Return the binary cross-entropy of every pair's probability to be of one class.

    $$ \ell_{ij} = -s_{ij} \log(p_i^\top p'_j) - (1 - s_{ij}) \log(1 - p_i^\top p'_j) , $$
    with 1e-7 added inside of the logarithms. Computed in float32 or wider, also under autocast.

    Args:
        first: probabilities $p$ of classes `(n, classes)`.
        second: those of other examples, or of other versions of the same, $p'$ `(m, classes)`.
        similar: which pairs are of one class `(n, m)`, bool.

    Returns:
        `(n, m)`, in nats.

    Raises:
        DataError: if the shapes do not match.

    >>> sure = torch.tensor([[1.0, 0.0]])
    >>> pair_bce(sure, sure, torch.tensor([[True]])).abs() < 1e-6, pair_bce(sure, sure, torch.tensor([[False]]))
    (tensor([[True]]), tensor([[16.1181]]))
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(
            f"first {tuple(first.shape)} and second {tuple(second.shape)} must be probabilities of the same classes, "
            "(examples, classes) each"
        )
    if tuple(similar.shape) != (len(first), len(second)):
        raise DataError(f"similar has shape {tuple(similar.shape)}; it must be {(len(first), len(second))}")
    with torch.autocast(first.device.type, enabled=False):
        alike = wide(first) @ wide(second).T
    return -(torch.where(similar, alike, 1 - alike) + _EPSILON).log()


def batch_pair_loss(features: Tensor, first: Tensor, second: Tensor, chosen: Tensor, k: int) -> Tensor:
    """Return the mean of `pair_bce` over all pairs of the chosen examples in the batch, over all processes; 0 of none.

    Args:
        features: of the first versions `(batch, width)`.
        first: probabilities of the first versions `(batch, classes)`.
        second: probabilities of the second versions `(batch, classes)`.
        chosen: which examples count `(batch,)`, bool.
        k: as for `pair_targets`.

    Returns:
        0-d. Of several processes each has its share, so that their mean is that of one with the whole batch.
    """
    places = top_places(features, k)
    if world_size() == 1:
        others, every, counted = places, second, chosen
    else:
        # One exchange for what carries a gradient and what does not.
        packed = gather_with_gradient(torch.cat([wide(second), places.to(wide(second)), chosen[:, None]], 1))
        every, others, counted = packed[:, : second.shape[1]], packed[:, second.shape[1] : -1], packed[:, -1] > 0
    values = pair_bce(first, every, (places[:, None] == others[None]).all(2))
    pairs = chosen[:, None] & counted[None]
    count = counted.sum().clamp(min=1)
    return values.masked_fill(~pairs, 0).sum() * world_size() / count**2


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen examples' values over the batch of all processes; 0 where none is chosen.

    Args:
        values: `(batch,)`.
        chosen: which of them count `(batch,)`, bool.

    Returns:
        0-d. Of several processes each has its share, so that their mean is that of one with the whole batch.
    """
    count = sum_over_processes(chosen.sum()).clamp(min=1)
    return values.masked_fill(~chosen, 0).sum() * world_size() / count


def ramp_up(progress: float, length: float = 0.75) -> float:
    r"""Return $\exp(-5 (1 - \min(t / T, 1))^2)$, which rises from nearly 0 to 1.

    Args:
        progress: share $t$ that is over.
        length: share $T$ by which it is 1; AutoNovel's 150 of 200 epochs, unless given.

    >>> [round(ramp_up(share), 3) for share in (0.0, 0.375, 0.75, 1.0)]
    [0.007, 0.287, 1.0, 1.0]
    """
    check_number("length", length, above=0)
    return math.exp(-5 * (1 - min(progress / length, 1.0)) ** 2)
