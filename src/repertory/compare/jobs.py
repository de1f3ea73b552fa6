"""One run of a comparison, as plain values in and plain values out, so that it can happen anywhere."""

from __future__ import annotations

import time
from typing import Any

from repertory.compare import workers
from repertory.errors import DivergedError, UserError
from repertory.recipe import Recipe
from repertory.scenarios import supervised
from repertory.scenarios.choices import Source
from repertory.training.budget import Budget

_INTERVAL = 0.2
"""Seconds between two messages of progress from one run."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run one recipe at one seed and return its result.

    Args:
        job: `key`, `label`, `method`, `recipe`, `seed`, `split_seed`, `data`, `budget`, `device`, `precision`.

    Returns:
        label, method, seed, status ("finished", "diverged" or "failed"), error, metrics, curve, cost, indices.
    """
    result: dict[str, Any] = {
        "label": job["label"],
        "method": job["method"],
        "seed": job["seed"],
        "status": "finished",
        "error": None,
        "metrics": {},
        "curve": [],
        "cost": {},
    }
    try:
        outcome = supervised.run(
            Recipe.from_dict(job["recipe"]),
            Source(**job["data"]).load(),
            seed=job["seed"],
            split_seed=job["split_seed"],
            budget=Budget(**job["budget"]),
            device=job["device"],
            precision=job["precision"],
            on_progress=_reporter(job["key"]),
        )
    except DivergedError as error:
        return {**result, "status": "diverged", "error": str(error)}
    except (UserError, RuntimeError, ValueError, IndexError, MemoryError) as error:
        return {**result, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "metrics": outcome.metrics,
        "curve": outcome.curve,
        "cost": outcome.cost,
        "indices": outcome.splits.indices,
    }


def _reporter(key: str) -> Any:
    if workers.messages is None:
        return None
    last = 0.0

    def report(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            workers.messages.put((key, share))

    return report
