"""Features of pixels, from the forward pass that trains: noted, and drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repertory.errors import ConflictError, DataError


class PixelFeatures:
    """A hook on a network for segmentation that notes what enters its last convolution while `recorded` is entered.

    The hook stays, since a compiled network only sees those that were there before it was compiled. A copy of the
    network, or one that is pickled, leaves it behind.

    Args:
        model: the network; its attribute `classifier`, if that is a convolution, counts as the last one.
        slug: the method that asks, for the message.

    Raises:
        ConflictError: if the network has no convolution.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> features = PixelFeatures(model, "simple-propagation")
    >>> with features.recorded() as seen:
    ...     _ = model(torch.zeros(5, 1, 8, 8))
    >>> seen[-1].shape
    torch.Size([5, 4, 8, 8])
    """

    def __init__(self, model: nn.Module, slug: str) -> None:
        kind = nn.modules.conv._ConvNd
        found = [
            module for module in (*model.modules(), getattr(model, "classifier", None)) if isinstance(module, kind)
        ]
        if not found:
            raise ConflictError(
                f"{slug} reads the features of pixels where they enter the last convolution, but "
                f"{type(model).__name__} has none; end the network in a convolution to its classes"
            )
        self._seen: list[Tensor] | None = None
        found[-1].register_forward_pre_hook(_Tap(self))

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Fill a list with the features `(batch, dim, *sizes)` of each forward pass inside the block."""
        seen: list[Tensor] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def take(self, value: Tensor) -> None:
        """Note features; called by the hook."""
        if self._seen is not None:
            self._seen.append(value)


class _Tap:
    """The hook. Copying or pickling gives one that does nothing."""

    def __init__(self, features: PixelFeatures | None = None) -> None:
        self.features = features

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.features is not None:
            self.features.take(args[0])

    def __reduce__(self) -> tuple[type[_Tap], tuple[()]]:
        return _Tap, ()


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
            "the size of the masks where it enters its last convolution"
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
