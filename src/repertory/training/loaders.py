"""Batches from tensors in memory, in an order that depends on a seed and an epoch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repertory.core.distributed import rank, world_size
from repertory.core.randomness import generator_for
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.training.augment import AUGMENTATIONS

_KEPT = 2**28
"""Inputs whose normalised float form takes up to this many bytes are normalised once, larger ones batch by batch."""


class BatchLoader:
    """Batches of `input`, `target` and `index`, resumable in mid-epoch.

    All batches of an epoch have nearly the same size (never a last one of a single example), and the order depends on
    `seed`, `name` and the epoch's number only, so every method sees the same batches. With several processes each takes
    its share of every batch.

    Args:
        inputs: all inputs `(examples, ...)`.
        targets: all targets `(examples, ...)`.
        batch_size: examples a step, over all processes.
        seed: where the order starts.
        name: further name of the order, for loaders that must differ at one seed.
        shuffle: False gives the order of the data.
        normaliser: applied to inputs; None leaves them as they are.
        augment: "none", "shift" or "flip-shift" (images).
        rows: use only these examples `(n,)`; `index` still counts positions in the whole of `inputs`.

    >>> loader = BatchLoader(torch.arange(5.0), torch.zeros(5), batch_size=2, shuffle=False)
    >>> [batch["index"].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        name: str = "batches",
        shuffle: bool = True,
        normaliser: Callable[[Tensor], Tensor] | None = None,
        augment: str = "none",
        rows: Tensor | None = None,
    ) -> None:
        check_number("batch_size", batch_size, minimum=1, integer=True)
        check_choice("augment", augment, AUGMENTATIONS)
        self._small = inputs.numel() * 4 <= _KEPT
        self._normaliser = normaliser
        self._inputs = normaliser(inputs) if normaliser is not None and self._small else inputs
        self._targets = targets
        self._rows = torch.arange(len(inputs)) if rows is None else rows
        if not len(self._rows):
            raise DataError("there are no examples to make batches of; leave some in")
        self._seed = seed
        self._name = name
        self._shuffle = shuffle
        self._augment = AUGMENTATIONS[augment]
        self._count = math.ceil(len(self._rows) / batch_size)
        if len(self._rows) // self._count < world_size():
            raise OptionError(
                f"batch_size={batch_size} leaves some of {world_size()} processes without an example; "
                "raise batch_size, or use fewer devices"
            )
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rest of the current epoch; the next call goes on with the next one."""
        order = self._rows
        if self._shuffle:
            generator = generator_for(self._seed, f"{self._name}/{self.epoch}")
            order = order[torch.randperm(len(order), generator=generator)]
        batches = torch.tensor_split(order, self._count)
        size, own = world_size(), rank()
        while self.position < self._count:
            index = batches[self.position]
            if size > 1:
                index = index[own::size]
            self.position += 1
            yield {"input": self._take(index), "target": self._targets[index], "index": index}
        self.epoch += 1
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position: plain values."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next iteration yields what came after it."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _take(self, index: Tensor) -> Tensor:
        inputs = self._inputs[index]
        if self._normaliser is not None and not self._small:
            inputs = self._normaliser(inputs)
        if self._augment is not None:
            # The draw depends on the place in the run only, so that a resumed run draws the same.
            generator = generator_for(self._seed, f"{self._name}/augment/{self.epoch}/{self.position}/{rank()}")
            inputs = self._augment(inputs, generator)
        return inputs
