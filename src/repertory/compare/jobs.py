"""One run of a comparison, as plain values in and plain values out, so that it can happen anywhere."""

from __future__ import annotations

import functools
import time
from typing import Any

from repertory.compare import workers
from repertory.datasets import Dataset
from repertory.errors import DataError, DivergedError
from repertory.recipe import Recipe
from repertory.scenarios.choices import Source
from repertory.scenarios.registry import scenario
from repertory.scenarios.teachers import teachers_kept_in
from repertory.training.budget import Budget

_INTERVAL = 0.2
"""Seconds between two messages of progress from one run."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run one recipe at one seed and return its result.

    Args:
        job: `key`, `label`, `method`, `scenario`, `recipe`, `seed`, `split_seed`, `data` with its
            `fingerprint`, `budget`, `device`, `precision`; and where it is not run by itself `folder`, of the
            comparison, in which what several runs share is kept.

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
        with teachers_kept_in(job.get("folder")):
            outcome = scenario(job["scenario"]).run(
                Recipe.from_dict(job["recipe"]),
                _data(Source(**job["data"]), job["fingerprint"]),
                seed=job["seed"],
                split_seed=job["split_seed"],
                budget=Budget(**job["budget"]),
                device=job["device"],
                precision=job["precision"],
                on_progress=_reporter(job["key"]),
            )
    except DivergedError as error:
        return {**result, "status": "diverged", "error": str(error)}
    except Exception as error:  # one method's fault must not end the runs of the others
        return {**result, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "metrics": outcome.metrics,
        "curve": outcome.curve,
        "cost": outcome.cost,
        "indices": outcome.splits.indices,
        "tables": outcome.tables,
        "neighbours": outcome.neighbours,
    }


def prepare() -> None:
    """Import what the first run needs, which takes some seconds."""
    import sklearn.model_selection
    import torch._dynamo

    # The first optimizer of a process imports the latter.
    assert sklearn.model_selection is not None
    assert torch._dynamo is not None


@functools.lru_cache(maxsize=2)
def _data(source: Source, fingerprint: str) -> Dataset:
    """Read the data once a process, and see that they are still those of the plan."""
    dataset = source.load()
    if dataset.describe()["fingerprint"] != fingerprint:
        raise DataError(f"{source.spec!r} changed since the comparison was begun; start a new one")
    return dataset


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
