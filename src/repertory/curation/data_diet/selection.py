"""Which examples to keep, given a score of each."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, check_choice, check_number

RULES = ("keep_max", "window", "random")
"""Which part of the ranking is kept."""


def select(
    scores: Tensor,
    count: int,
    rule: str = "keep_max",
    offset: int = 0,
    *,
    balanced: bool = False,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose examples by their scores; among equal scores later examples count as higher.

    Args:
        scores: `(examples,)`.
        count: how many to keep.
        rule: "keep_max" for the highest; "window" for those from place `offset` of the ascending ranking on,
            which drops the `examples - offset - count` highest; "random" for a draw that ignores the scores.
        offset: start of the window.
        balanced: apply the rule inside each class, to its share of `count` and `offset`.
        targets: classes `(examples,)`, for `balanced`.
        generator: source of the random draw.

    Returns:
        Positions `(count,)`, int64, ascending.

    Raises:
        OptionError: if `rule` is not known, `count` or `offset` out of range, or `targets` are missing.
        DataError: if a score is not a number.

    >>> select(torch.tensor([0.3, 0.9, 0.1, 0.5]), 2)
    tensor([1, 3])
    >>> select(torch.tensor([0.3, 0.9, 0.1, 0.5]), 2, "window", offset=1)
    tensor([0, 3])
    """
    examples = len(scores)
    check_choice("rule", rule, RULES)
    check_number("count", count, minimum=0, maximum=examples, integer=True)
    check_number("offset", offset, minimum=0, maximum=examples - count if rule == "window" else None, integer=True)
    if balanced and targets is None:
        raise OptionError("balanced=True needs targets, the class of each example; give them")
    if scores.isnan().any():
        raise DataError(f"{int(scores.isnan().sum())} of {examples} scores are not a number; the scoring run diverged")
    if rule == "random":
        scores = torch.randperm(examples, generator=generator)
    scores = scores.cpu()
    groups = targets.cpu() if balanced and targets is not None else torch.zeros(examples, dtype=torch.long)
    sizes = groups.bincount()
    kept = _shares(sizes, count)
    first = sizes * offset // max(examples, 1) if rule == "window" else sizes - kept
    order = scores.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    ranked = groups[order]
    place = torch.arange(examples) - (sizes.cumsum(0) - sizes)[ranked]
    return order[(place >= first[ranked]) & (place < (first + kept)[ranked])].sort().values


def _shares(sizes: Tensor, count: int) -> Tensor:
    """Cut `count` in proportion to `sizes`, by largest remainders."""
    exact = sizes.double() * count / sizes.sum().clamp(min=1)
    shares = exact.floor().long()
    rest = count - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:rest]] += 1
    return shares
