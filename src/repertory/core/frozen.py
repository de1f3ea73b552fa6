"""Networks that are evaluated but never trained: teachers, and copies that are averages."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from repertory.errors import ConflictError


class Frozen(nn.Module):
    """A network that is evaluated but never trained: in evaluation mode and without gradient, whatever its owner does.

    The network itself is frozen, not a copy of it: a teacher may be too large to have twice.

    Args:
        model: the network; from now on none of its parameters needs a gradient.

    >>> teacher = Frozen(nn.Linear(2, 1)).train()
    >>> teacher.model.training, teacher(torch.ones(1, 2)).requires_grad
    (False, False)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the owner is put into."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        """Return the network's output."""
        return self.model(inputs)


class FrozenCopy(Frozen):
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
        super().__init__(copy.deepcopy(model))

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


def frozen_teacher(teacher: nn.Module, student: nn.Module) -> Frozen:
    """Freeze a teacher and move it to where the student's parameters are.

    Args:
        teacher: a trained network.
        student: the network that is to be trained.

    Raises:
        ConflictError: if they share parameters, which would freeze the student too.
    """
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ConflictError(
            "teacher shares parameters with the network that is trained, and would freeze them; pass a network of its "
            "own, such as teacher=copy.deepcopy(model)"
        )
    frozen = teacher if isinstance(teacher, Frozen) else Frozen(teacher)
    place = next(student.parameters(), None)
    return frozen if place is None else frozen.to(place.device)
