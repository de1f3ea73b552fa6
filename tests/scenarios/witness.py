"""A method that changes nothing and keeps what a run gave it, which tests then look at."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from repertory import Method


class BatchWitness(Method):
    """Notes the batches of the last run.

    A test's own subclass says what it needs, so that runs can build it by name; `last` is that class's last one.
    """

    slug = "witness"
    last: ClassVar[Self]

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Any]] = []
        type(self).last = self

    def step(self, state: Any, inner: Any) -> Tensor:
        self.batches.append(state.batch)
        return inner(state)
