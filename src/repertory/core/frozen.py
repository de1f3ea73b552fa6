"""A copy of the network that is moved and saved with its owner but never trained: teachers and averages."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class FrozenCopy(nn.Module):
    """A network's weights at another time, always in evaluation mode and without gradient.

    A method that holds one makes it in `setup`. Its parameters need no gradient, so no optimizer takes them.

    Args:
        model: the network to copy.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> average = FrozenCopy(model)
    >>> _ = nn.init.zeros_(average.model.weight), nn.init.ones_(model.weight)
    >>> average.follow(model, 0.25)
    >>> average(torch.ones(1, 2))
    tensor([[0.5000]])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenCopy:
        """Stay in evaluation mode, whatever the owner is put into."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        """Return the copy's output."""
        return self.model(inputs)

    @torch.no_grad()
    def follow(self, model: nn.Module, share: float) -> None:
        """Move every weight and buffer by `share` of the way towards those of `model`; 1 makes it equal.

        Whole-number buffers, such as counters, are copied.

        Args:
            model: a network of the same structure.
            share: in [0, 1].
        """
        pairs = [
            *zip(self.model.parameters(), model.parameters()),
            *zip(self.model.buffers(), model.buffers()),
        ]
        moving = [(mine, other) for mine, other in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in moving], [other.detach() for _, other in moving], share)
        for mine, other in pairs:
            if not mine.is_floating_point():
                mine.copy_(other)
