"""What a run has cost, and whether what came out of it are numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from repertory.core.step import Step
from repertory.errors import DivergedError

if TYPE_CHECKING:
    from repertory.scenarios.bench import Bench


def refuse_non_finite(found: Mapping[str, Mapping[str, float]]) -> None:
    """See that every metric of a trained model is a number.

    Args:
        found: metrics by part of the data.

    Raises:
        DivergedError: naming the first that is not finite.
    """
    for judged, values in found.items():
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergedError(f"the trained model's {name} on the {judged} part is {value}")


def cost_of(bench: Bench) -> dict[str, float]:
    """Return what a run has cost: forward, backward (examples), steps, passes, seconds, peak_bytes."""
    counts = bench.counts
    return {
        **dataclasses.asdict(counts),
        "passes": counts.passes,
        "seconds": bench.seconds,
        "peak_bytes": bench.peak_bytes,
    }


def held_bytes(step: Step) -> int:
    """Return the bytes that stay allocated between steps: weights, optimizer state, and the methods' state."""
    tensors: list[Tensor] = [*step.run.model.parameters(), *step.run.model.buffers()]
    for values in step.optimizer.state.values():
        tensors += [value for value in values.values() if isinstance(value, Tensor)]
    if step.run.teacher is not None and any("teacher" in method.needs for method in step.methods):
        tensors += [*step.run.teacher.parameters(), *step.run.teacher.buffers()]
    total = sum(t.numel() * t.element_size() for t in tensors)
    for method in step.methods:
        own = [*method.parameters(), *method.buffers()]
        total += sum(t.numel() * t.element_size() for t in own)
        total += sum(getattr(module, "bytes", 0) for module in method.modules())
    return total
