"""FixMatch against a plain loop, its loss by hand, and the limits in which it is the baseline."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SAM, FixMatch
from repertory.algorithms.fixmatch import fixmatch_loss
from repertory.core import Method
from repertory.errors import ConflictError, OptionError


def network(norm: bool = False) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def batches(count: int = 3) -> tuple[list[tuple[Tensor, Tensor]], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    labelled = [
        (torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(count)
    ]
    views = [[torch.randn(10, 6, generator=generator) for _ in range(2)] for _ in range(count)]
    return labelled, [{"input": both[0], "views": both} for both in views]


def step_of(methods: list[Method], norm: bool = False, **options: Any) -> Step:
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    streams = {"unlabelled": options.pop("unlabelled", batches()[1])}
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods, streams=streams, classes=3, **options)


def trained(step: Step) -> list[Tensor]:
    for batch in batches()[0]:
        step(batch)
    return [value.detach() for value in step.run.model.state_dict().values()]


@pytest.mark.parametrize("norm", [False, True])
def test_equals_a_plain_loop_with_one_forward_pass(norm: bool) -> None:
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kept = 0
    for (inputs, targets), stream in zip(*batches()):
        output = model(torch.cat([inputs, *stream["views"]]))
        loss = nn.functional.cross_entropy(output[:4], targets)
        for weak, strong in zip(output[4:14].detach(), output[14:]):
            sure, label = weak.softmax(0).max(0)
            if sure >= 0.8:
                loss = loss + 0.5 * -strong.log_softmax(0)[label] / 10
                kept += 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 < kept < 30
    own = trained(step_of([FixMatch(threshold=0.8, weight=0.5)], norm))
    torch.testing.assert_close(own, [value.detach() for value in model.state_dict().values()], rtol=1e-4, atol=1e-6)


def test_only_sure_examples_count_and_the_mean_is_over_all() -> None:
    odds = torch.tensor([[0.96, 0.04], [0.94, 0.06], [0.02, 0.98]])
    strong = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, math.log(3.0)]])
    expected = (math.log(2.0) + math.log(4.0 / 3.0)) / 3
    assert fixmatch_loss(odds.log(), strong).item() == pytest.approx(expected, rel=1e-6)


def test_an_example_exactly_at_the_threshold_counts() -> None:
    assert fixmatch_loss(torch.zeros(1, 2), torch.zeros(1, 2), threshold=0.5).item() == pytest.approx(math.log(2.0))


def test_where_nothing_is_sure_the_loss_and_its_gradient_are_zero() -> None:
    strong = torch.randn(5, 3, requires_grad=True)
    loss = fixmatch_loss(torch.zeros(5, 3), strong)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(strong.grad, torch.zeros(5, 3))


def test_gradients_reach_strong_views_alone_and_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    weak = (4 * torch.randn(6, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    strong = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: fixmatch_loss(weak, logits, 0.8), (strong,))
    fixmatch_loss(weak, strong, 0.8).backward()
    assert weak.grad is None


def test_half_precision_loses_no_confidence() -> None:
    weak = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.bfloat16)
    exact = weak.double().softmax(1).max().item()
    assert (
        fixmatch_loss(weak, torch.zeros(1, 3), exact - 1e-4) > 0 == fixmatch_loss(weak, torch.zeros(1, 3), exact + 1e-4)
    )


def test_reduces_to_the_baseline_bit_for_bit_when_weight_is_zero() -> None:
    for norm in (False, True):
        assert all(map(torch.equal, trained(step_of([FixMatch(weight=0)], norm)), trained(step_of([], norm))))


def test_passes_of_all_examples_are_counted() -> None:
    step = step_of([FixMatch()])
    trained(step)
    assert (step.run.counts.forward, step.run.counts.backward) == (3 * 24, 3 * 24)
    plain = step_of([FixMatch(weight=0)])
    trained(plain)
    assert (plain.run.counts.forward, plain.run.counts.backward) == (3 * 4, 3 * 4)


def test_works_beside_sam_on_the_labelled_output() -> None:
    class Witness(Method):
        slug = "witness"

        def loss(self, state: Any, inner: Any) -> Tensor:
            values = inner(state)
            assert len(values) == len(state.output) == 4
            return values

    step = step_of([Witness(), SAM(rho=0.05), FixMatch(threshold=0.5)])
    trained(step)
    assert step.run.counts.forward == 2 * 3 * 24


def test_a_stream_without_views_is_refused_with_what_to_yield() -> None:
    step = step_of([FixMatch()], unlabelled=[{"input": torch.zeros(3, 6)}])
    with pytest.raises(ConflictError, match=r"'views': \[weak, strong\]"):
        step(batches()[0][0])


def test_views_of_another_shape_are_refused() -> None:
    step = step_of([FixMatch()], unlabelled=[{"input": torch.zeros(3, 5), "views": [torch.zeros(3, 5)] * 2}])
    with pytest.raises(ConflictError, match="give all of them one shape"):
        step(batches()[0][0])


def test_a_step_without_the_stream_is_refused() -> None:
    model = network()
    with pytest.raises(ConflictError, match="stream:unlabelled"):
        Step(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), [FixMatch()], classes=3)


@pytest.mark.parametrize(
    "options", [{"threshold": 1.1}, {"threshold": -0.1}, {"weight": -1.0}, {"ratio": 0}, {"ratio": 1.5}]
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        FixMatch(**options)
