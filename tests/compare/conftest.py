"""Comparisons in this process: what workers would do, without starting any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from repertory.compare import api, jobs
from repertory.compare.execute import Ended


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run jobs one after the other right here, without the report; the list holds the keys of those that ran."""
    ran: list[str] = []

    def run(wanted: Sequence[dict[str, Any]], on_progress: Callable[[str, float], None]) -> Ended:
        for job in wanted:
            ran.append(job["key"])
            on_progress(job["key"], 1.0)
            yield job, jobs.run_job(job)

    monkeypatch.setattr(api, "executor", lambda place, processes: run)
    monkeypatch.setattr(api, "write_report", lambda path, comparison: path.write_text("report"))
    return ran
