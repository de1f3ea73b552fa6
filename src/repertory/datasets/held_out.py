"""What a search is judged on: classes that were not trained on, or other examples of those that were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, check_choice

KEYS = ("split", "coarse", "group")
"""Options after the `?` of a data spec that only the scenario retrieval reads."""

_SHARES = {"validation": 0.2, "test": 0.3}
"""Of the classes."""
PARTS = tuple(_SHARES)
"""Parts that classes are held out for."""
_LEAST = 2
"""Classes that a part needs, so that there is something wrong to be found."""


def check(options: Mapping[str, str], task: str, classes: int) -> None:
    """Refuse options that the data cannot carry.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the task.
    """
    for key, value in options.items():
        if task != "classification":
            raise OptionError(f"{key}={value} needs classes, but the task is {task}; leave it out")
    if "split" in options:
        check_choice("split", options["split"], ("classes", "examples"))
    if "coarse" in options:
        text = options["coarse"]
        if not text.isdecimal() or not _LEAST <= int(text) < classes:
            raise OptionError(
                f"coarse={text} is not a number of groups from {_LEAST} to {classes - 1}"
                "; choose one, fewer than there are classes"
            )
        if options.get("split") == "classes":
            raise OptionError("split=classes does not go with coarse, whose groups are trained on; leave one out")


def by_classes(options: Mapping[str, str]) -> bool:
    """Whether classes are held out, not examples."""
    return "coarse" not in options and options.get("split", "classes") == "classes"


def train_classes(classes: int, parts: Sequence[str] = PARTS) -> int:
    """Return how many of so many classes are trained on.

    Args:
        classes: how many there are.
        parts: those that classes are held out for.

    Raises:
        DataError: if there are too few to hold any out.
    """
    left = classes - sum(_count(classes, part) for part in parts)
    if left < _LEAST:
        raise DataError(
            f"{classes} classes are too few to hold some out for searching; the minimum is "
            f"{_LEAST * (1 + len(parts))}, {_LEAST} for each of {', '.join(['train', *parts])}; or hold out examples "
            "of all classes with ?split=examples"
        )
    return left


def cut_classes(targets: Tensor, generator: torch.Generator, parts: Sequence[str] = PARTS) -> dict[str, Tensor]:
    """Deal the classes to the parts at random and return the rows of each part.

    Args:
        targets: classes `(examples,)`, int64.
        generator: source of the deal.
        parts: those that classes are held out for.

    Returns:
        Rows of "train" and of each part, all of other classes.

    >>> parts = cut_classes(torch.arange(12) % 6, torch.Generator().manual_seed(0))
    >>> sorted(len(rows) for rows in parts.values())
    [4, 4, 4]
    """
    labels = targets.unique()
    dealt = labels[torch.randperm(len(labels), generator=generator)]
    counts = {"train": train_classes(len(labels), parts), **{part: _count(len(labels), part) for part in parts}}
    chosen = dict(zip(counts, dealt.split(list(counts.values()))))
    return {part: torch.isin(targets, own).nonzero().flatten() for part, own in chosen.items()}


def _count(classes: int, part: str) -> int:
    return max(_LEAST, round(_SHARES[part] * classes))


def coarse_labels(targets: Tensor, classes: int, groups: int) -> Tensor:
    """Merge classes to groups of neighbours in their order, as equal in number as can be.

    >>> coarse_labels(torch.arange(5), classes=5, groups=2).tolist()
    [0, 0, 0, 1, 1]
    """
    return targets * groups // classes
