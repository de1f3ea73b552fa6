"""Tuples of an anchor, a positive and negatives that the classifier confuses with it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.errors import DataError, check_number

_AS_ANCHOR, _AS_MISTAKEN = 0.5, 0.33
"""How likely a negative is one that was taken for the anchor's class: of a recognised anchor, and of another."""
_AS_TAKEN = 0.5
"""How likely, else, a negative of an anchor that was not recognised is of the class that it was taken for."""


class TupleSampler:
    """An order of examples in tuples: an anchor, a positive of its class, and negatives of others.

    With a table of predicted classes, negatives come from the confusions of the classifier. Of an anchor that was
    recognised, each is with probability 0.5 an example that was taken for the anchor's class. Of one that was not, each
    is with probability 0.33 such an example, and else with probability 0.5 one of the class that the anchor was taken
    for; and the positive is one that was recognised. All others are of further classes, drawn at random. An example
    comes once until no more tuples can be made of what is left; then all are there again.

    Args:
        predicted: class that each example was taken for, by its position `(examples,)` int64, -1 where not known; None
            draws without.
        size: examples in a tuple.

    Attributes:
        group: rows that a loader must not part, `size` of them.

    Raises:
        OptionError: if `size` is not a whole number from 3 on.

    >>> targets = torch.arange(40) % 4
    >>> order = TupleSampler()(torch.arange(40), targets, torch.Generator().manual_seed(0))
    >>> tuples = targets[order].view(-1, 8)
    >>> len(tuples), bool((tuples[:, 0] == tuples[:, 1]).all()), bool((tuples[:, :1] == tuples[:, 2:]).any())
    (5, True, False)
    """

    def __init__(self, predicted: Tensor | None = None, size: int = 8) -> None:
        check_number("size", size, minimum=3, integer=True)
        self.predicted = predicted
        self.group = size

    def __call__(self, rows: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order of an epoch: as many tuples as hold all examples.

        Args:
            rows: examples that may be used `(n,)`, int64.
            targets: their classes `(n,)`, int64.
            generator: CPU generator of the draws.

        Returns:
            Rows `(m,)`, the first multiple of `group` from n on.

        Raises:
            DataError: if the targets are no classes, or there is no such tuple among the examples.
        """
        if targets.is_floating_point() or targets.ndim != 1:
            raise DataError("tuples need one class an example, but the targets are numbers; leave them out")
        # A generator of Python's own, since one tuple depends on what the ones before it used up.
        draws = random.Random(int(torch.randint(2**62, (), generator=generator)))
        taken_for = [-1] * len(rows) if self.predicted is None else self.predicted[rows.cpu()].tolist()
        classes = targets.tolist()
        wanted = -(-len(rows) // self.group)
        chosen: list[int] = []
        pools = _Pools(classes, taken_for, draws)
        fresh = True
        while len(chosen) < wanted * self.group:
            made = pools.tuple_of(self.group)
            if made is None:
                if fresh:
                    raise DataError(
                        f"{len(rows)} examples of {len(set(classes))} classes hold no tuple of {self.group}: it takes "
                        f"two of one class, and {self.group - 2} of others"
                    )
                pools, fresh = _Pools(classes, taken_for, draws), True
                continue
            chosen += made
            fresh = False
        return rows[torch.tensor(chosen, device=rows.device)]


class _Pools:
    """What is left to draw from; every list is in random order and drawn from its end."""

    def __init__(self, classes: Sequence[int], taken_for: Sequence[int], draws: random.Random) -> None:
        self.classes, self.taken_for, self.draws = classes, taken_for, draws
        self.used = bytearray(len(classes))
        self.members: dict[int, list[int]] = {}
        self.recognised: dict[int, list[int]] = {}
        self.mistaken: dict[int, list[int]] = {}
        order = list(range(len(classes)))
        draws.shuffle(order)
        for place in order:
            own, other = classes[place], taken_for[place]
            self.members.setdefault(own, []).append(place)
            if own == other:
                self.recognised.setdefault(own, []).append(place)
            elif other >= 0:
                self.mistaken.setdefault(other, []).append(place)
        self.left = {own: len(places) for own, places in self.members.items()}
        self.anchors = _Bag([own for own, count in self.left.items() if count > 1])
        self.others = _Bag(list(self.left))

    def tuple_of(self, size: int) -> list[int] | None:
        """Take a tuple, or None where there is none left."""
        if not self.anchors.items:
            return None
        own = self.draws.choice(self.anchors.items)
        anchor = self._take(self.members[own])
        assert anchor is not None
        other = self.taken_for[anchor]
        positive = self._take(self.recognised.get(own, [])) if other >= 0 and other != own else None
        if positive is None:
            positive = self._take(self.members[own])
        assert positive is not None
        negatives = [] if other < 0 else self._confused(own, other, size - 2)
        while len(negatives) < size - 2:
            rest = self.others.sample(self.draws, size - 2 - len(negatives), without=own)
            if not rest:
                return None
            negatives += [place for each in rest if (place := self._take(self.members[each])) is not None]
        return [anchor, positive, *negatives]

    def _confused(self, own: int, other: int, count: int) -> list[int]:
        found: list[int | None] = []
        recognised = own == other
        for _ in range(count):
            if self.draws.random() < (_AS_ANCHOR if recognised else _AS_MISTAKEN):
                place = self._take(self.mistaken.get(own, []))
                if place is not None or recognised:
                    found.append(place)
                    continue
            if not recognised and self.draws.random() < _AS_TAKEN:
                found.append(self._take(self.members.get(other, [])))
        return [place for place in found if place is not None]

    def _take(self, places: list[int]) -> int | None:
        while places:
            place = places.pop()
            if not self.used[place]:
                self.used[place] = 1
                own = self.classes[place]
                self.left[own] -= 1
                if self.left[own] < 2:
                    self.anchors.discard(own)
                if not self.left[own]:
                    self.others.discard(own)
                return place
        return None


class _Bag:
    """A set that one can draw from: what is discarded gives its place to the last one."""

    def __init__(self, items: list[int]) -> None:
        self.items = items
        self.place = {item: place for place, item in enumerate(items)}

    def discard(self, item: int) -> None:
        place = self.place.pop(item, None)
        if place is None:
            return
        last = self.items.pop()
        if last != item:
            self.items[place], self.place[last] = last, place

    def sample(self, draws: random.Random, count: int, without: int) -> list[int]:
        """Draw `count` different items, or all there are, leaving one out."""
        there = len(self.items) - (without in self.place)
        drawn = draws.sample(self.items, min(len(self.items), count + 1))
        return [item for item in drawn if item != without][: min(count, there)]
