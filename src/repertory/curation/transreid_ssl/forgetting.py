"""Catastrophic-forgetting scores: how far each example's embedding moves when a model is adapted to other data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.modes import evaluating
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows

DISTANCES = ("cosine", "euclidean")
"""Distances of unit vectors: one less the cosine, in [0, 2], or the length of the difference, in [0, 2]; both rank
alike."""

Encoder = Callable[[Tensor], Tensor]


def forgetting(before: Tensor, after: Tensor, distance: str = "cosine") -> Tensor:
    """Return the distance of each row before from the same row after, both scaled to length 1.

    Args:
        before: embeddings by the model of the source data `(n, dim)`.
        after: those by the adapted model, which must have started from the first, so that both have the same axes.
        distance: one of `DISTANCES`.

    Returns:
        `(n,)` in float32 or wider, in [0, 2]; low is close to the data that the model was adapted to.

    Raises:
        DataError: if the shapes differ.

    >>> forgetting(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]]))
    tensor([1., 0.])
    """
    check_choice("distance", distance, DISTANCES)
    if before.shape != after.shape or before.ndim != 2:
        raise DataError(f"embeddings before {tuple(before.shape)} and after {tuple(after.shape)} must both be (n, dim)")
    # Half of the squared difference, which is exact where the two are alike.
    half = (unit_rows(before) - unit_rows(after)).square().sum(1) / 2
    return half if distance == "cosine" else (2 * half).sqrt()


def cfs_scores(
    encode_s: Encoder,
    encode_t: Encoder,
    inputs: Tensor | Iterable[Any],
    *,
    distance: str = "cosine",
    chunk: int = 256,
) -> Tensor:
    """Return the catastrophic-forgetting score of each example, `(n,)` on the CPU.

    Encoders that are modules are put into evaluation mode, and back, and both see the very same inputs: score without
    random augmentation.

    Args:
        encode_s: model of the source data, from inputs `(batch, ...)` to embeddings `(batch, dim)`; of the backbone,
            not of the head that self-supervised training had on top.
        encode_t: the same model, trained on for a short while on the target data.
        inputs: source examples `(n, ...)`, or batches of them: tensors, or what holds a tensor first.
        distance: one of `DISTANCES`.
        chunk: examples at a time, of a tensor.

    Raises:
        DataError: if there are no examples, or the encoders' embeddings do not match.

    >>> cfs_scores(torch.nn.Identity(), torch.nn.Flatten(), torch.eye(3))
    tensor([0., 0., 0.])

    Reference: Luo et al., https://arxiv.org/abs/2111.12084.
    """
    check_number("chunk", chunk, minimum=1, integer=True)
    batches = inputs.split(chunk) if isinstance(inputs, Tensor) else map(_first, inputs)
    networks = [encode for encode in (encode_s, encode_t) if isinstance(encode, nn.Module)]
    with evaluating(*networks), torch.no_grad():
        scores = [forgetting(encode_s(batch), encode_t(batch), distance).cpu() for batch in batches]
    if not scores or not len(scores[0]):
        raise DataError("there are no examples to score; give at least one")
    return torch.cat(scores)


def dataset_gap(encode_s: Encoder, encode_t: Encoder, inputs: Tensor | Iterable[Any], **options: Any) -> float:
    """Return how far a whole data set is from the one that the model was adapted to: its mean score.

    Args:
        encode_s: as in `cfs_scores`, like all that follow.
        encode_t: the adapted model.
        inputs: examples of the data set.
        options: `distance` and `chunk`.

    >>> dataset_gap(torch.nn.Identity(), lambda rows: -rows, torch.eye(3))
    2.0
    """
    return float(cfs_scores(encode_s, encode_t, inputs, **options).mean())


def select(scores: Tensor, keep: float = 0.5, largest: bool = False) -> Tensor:
    """Return the rows of the share of examples with the lowest scores, ascending; of equal scores the first rows.

    Args:
        scores: `(n,)`.
        keep: share to keep, rounded down to whole examples but at least one, in (0, 1].
        largest: keep those with the highest scores instead, the farthest from the target.

    Returns:
        `(max(1, floor(keep * n)),)` int64.

    Raises:
        DataError: if a score is not finite, or there is none.

    >>> select(torch.tensor([0.3, 0.1, 0.2, 0.1]), keep=0.75).tolist()
    [1, 2, 3]
    """
    check_number("keep", keep, above=0, maximum=1)
    check_choice("largest", largest, (True, False))
    if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
        raise DataError(f"scores {tuple(scores.shape)} must be (n,), at least one, and finite")
    # A share such as 0.29 of 100 must not lose an example to rounding.
    count = max(1, math.floor(keep * len(scores) + 1e-9))
    order = scores.argsort(descending=largest, stable=True)
    return order[:count].sort().values


def _first(batch: Any) -> Tensor:
    while isinstance(batch, (tuple, list)):
        batch = batch[0]
    return batch["input"] if isinstance(batch, dict) else batch
