"""The loop stops when the budget is spent, follows its schedule, and says when training has diverged."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, Step
from repertory.algorithms import SAM
from repertory.core.method import Inner
from repertory.core.state import Run, State
from repertory.errors import DivergedError
from repertory.training import BatchLoader, Budget, train
from repertory.training.loop import learning_rate_factor


def task(methods: tuple[Method, ...] = (), lr: float = 0.1, examples: int = 20) -> tuple[Step, BatchLoader]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    step = Step(
        model, functools.partial(torch.optim.SGD, lr=lr), nn.CrossEntropyLoss(), methods, epochs=4, examples=examples
    )
    inputs = torch.randn(examples, 2)
    return step, BatchLoader(inputs, (inputs[:, 0] > 0).long(), batch_size=5)


def watched(step: Step) -> list[float]:
    rates: list[float] = []
    step.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 9])
def test_stops_exactly_at_a_budget_of_steps(steps: int) -> None:
    step, loader = task()
    train(step, loader, Budget("steps", steps))
    assert step.run.counts.steps == steps


def test_stops_at_the_step_that_spends_a_budget_of_passes() -> None:
    step, loader = task()
    train(step, loader, Budget("compute", 3 * 5 * 7))
    assert (step.run.counts.steps, step.run.counts.passes) == (7, 105.0)


def test_a_method_of_two_gradients_gets_half_the_steps_of_the_same_compute() -> None:
    step, loader = task((SAM(0.05),))
    train(step, loader, Budget("compute", 3 * 20 * 4))
    assert (step.run.counts.steps, step.run.epoch) == (8, 2)


def test_the_planned_epochs_become_those_that_the_budget_allows() -> None:
    step, loader = task((SAM(0.05),))
    assert step.run.epochs == 4
    seen: list[float | None] = []
    train(step, loader, Budget("compute", 3 * 20 * 4), on_epoch=lambda *_: seen.append(step.run.epochs))
    assert seen == [2.0, 2.0]


def test_stops_when_the_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from repertory.training import budget

    now = [0.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    step, loader = task()
    step.optimizer.register_step_post_hook(lambda *_: now.__setitem__(0, now[0] + 1.0))

    def evaluate(*_: Any) -> None:
        now[0] += 100.0

    cost = train(step, loader, Budget("seconds", 6.5), on_epoch=evaluate)
    assert step.run.counts.steps == 7
    assert cost["seconds"] == 7.0


def test_rises_linearly_then_falls_as_a_cosine() -> None:
    step, loader = task(lr=0.1)
    rates = watched(step)
    train(step, loader, Budget("steps", 8), schedule="cosine", warmup=0.25)
    expected = [0.1 * 0.001 / 0.25, 0.1 * 0.5]
    expected += [0.1 * 0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx(expected)


def test_constant_schedule_keeps_the_rate_after_the_warm_up() -> None:
    step, loader = task(lr=0.1)
    rates = watched(step)
    train(step, loader, Budget("steps", 4), schedule="constant", warmup=0.5)
    assert rates[1:] == pytest.approx([0.05, 0.1, 0.1])


def test_the_cosine_ends_at_zero_and_is_monotone() -> None:
    factors = [learning_rate_factor("cosine", share / 20) for share in range(21)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(factors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_raises_after_its_epoch(value: float) -> None:
    class Broken(Method):
        slug = "broken"

        def loss(self, state, inner):  # type: ignore[no-untyped-def]
            loss = inner(state)
            return loss * value if state.run.counts.steps == 5 else loss

    step, loader = task((Broken(),))
    records: list[float] = []
    with pytest.raises(DivergedError, match=r"in epoch 2 \(step 8\).*smaller learning rate"):
        train(step, loader, Budget("steps", 100), on_epoch=lambda share, _: records.append(share))
    assert records == [0.04]


def test_every_epoch_is_recorded_and_so_is_the_last_part_of_one() -> None:
    step, loader = task()
    records: list[tuple[float, dict[str, Any]]] = []
    train(step, loader, Budget("steps", 6), on_epoch=lambda share, record: records.append((share, record)))
    assert [share for share, _ in records] == [4 / 6, 1.0]
    assert [record["epoch"] for _, record in records] == [1, 1]
    assert [record["passes"] for _, record in records] == [60.0, 90.0]


def test_peak_memory_is_measured_only_when_asked_for() -> None:
    step, loader = task()
    assert train(step, loader, Budget("steps", 3))["peak_bytes"] == 0
    step, loader = task()
    assert train(step, loader, Budget("steps", 3), watch_memory=True)["peak_bytes"] > 0


def test_watching_memory_changes_no_weight() -> None:
    weights = []
    for watch in (False, True):
        step, loader = task()
        train(step, loader, Budget("steps", 5), watch_memory=watch)
        weights.append(torch.cat([p.detach().flatten() for p in step.run.parameters]))
    assert torch.equal(*weights)


class Growing(Method):
    """Asks for a batch larger by one after every step."""

    slug = "growing"

    def setup(self, run):  # type: ignore[no-untyped-def]
        run.batch_size = 2

    def step(self, state, inner):  # type: ignore[no-untyped-def]
        state.run.batch_size += 1
        return inner(state)


def test_the_batch_size_that_a_method_asks_for_holds_from_the_next_step_on() -> None:
    step, loader = task((Growing(),))
    sizes: list[int] = []
    step.optimizer.register_step_post_hook(lambda *_: sizes.append(step.run.counts.forward - sum(sizes)))
    train(step, loader, Budget("steps", 7))
    # What is left of the 20 examples is cut in nearly equal batches of at most 2, 3, 4, 5, 6 and 7.
    assert sizes == [2, 3, 4, 4, 4, 3, 7]
    assert step.run.epoch == 1


def test_the_order_that_a_method_asks_for_at_an_epochs_end_is_that_of_the_next_one() -> None:
    class Backwards(Method):
        slug = "backwards"
        seen: list[list[int]] = []

        def loss(self, state: State, inner: Inner) -> Tensor:
            self.seen.append(state.batch["index"].tolist())
            return inner(state)

        def epoch_end(self, run: Run) -> None:
            run.sampler = lambda rows, targets, generator: rows.flip(0)

    step, loader = task((Backwards(),), examples=10)
    train(step, loader, Budget("steps", 4))
    assert Backwards.seen[2:] == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]
