"""How classes are known from labels at first, and new ones come in sets of examples without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repertory.datasets.stratify import random_ranks
from repertory.errors import DataError, OptionError

KEYS = ("known", "steps", "mix")
"""Options after the `?` of a data spec that only the scenario category_discovery reads."""

_STEPS = 3
_MIX = 0.25
_LEAST = 2
"""Classes that must be known: a classifier of one says nothing of what is new."""


@dataclass(frozen=True)
class CategoryStream:
    """Which rows come when.

    Args:
        order: the classes as they come, the known ones first `(classes,)`, int64.
        known: how many are known from labels.
        new: how many new ones each further set has.
        labelled: rows of the labelled set `(n,)`, int64.
        unlabelled: rows of each further set, in random order.
    """

    order: Tensor
    known: int
    new: tuple[int, ...]
    labelled: Tensor
    unlabelled: tuple[Tensor, ...]

    def places(self) -> Tensor:
        """Return the place of each class in the order `(classes,)`, int64: what the network calls it."""
        return self.order.argsort()


def check(options: Mapping[str, str], task: str, classes: int) -> None:
    """Refuse options that the data cannot carry.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the task.
    """
    for key, value in options.items():
        if task != "classification":
            raise OptionError(f"{key}={value} needs classes, but the task is {task}; leave it out")
        if key != "mix" and not value.isdecimal():
            raise OptionError(f"{key}={value} is not a whole number, as in known=5 or steps=3")
    if "mix" in options:
        mix_of(options)
    if options and classes <= _LEAST:
        key, value = next(iter(options.items()))
        raise OptionError(f"{key}={value} needs 3 classes, {_LEAST} known ones and a new one, but there are {classes}")
    if "known" in options and not _LEAST <= known_classes(options, classes) < classes:
        raise OptionError(
            f"known={options['known']} is not from {_LEAST} to {classes - 1}: some classes must be known, and one "
            "new at least; choose another number"
        )
    left = classes - known_classes(options, classes)
    if "steps" in options and not 1 <= step_count(options, classes) <= left:
        raise OptionError(
            f"steps={options['steps']} is not from 1 to {left}, one new class a step at least; ask for fewer, or for "
            "fewer known classes"
        )


def known_classes(options: Mapping[str, str], classes: int) -> int:
    """Return how many classes have labels: half of them, rounded up, unless given."""
    return int(options.get("known", max(_LEAST, -(-classes // 2))))


def step_count(options: Mapping[str, str], classes: int) -> int:
    """Return the number of sets without labels: 3, or as many as new classes where these are fewer, unless given."""
    return int(options.get("steps", min(_STEPS, classes - known_classes(options, classes))))


def mix_of(options: Mapping[str, str]) -> float:
    """Return the share of each set without labels that is of known classes: a quarter unless given.

    Raises:
        OptionError: if it is no number in [0, 1).
    """
    text = options.get("mix", str(_MIX))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise OptionError(f"mix={text} is not a share in [0, 1), as in mix=0.25; 0 gives sets of new classes only")
    return value


def deal(
    targets: Tensor, names: Sequence[str], options: Mapping[str, str], generator: torch.Generator
) -> CategoryStream:
    """Deal classes and rows at random.

    At least half of each known class stays labelled. Where the sets without labels would need more than the rest, they
    have fewer examples of the new classes, so that the share of known ones is what was asked for.

    Args:
        targets: classes of the training part `(examples,)`, int64.
        names: of the classes.
        options: of the data.
        generator: source of the deal.

    Raises:
        DataError: if there are too few classes, or one has no example.

    >>> stream = deal(torch.arange(40) % 4, "abcd", {"mix": "0.5"}, torch.Generator().manual_seed(0))
    >>> stream.known, stream.new, len(stream.labelled), [len(rows) for rows in stream.unlabelled]
    (2, (1, 1), 10, [10, 10])
    """
    classes = len(names)
    if classes <= _LEAST:
        raise DataError(
            f"{classes} classes are too few for new ones to be found; the minimum is 3, {_LEAST} known and a new one"
        )
    counts = targets.bincount(minlength=classes)
    if int(counts.min()) < 1:
        raise DataError(f"class {names[int(counts.argmin())]!r} has no training example; add some or leave it out")
    known, steps, mix = known_classes(options, classes), step_count(options, classes), mix_of(options)
    order = torch.randperm(classes, generator=generator)
    place = order.argsort()[targets]
    rank = random_ranks(targets, generator)
    size = counts[targets]
    spare = ((place < known) & (rank < size // 2)).nonzero().flatten()
    # In the order of their share of their own class, so that the first of them are alike in classes.
    spare = spare[((rank[spare] + torch.rand(len(spare), generator=generator)) / size[spare]).argsort()]
    dealt = torch.arange(known, classes).tensor_split(steps)
    every = int((place >= known).sum())
    kept = 1.0 if mix == 0 else min(1.0, len(spare) * (1 - mix) / mix / every)
    new = [(torch.isin(place, own) & (rank < (kept * size).floor().clamp(min=1))).nonzero().flatten() for own in dealt]
    sets, taken = [], 0
    for rows in new:
        count = min(round(len(rows) * mix / (1 - mix)), len(spare) - taken)
        mixed = torch.cat([rows, spare[taken : taken + count]])
        taken += count
        sets.append(mixed[torch.randperm(len(mixed), generator=generator)])
    labelled = torch.ones(len(targets), dtype=torch.bool)
    labelled[spare[:taken]] = False
    labelled &= place < known
    return CategoryStream(order, known, tuple(len(own) for own in dealt), labelled.nonzero().flatten(), tuple(sets))
