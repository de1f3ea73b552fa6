"""How new an example looks to a classifier, and where the line is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.core.consistency import wide
from repertory.errors import DataError, check_choice, check_number

SCORES = ("probability", "energy")
"""What novelty is told by: the largest probability, or the energy of the logits."""


def novelty_scores(logits: Tensor, score: str = "probability") -> Tensor:
    r"""Return how new each example looks, higher for newer.

    $1 - \max_k p_k$ ("probability"), or the energy $-\log \sum_k \exp z_k$ ("energy").

    Args:
        logits: of the known classes `(examples, classes)`.
        score: one of `SCORES`.

    Returns:
        `(examples,)`, float32 or wider.

    Raises:
        OptionError: if the score is unknown.

    >>> novelty_scores(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).round(decimals=3)
    tensor([0.5000, 0.0000])
    """
    check_choice("score", score, SCORES)
    return -wide(logits).logsumexp(1) if score == "energy" else 1 - wide(logits).softmax(1).amax(1)


def novelty_threshold(known: Tensor, quantile: float = 0.95) -> Tensor:
    """Return the score above which an example counts as new: one that so large a share of known examples stay below.

    Args:
        known: scores of examples that are known to be of known classes `(n,)`.
        quantile: that share, in (0, 1).

    Returns:
        0-d.

    Raises:
        DataError: if there is no score, or one is not finite.
        OptionError: if the share is out of range.
    """
    check_number("quantile", quantile, above=0, below=1)
    if not len(known) or not bool(known.isfinite().all()):
        raise DataError(f"known has {len(known)} scores; there must be some, all finite, to draw a line by")
    return known.sort().values[min(len(known) - 1, int(quantile * len(known)))]


def novelty_split(scores: Tensor, known: Tensor, quantile: float = 0.95, least: int = 0) -> Tensor:
    """Return which examples are taken for new ones.

    Args:
        scores: of the examples in question `(n,)`, higher for newer.
        known: scores of examples that are known to be of known classes `(m,)`.
        quantile: share of these that stays on the known side, in (0, 1).
        least: how many are taken in any case, the newest first.

    Returns:
        `(n,)`, bool.

    Raises:
        DataError: if there are fewer than `least` examples, or a score is not finite.
        OptionError: if the share is out of range.

    >>> novelty_split(torch.tensor([0.1, 0.9, 0.4]), known=torch.tensor([0.0, 0.1, 0.2, 0.3]), quantile=0.5)
    tensor([False,  True,  True])
    """
    if len(scores) < least:
        raise DataError(f"{len(scores)} examples are fewer than the {least} new classes among them; give more of them")
    if not bool(scores.isfinite().all()):
        raise DataError("a novelty score is not finite; look at the network that gave the logits")
    novel = scores > novelty_threshold(known, quantile)
    if least:
        novel[scores.topk(least).indices] = True
    return novel


def leading(values: Tensor, share: float) -> Tensor:
    """Return which of the values are among the largest, a given share of them, at least one `(n,)`, bool.

    >>> leading(torch.tensor([0.2, 0.9, 0.4, 0.1]), 0.5)
    tensor([False,  True,  True, False])
    """
    if not len(values):
        return torch.zeros_like(values, dtype=torch.bool)
    count = max(1, round(share * len(values)))
    return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, values.topk(count).indices, True)
