"""Terms on the features of pixels, from the forward pass that trains: noted, and drawn from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from repertory.core.features import DenseFeatures
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State
from repertory.errors import DataError, check_number


class PixelTerm(Method, ABC):
    """Base of methods that add a term on the features of pixels, where they enter the classifier, to the loss.

    Subclasses set `slug` and override `term`.

    Args:
        n: pixels that are drawn of a kind.
        weight: of the term; 0 is the baseline.

    Raises:
        OptionError: if an option is out of range.
    """

    across_batch = True

    def __init__(self, n: int, weight: float) -> None:
        super().__init__()
        check_number("n", n, minimum=1, integer=True)
        check_number("weight", weight, minimum=0)
        self.n = n
        self.weight = weight
        self._features: DenseFeatures | None = None

    @abstractmethod
    def term(self, state: State, maps: Tensor, generator: torch.Generator) -> Tensor:
        """Return what is added, 0-d.

        Args:
            state: this evaluation, with the network's output.
            maps: features `(batch, dim, *sizes)`.
            generator: source of the draws.
        """

    def setup(self, run: Run) -> None:
        """Listen to the features of pixels."""
        if self.weight:
            self._features = DenseFeatures(run.model, run.classes)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the term to each example's loss."""
        if self._features is None:
            return inner(state)
        with self._features.recorded() as seen:
            loss = inner(state)
        return loss + self.weight * self.term(state, seen[-1], state.run.generator(self.slug))


def at_pixels(maps: Tensor, where: Tensor) -> Tensor:
    """Return the rows of a map at the pixels that are marked.

    Args:
        maps: `(batch, dim, *sizes)`.
        where: bool `(batch, *sizes)`.

    Returns:
        `(pixels, dim)`.

    Raises:
        DataError: if the sizes differ.
    """
    if where.shape != (len(maps), *maps.shape[2:]):
        raise DataError(
            f"maps {tuple(maps.shape)} and masks {tuple(where.shape)} do not belong together; the network must have "
            "the size of the masks where it enters its classifier"
        )
    example, place = where.flatten(1).nonzero(as_tuple=True)
    return maps.flatten(2)[example, :, place]


def drawn(where: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a mark on `count` of the pixels that are marked, drawn evenly; on all where there are fewer.

    Args:
        where: bool, any shape.
        count: how many.
        generator: CPU generator of the draw.
    """
    places = where.flatten().nonzero().flatten()
    if len(places) <= count:
        return where
    kept = torch.zeros(where.numel(), dtype=torch.bool, device=where.device)
    kept[places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]] = True
    return kept.view(where.shape)
