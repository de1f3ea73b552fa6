"""ESAM and SAM against closed forms, each other, and what they must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repertory import Step
from repertory.algorithms import ESAM, SAM
from repertory.errors import ConflictError


class Quadratic(nn.Module):
    """loss = a w^2 / 2 for every example."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.weight


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.square().flatten() / 2


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return model


def batches(count: int = 4, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def trained(method: object | None, **options: object) -> list[torch.Tensor]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method] if method else [], **options)
    for batch in batches():
        step(batch)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("method", [SAM(rho=0.1), ESAM(rho=0.1, beta=1.0, gamma=1.0)])
def test_quadratic_step_by_hand(method: SAM | ESAM) -> None:
    model = Quadratic()
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), half_square, methods=[method])
    step((torch.full((1, 1), 2.0**0.5, dtype=torch.float64), torch.zeros(1)))
    # a = 2, w = 1: the ascent step is 0.1, the gradient there 2.2, so w = 1 - 0.1 * 2.2.
    assert model.weight.item() == pytest.approx(0.78, abs=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_sam_when_everything_is_kept(adaptive: bool) -> None:
    esam = trained(ESAM(rho=0.1, beta=1.0, gamma=1.0, adaptive=adaptive))
    torch.testing.assert_close(esam, trained(SAM(rho=0.1, adaptive=adaptive)), rtol=1e-5, atol=1e-6)


def test_differs_from_sam_and_from_the_base_at_its_defaults() -> None:
    esam, sam, base = trained(ESAM()), trained(SAM()), trained(None)
    assert not torch.allclose(esam[0], sam[0])
    assert not torch.allclose(esam[0], base[0])


@pytest.mark.parametrize("method", [SAM(rho=0.0), ESAM(rho=0.0, gamma=1.0)])
def test_zero_radius_equals_the_base_bit_for_bit(method: SAM | ESAM) -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained(method), trained(None)))


def test_micro_batches_do_not_change_the_update() -> None:
    whole, split = trained(ESAM(rho=0.1)), trained(ESAM(rho=0.1), accumulate=4)
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-6)


class Spy(SAM):
    """Records what the inner call saw."""

    slug = "spy"
    owns = frozenset()

    def __init__(self) -> None:
        super().__init__(rho=0.0)
        self.seen: list[tuple[int, list[torch.Tensor], list[bool], torch.Tensor]] = []

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        parameters = state.run.parameters
        weights = [p.detach().clone() for p in parameters]
        self.seen.append((state.evaluation, weights, [p.grad is not None for p in parameters], state.batch["input"]))
        return loss


def test_masked_tensors_stay_put_in_the_perturbation_and_are_still_updated() -> None:
    model, spy, esam = network(), Spy(), ESAM(rho=0.1, beta=0.5, gamma=1.0)
    only = list(model.parameters())[2]
    esam.draw = lambda run: [only]  # type: ignore[method-assign]
    start = [p.detach().clone() for p in model.parameters()]
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[esam, spy])
    step(batches()[0])
    (_, _, first_has_gradient, _), (evaluation, perturbed, second_has_gradient, _) = spy.seen
    moved = [(a - b).norm().item() for a, b in zip(perturbed, start)]
    assert evaluation == 1
    assert moved[2] == pytest.approx(2 * 0.1, rel=1e-4)
    assert sum(m > 0 for m in moved) == 1
    assert sum(first_has_gradient) == 1
    assert all(second_has_gradient)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), start))


def test_selects_the_examples_whose_loss_rises_most() -> None:
    model, spy = Quadratic(0.0), Spy()
    slopes = torch.tensor([[3.0], [1.0], [2.0], [0.0]], dtype=torch.float64)
    esam = ESAM(rho=0.1, beta=1.0, gamma=0.5)

    def linear(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.flatten()

    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), linear, methods=[esam, spy])
    step((slopes, torch.zeros(4)))
    assert sorted(spy.seen[1][3].flatten().tolist()) == [2.0, 3.0]


def test_weights_are_restored_bit_for_bit() -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())
    storages = [p.data_ptr() for p in model.parameters()]
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), methods=[ESAM(rho=0.5)])
    step(batches()[0])
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert storages == [p.data_ptr() for p in model.parameters()]


def test_running_statistics_come_from_the_first_pass_only() -> None:
    def statistics(method: object | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        step = Step(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            nn.CrossEntropyLoss(),
            methods=[method] if method else [],
        )
        step(batches()[0])
        return torch.cat([model[1].running_mean, model[1].running_var, model[1].num_batches_tracked[None]])

    assert torch.equal(statistics(ESAM(rho=0.5)), statistics(None))


def test_refuses_a_criterion_without_per_example_values() -> None:
    model = network()
    criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, methods=[ESAM()])
    with pytest.raises(ConflictError, match="one number for the batch"):
        step(batches()[0])


def test_sam_and_esam_cannot_share_a_step() -> None:
    model = network()
    with pytest.raises(ConflictError, match="sam and esam both own the slot 'ascent'"):
        Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[SAM(), ESAM()])
