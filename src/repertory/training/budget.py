"""Budgets: how much a run may spend, counted in passes, steps or seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from repertory.core.state import Counts
from repertory.errors import check_choice

BUDGETS = ("compute", "steps", "seconds")


@dataclass(frozen=True)
class Budget:
    """How much a training may spend.

    Args:
        kind: "compute" counts passes of single examples (a backward pass counts two), "steps" updates of the weights,
            "seconds" wall time of training without evaluation.
        amount: how much of it.

    >>> Budget("steps", 10).share(Counts(steps=5), 0.0)
    0.5
    """

    kind: Literal["compute", "steps", "seconds"]
    amount: float

    def __post_init__(self) -> None:
        check_choice("budget", self.kind, BUDGETS)

    def share(self, counts: Counts, seconds: float) -> float:
        """Return the share of the budget that is spent, in [0, 1]."""
        if self.amount <= 0:
            return 1.0
        spent = {"compute": counts.passes, "steps": counts.steps, "seconds": seconds}[self.kind]
        return min(1.0, spent / self.amount)

    def part(self, share: float) -> Budget:
        """Return a budget of a share of this one."""
        return Budget(self.kind, self.amount * share)


def baseline_amount(kind: str, *, epochs: int, examples: int, batches: int, seconds: float = 0.0) -> float:
    """Return what the baseline spends in `epochs` passes over `examples` examples in `batches` batches.

    >>> baseline_amount("compute", epochs=2, examples=10, batches=1)
    60.0
    """
    if kind == "compute":
        return Counts(forward=epochs * examples, backward=epochs * examples).passes
    return float(epochs * batches) if kind == "steps" else seconds


class Stopwatch:
    """Wall time that can be paused, for evaluation that is no part of training.

    Args:
        seconds: time that counts as gone already.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._total = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Time gone while running."""
        return self._total + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Go on counting."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop counting until the next start."""
        self._total, self._since = self.seconds, None
