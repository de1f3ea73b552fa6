from __future__ import annotations

import pytest

from repertory.core.state import Counts
from repertory.errors import OptionError
from repertory.training import Budget, budget
from repertory.training.budget import Stopwatch, baseline_amount

COUNTS = Counts(forward=30, backward=10, steps=5)


@pytest.mark.parametrize(
    ("kind", "amount", "share"), [("compute", 100, 0.5), ("steps", 20, 0.25), ("seconds", 8, 0.75)]
)
def test_share_is_what_was_spent_of_its_own_kind(kind: str, amount: float, share: float) -> None:
    assert Budget(kind, amount).share(COUNTS, seconds=6.0) == share  # type: ignore[arg-type]


def test_share_never_exceeds_one_and_an_empty_budget_is_spent() -> None:
    assert Budget("steps", 2).share(COUNTS, 0.0) == 1.0
    assert Budget("steps", 0).share(Counts(), 0.0) == 1.0


def test_parts_of_a_budget_add_up_to_it() -> None:
    whole = Budget("compute", 90)
    assert whole.part(0.25).amount + whole.part(0.75).amount == whole.amount
    assert whole.part(0.25).kind == "compute"


def test_a_backward_pass_counts_as_two_forward_passes() -> None:
    assert Counts(forward=1, backward=1).passes == 3.0
    assert baseline_amount("compute", epochs=4, examples=10, batches=3) == 4 * 10 * 3.0
    assert baseline_amount("steps", epochs=4, examples=10, batches=3) == 12
    assert baseline_amount("seconds", epochs=4, examples=10, batches=3, seconds=1.5) == 1.5


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match=r"budget='step' is not allowed.*did you mean steps"):
        Budget("step", 1)  # type: ignore[arg-type]


def test_a_stopwatch_counts_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    watch = Stopwatch(seconds=2.0)
    now[0] += 5
    watch.start()
    now[0] += 3
    watch.pause()
    now[0] += 7
    assert watch.seconds == 5.0
    watch.start()
    now[0] += 1
    assert watch.seconds == 6.0
