"""One thread a process: for tiny tensors more are slower, and numbers then do not depend on the machine's cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a comparison's jobs one after the other in this process, without the report.

    Returns:
        The keys of the jobs that ran, filled as they do.
    """
    from repertory.compare import api, jobs

    ran: list[str] = []

    def run(
        wanted: Sequence[dict[str, Any]], on_progress: Callable[[str, float], None]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for job in wanted:
            ran.append(job["key"])
            on_progress(job["key"], 1.0)
            yield job, jobs.run_job(job)

    monkeypatch.setattr(api, "executor", lambda place, processes: contextlib.nullcontext(run))
    monkeypatch.setattr(api, "write_report", lambda path, *given: path.write_text("report"))
    return ran
