"""One thread a process: for tiny tensors more are slower, and numbers then do not depend on the machine's cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

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


@pytest.fixture
def as_float64() -> Callable[..., list[Tensor]]:
    """Hold a loss of half-precision numbers, under autocast, to what float64 makes of the same numbers.

    The fixture is called with a function of tensors and the tensors, and returns the gradients to the latter.
    """
    import torch

    def compare(loss: Callable[..., Tensor], *given: Tensor, rtol: float = 1e-3) -> list[Tensor]:
        halves = [values.detach().clone().requires_grad_() for values in given]
        wide = [values.detach().double().requires_grad_() for values in given]
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(*halves)
        exact = loss(*wide)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=rtol)
        gradients = list(torch.autograd.grad(found.sum(), halves))
        for values, gradient, wanted in zip(given, gradients, torch.autograd.grad(exact.sum(), wide)):
            # Rounded to the type of the input.
            near = max(rtol, torch.finfo(values.dtype).eps) * float(wanted.abs().max())
            torch.testing.assert_close(gradient.double(), wanted, rtol=0.0, atol=max(near, 1e-5))
        return gradients

    return compare
