"""The list of sizes that prefixes of an embedding have, and what each of them counts."""

from __future__ import annotations

from collections.abc import Sequence

from repertory.errors import OptionError, check_number


def check_sizes(sizes: Sequence[int], *, increasing: bool = False) -> tuple[int, ...]:
    """Return the sizes as a tuple of different positive whole numbers.

    Args:
        sizes: numbers of leading dimensions.
        increasing: whether they must grow.

    Raises:
        OptionError: if they are not.

    >>> check_sizes([64, 8])
    (64, 8)
    """
    if isinstance(sizes, (str, int, float)) or not len(sizes):
        raise OptionError(f"sizes={sizes!r} is not allowed: sizes must be a list of whole numbers, as in [8, 16, 64]")
    for size in sizes:
        check_number("sizes", size, minimum=1, integer=True)
    if len(set(sizes)) < len(sizes):
        raise OptionError(f"sizes={list(sizes)} is not allowed: a size comes twice; weigh it by weights instead")
    if increasing and sorted(sizes) != list(sizes):
        raise OptionError(f"sizes={list(sizes)} is not allowed: sizes must grow, as in {sorted(sizes)}")
    return tuple(sizes)


def check_weights(weights: Sequence[float] | None, sizes: Sequence[int]) -> tuple[float, ...]:
    """Return one weight a size, 1 for all when none are given.

    Raises:
        OptionError: if there are not as many as sizes, one is negative, or all are 0.

    >>> check_weights(None, (8, 64))
    (1.0, 1.0)
    """
    if weights is None:
        return (1.0,) * len(sizes)
    if isinstance(weights, (str, int, float)) or len(weights) != len(sizes):
        raise OptionError(f"weights={weights!r} is not allowed: weights must be one number for each of {list(sizes)}")
    for weight in weights:
        check_number("weights", weight, minimum=0)
    if not any(weights):
        raise OptionError(f"weights={list(weights)} is not allowed: one of them must be above 0, or nothing is learnt")
    return tuple(map(float, weights))


def halved(dim: int, smallest: int = 8) -> list[int]:
    """Return `dim` and its halves down to `smallest`, growing: the sizes of the paper for a network of that width.

    >>> halved(64), halved(6)
    ([8, 16, 32, 64], [6])
    """
    found = [dim]
    while found[0] % 2 == 0 and found[0] // 2 >= smallest:
        found.insert(0, found[0] // 2)
    return found
