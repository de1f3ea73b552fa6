"""The loop around the step: schedule, budget, epochs, and a stop when training diverges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from repertory.core.distributed import sum_over_processes
from repertory.core.state import Run
from repertory.core.step import Step
from repertory.errors import DivergedError
from repertory.training.budget import Budget, Stopwatch
from repertory.training.loaders import BatchLoader
from repertory.training.memory import peak_memory

EpochEnd = Callable[[float, dict[str, Any]], None]
"""Called after each epoch with the share of the budget spent and a record of it."""


def learning_rate_factor(schedule: str, progress: float, warmup: float = 0.0) -> float:
    """Return the factor on the initial learning rate at a point of the run.

    Args:
        schedule: "cosine" (to zero at the end) or "constant".
        progress: share of the budget that is spent, in [0, 1].
        warmup: share of the budget over which the factor rises linearly to 1.

    >>> [round(learning_rate_factor("cosine", p, 0.1), 3) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / max(1e-12, 1.0 - warmup)))


def train(
    step: Step,
    loader: BatchLoader,
    budget: Budget,
    *,
    schedule: str = "cosine",
    warmup: float = 0.0,
    on_epoch: EpochEnd | None = None,
    watch_memory: bool = False,
    seconds: float = 0.0,
    span: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Any]:
    """Make steps until the budget is spent, or the share of it that this call is for.

    A method that asks for another batch size (`run.batch_size`) gets it from the next step on, and one that asks for
    another order of the examples (`run.sampler`) from the next epoch on.

    Args:
        step: the step; its network is put in training mode at the start of every epoch.
        loader: where batches come from.
        budget: when to stop.
        schedule: "cosine" or "constant".
        warmup: share of the budget over which the learning rate rises.
        on_epoch: called after every epoch, and at the end; its time is not counted.
        watch_memory: measure the peak of tensor memory during the second step of this call.
        seconds: training time before this call, when it goes on from a checkpoint or an earlier call.
        span: shares of the budget from which and up to which this call spends it; the learning rate goes once through
            its schedule.

    Returns:
        `seconds` of training, earlier ones included, and `peak_bytes` (0 when not watched).

    Raises:
        DivergedError: if the mean loss of an epoch is not finite.
    """
    run, clock, peak, made = step.run, Stopwatch(seconds), 0, 0
    step.ends_epochs = True
    groups = step.optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    run.progress = budget.share(run.counts, seconds)
    first, last = span
    while run.progress < last:
        # Also what was asked for at an epoch's end: an order takes effect from the next epoch on.
        _follow(run, loader)
        run.model.train()
        losses: list[Tensor] = []
        clock.start()
        for batch in loader:
            factor = learning_rate_factor(schedule, (run.progress - first) / (last - first), warmup)
            for group in groups:
                group["lr"] = group["initial_lr"] * factor
            if watch_memory and made == 1:
                clock.pause()
                with peak_memory(run.device) as measured:
                    losses.append(step(batch))
                peak = measured[0]
                clock.start()
            else:
                losses.append(step(batch))
            made += 1
            _follow(run, loader)
            run.progress = budget.share(run.counts, clock.seconds)
            if run.progress >= last:
                break
        if not losses:  # the checkpoint was of the very end of an epoch
            continue
        # Every process must come to the same conclusion about divergence, or the others would wait for ever.
        mean = float(sum_over_processes(torch.stack(losses).mean())) / run.world_size
        share = run.progress
        if loader.position in (0, len(loader)):
            step.end_epoch()
            run.epochs = run.epoch / share
        run.progress = share
        clock.pause()
        if not math.isfinite(mean):
            raise DivergedError(
                f"the training loss is {mean} in epoch {run.epoch} (step {run.counts.steps}); a smaller "
                "learning rate helps most"
            )
        if on_epoch is not None:
            on_epoch(
                share, {"epoch": run.epoch, "train_loss": mean, "passes": run.counts.passes, "seconds": clock.seconds}
            )
    return {"seconds": clock.seconds, "peak_bytes": peak}


def _follow(run: Run, loader: BatchLoader) -> None:
    if run.batch_size is not None and run.batch_size != loader.batch_size:
        loader.resize(run.batch_size)
    if run.sampler is not None:
        loader.sampler = run.sampler
