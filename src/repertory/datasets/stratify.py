"""Random choices that keep the proportions of the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of its own for each seed and purpose, so that one choice never moves another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_ranks(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return each example's place in a random order of its own class.

    Args:
        labels: class of each example, int64 `(examples,)`.
        generator: source of the order.

    Returns:
        int64 `(examples,)`: within a class of n examples, a permutation of 0..n-1.
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    return ranks


def allot(total: int, counts: Tensor) -> Tensor:
    """Share `total` places among classes by largest remainder, in proportion to counts, at least one each.

    The result sums to `total`, or to more where one place each already exceeds the proportion.

    >>> allot(10, torch.tensor([70, 29, 1]))
    tensor([7, 2, 1])
    """
    quota = counts.double() * total / counts.sum()
    places = quota.floor().long().clamp(min=1)
    spare = total - int(places.sum())
    if spare > 0:
        places[(quota - places).argsort(descending=True, stable=True)[:spare]] += 1
    return places


def cut(labels: Tensor, shares: Mapping[str, float], generator: torch.Generator) -> dict[str, Tensor]:
    """Cut examples into parts of the given shares, each with the proportions of the classes.

    What is left over is the part "train".

    Every part, "train" included, gets at least one example of each class, so a class needs one more example
    than there are shares.

    Args:
        labels: class of each example, int64 `(examples,)`; all zeros where there are no classes.
        shares: share of the examples for each part.
        generator: source of the choice.

    Returns:
        Sorted positions of each part.
    """
    counts = torch.bincount(labels)
    ranks = random_ranks(labels, generator)
    taken = torch.zeros_like(counts)
    parts: dict[str, Tensor] = {}
    for done, (name, share) in enumerate(shares.items()):
        still_to_fill = len(shares) - done
        places = torch.minimum(allot(round(share * len(labels)), counts), counts - taken - still_to_fill)
        parts[name] = ((ranks >= taken[labels]) & (ranks < (taken + places)[labels])).nonzero().flatten()
        taken = taken + places
    parts["train"] = (ranks >= taken[labels]).nonzero().flatten()
    return parts


def cut_groups(groups: Tensor, shares: Mapping[str, float], generator: torch.Generator) -> dict[str, Tensor]:
    """Cut examples into parts that hold the given shares of the groups, at least 2 each, no group in two of them.

    What is left over is the part "train".

    Args:
        groups: group of each example, int64 `(examples,)`, of twice as many groups as parts at least.
        shares: share of the groups for each part.
        generator: source of the choice.

    Returns:
        Sorted positions of each part.
    """
    numbers = groups.unique()
    shares = {part: max(share, 2 / len(numbers)) for part, share in shares.items()}
    chosen = cut(torch.zeros(len(numbers), dtype=torch.long), shares, generator)
    return {part: torch.isin(groups, numbers[places]).nonzero().flatten() for part, places in chosen.items()}
