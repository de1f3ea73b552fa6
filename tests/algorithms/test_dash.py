"""Dash's threshold, selection and loss by hand, against the released code, and in the limit in which it is FixMatch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import Dash, FixMatch
from repertory.algorithms.dash import dash_losses, dynamic_threshold
from repertory.core import Method
from repertory.core.state import Run, State
from repertory.errors import OptionError

RELEASED = json.loads((Path(__file__).parent / "dash_released.json").read_text())


def batches() -> tuple[list[tuple[Tensor, Tensor]], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    labelled = [(torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(3)]
    views = [[torch.randn(10, 6, generator=generator) for _ in range(2)] for _ in range(3)]
    return labelled, [{"input": both[0], "views": both} for both in views]


def step_of(methods: list[Method], norm: bool = False) -> Step:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    streams = {"unlabelled": batches()[1]}
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods, streams=streams, classes=3, epochs=1)


def trained(step: Step) -> list[Tensor]:
    for batch in batches()[0]:
        step(batch)
    return [value.detach() for value in step.run.model.state_dict().values()]


def logits(count: int = 50, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, classes, generator=generator), torch.randn(count, classes, generator=generator)


def threshold_after(completed: int, start: float = 2.3) -> tuple[float, bool]:
    value, hard = dynamic_threshold(torch.tensor(start), completed, gamma=1.27, factor=1.0001, floor=0.05)
    return value.item(), bool(hard)


@pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"epoch {case['epoch']}")
def test_equals_the_released_code(case: dict[str, Any]) -> None:
    weak, strong = torch.tensor(RELEASED["weak"]), torch.tensor(RELEASED["strong"])
    threshold, hard = torch.tensor(math.inf), torch.tensor(False)
    if case["threshold"] < 500:  # what stands for infinity there
        threshold, hard = dynamic_threshold(torch.tensor(2.3), case["intervals"], gamma=1.27, factor=1.0, floor=0.05)
        assert threshold.item() == pytest.approx(case["clipped"], rel=1e-5)
    assert bool(hard) == case["hard"]
    assert dash_losses(weak, strong, threshold, hard, temperature=0.5)[1].int().tolist() == case["mask"]
    method = Dash(weight=0.9)
    method.warming, method.threshold, method.hard = False, threshold, hard
    state = State(Run(nn.Identity(), nn.CrossEntropyLoss()), {})
    assert 0.9 * method.unlabelled_loss(state, weak, strong).item() == pytest.approx(case["loss"], rel=1e-5)


def test_the_threshold_shrinks_geometrically_to_its_floor_where_targets_become_classes() -> None:
    assert [round(threshold_after(m)[0], 4) for m in range(3)] == [2.3002, 1.8112, 1.4261]
    assert threshold_after(16) == (pytest.approx(0.0502, abs=5e-5), False)
    assert threshold_after(17) == (pytest.approx(0.05), True)


@pytest.mark.parametrize("threshold", [0.05, 0.5, math.log(4.0) + 1e-6])
def test_selects_what_is_more_probable_than_a_bar_by_brute_force(threshold: float) -> None:
    weak, strong = logits()
    selected = dash_losses(weak, strong, threshold, hard=True)[1].tolist()
    assert selected == [max(row.softmax(0).tolist()) > math.exp(-threshold) for row in weak.double()]
    assert all(selected) == (threshold > math.log(4.0))


def test_a_loss_at_the_threshold_is_not_selected() -> None:
    assert not dash_losses(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor(2.0).log(), hard=True)[1]


@pytest.mark.parametrize("hard", [False, True])
def test_losses_are_those_of_a_loop_over_examples(hard: bool) -> None:
    weak, strong = logits(8)
    expected = []
    for w, s in zip(weak, strong):
        powers = w.softmax(0) ** 2  # temperature 0.5
        target = torch.eye(4)[w.argmax()] if hard else powers / powers.sum()
        expected.append(-(target * s.log_softmax(0)).sum())
    torch.testing.assert_close(dash_losses(weak, strong, 1.0, hard)[0], torch.stack(expected))


def test_gradients_reach_strong_views_alone() -> None:
    weak, strong = (value.double().requires_grad_() for value in logits(6))
    assert torch.autograd.gradcheck(lambda s: (dash_losses(weak, s, 0.5, False)[0]).sum(), (strong,))
    dash_losses(weak, strong, 0.5, False)[0].sum().backward()
    assert weak.grad is None


def fixed(**options: Any) -> Dash:
    """Dash whose threshold is 0.5 from the first step on, and whose targets are classes."""
    method = Dash(gamma=1.0, floor=0.5, warmup=0.0, normalise="batch", **options)

    def hold(run: Run) -> None:
        method.warming, method.threshold, method.hard = False, 0.5, True

    method._set_threshold = hold  # type: ignore[method-assign]
    return method


def test_with_a_constant_threshold_and_a_mean_over_the_batch_it_is_fixmatch() -> None:
    dash, fixmatch = (trained(step_of([m])) for m in (fixed(), FixMatch(threshold=math.exp(-0.5))))
    torch.testing.assert_close(dash, fixmatch)
    baseline = trained(step_of([]))
    assert not torch.allclose(dash[0], baseline[0])


def test_reduces_to_the_baseline_bit_for_bit_when_weight_is_zero() -> None:
    for start in ("unlabelled", "labelled"):
        found = trained(step_of([Dash(weight=0, start=start)], norm=True))
        assert all(map(torch.equal, found, trained(step_of([], norm=True))))


def test_an_empty_selection_gives_no_loss_and_finite_gradients() -> None:
    method = Dash()
    method.warming, method.threshold, method.hard = False, torch.tensor(0.05), torch.tensor(True)
    strong = torch.randn(5, 3, requires_grad=True)
    state = State(Run(nn.Identity(), nn.CrossEntropyLoss()), {})
    loss = method.unlabelled_loss(state, torch.zeros(5, 3), strong)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(strong.grad, torch.zeros(5, 3))


class Schedule(Method):
    """Sets the share of training before each step, and notes what the method inside it makes of it."""

    slug = "schedule"

    def __init__(self, dash: Dash, shares: list[float]) -> None:
        super().__init__()
        self.inside = (dash,)
        self.shares = shares
        self.seen: list[tuple[float, bool]] = []
        self.noted: list[list[float]] = []

    def step(self, state: State, inner: Any) -> Tensor:
        state.run.progress = self.shares[len(self.seen)]
        loss = inner(state)
        dash = self.inside[0]
        self.seen.append((float(dash.threshold), bool(dash.hard)))
        self.noted.append(dash.running.tolist())
        return loss


def test_the_warm_up_takes_everything_and_the_threshold_starts_at_its_running_loss() -> None:
    dash = Dash(warmup=0.2, decay_every=0.1, gamma=2.0, factor=1.0, floor=0.0)
    schedule = Schedule(dash, [0.0, 0.1, 0.2, 0.29, 0.3, 0.41])
    step = step_of([schedule, dash])
    model, losses = step.run.model, []
    labelled, streams = batches()
    for number in range(6):
        weak, strong = (model(view).detach() for view in streams[number % 3]["views"])
        if number < 2:
            losses.append(dash_losses(weak, strong, math.inf, False)[0].mean().item())
        step(labelled[number % 3])
    start = (0.1 * 0.9 * losses[0] + 0.1 * losses[1]) / (1 - 0.9**2)
    assert schedule.seen[:2] == [(math.inf, False)] * 2
    assert [value for value, _ in schedule.seen[2:]] == pytest.approx([start, start, start / 2, start / 4], rel=1e-4)
    assert schedule.noted[1:] == [schedule.noted[1]] * 5  # frozen after the warm-up


def test_a_warm_up_on_labels_leaves_the_views_out_and_starts_at_the_labelled_loss() -> None:
    dash = Dash(warmup=0.5, start="labelled", factor=1.0)
    schedule = Schedule(dash, [0.0, 0.6])
    step = step_of([schedule, dash])
    labelled = batches()[0]
    first = step(labelled[0]).item()
    assert step.run.counts.forward == 4
    step(labelled[1])
    assert step.run.counts.forward == 4 + 24
    completed = math.floor((0.6 - 0.5) / 0.009)
    assert schedule.seen[1][0] == pytest.approx(max(0.05, first * 1.27**-completed), rel=1e-5)


def test_the_mean_is_over_selected_examples_or_over_the_batch() -> None:
    weak, strong = logits(10)
    state = State(Run(nn.Identity(), nn.CrossEntropyLoss()), {})
    found = {}
    for normalise in ("selected", "batch"):
        method = Dash(normalise=normalise)
        method.warming, method.threshold, method.hard = False, 0.3, True
        found[normalise] = method.unlabelled_loss(state, weak, strong).item()
    count = int(dash_losses(weak, strong, 0.3, True)[1].sum())
    assert 0 < count < 10
    assert found["selected"] == pytest.approx(found["batch"] * 10 / count)


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"gamma": 0.9},
            {"factor": 0.0},
            {"floor": -0.1},
            {"warmup": 1.0},
            {"decay_every": 0.0},
            {"temperature": 0.0},
        ),
        *({"start": "validation"}, {"normalise": "none"}, {"weight": -1.0}, {"ratio": 0}),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Dash(**options)
