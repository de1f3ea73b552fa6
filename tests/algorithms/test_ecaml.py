"""ECAML against sums over pairs, the released layer's mean over its draws, and what must not have its gradient."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.algorithms import ECAML, LOOK, EnergyConfusion
from repertory.algorithms.ecaml import confusion_energy, row_norm_penalty
from repertory.core import Method
from repertory.errors import DataError, OptionError
from repertory.losses import BinomialDevianceLoss, NormalisedSoftmaxLoss

RELEASED = json.loads((Path(__file__).parent / "ecaml_released.json").read_text(encoding="utf-8"))


def batch(size: int = 9, width: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(size, width, generator=generator, dtype=torch.float64)
    return rows, torch.randint(classes, (size,), generator=generator)


def by_pairs(embeddings: Tensor, targets: Tensor) -> float:
    values = [
        0.5 * float((embeddings[i] - embeddings[j]).square().sum())
        for i in range(len(targets))
        for j in range(i + 1, len(targets))
        if targets[i] != targets[j]
    ]
    return sum(values) / len(values)


def test_energy_is_the_mean_over_pairs_of_different_classes() -> None:
    embeddings, targets = batch()
    assert confusion_energy(embeddings, targets).item() == pytest.approx(by_pairs(embeddings, targets), rel=1e-12)
    far = embeddings + 1e4
    assert confusion_energy(far, targets).item() == pytest.approx(by_pairs(embeddings, targets), rel=1e-9)


def test_two_classes_have_the_energy_of_their_means_and_spreads() -> None:
    embeddings, _ = batch(size=8)
    targets = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    first, second = embeddings[:3], embeddings[3:]
    gap = (first.mean(0) - second.mean(0)).square().sum()
    spread = first.var(0, correction=0).sum() + second.var(0, correction=0).sum()
    torch.testing.assert_close(confusion_energy(embeddings, targets), (gap + spread) / 2)


def test_energy_is_the_released_layers_mean_over_its_draws() -> None:
    embeddings = torch.tensor(RELEASED["embeddings"], dtype=torch.float64)
    targets = torch.tensor(RELEASED["targets"])
    different = (targets[:, None] != targets).sum().item() / 2
    # Each drawn pair counts its energy over the number of all pairs of different classes.
    expected = confusion_energy(embeddings, targets).item() * RELEASED["pairs_drawn"] / different
    assert abs(RELEASED["energy_mean"] - expected) < 3 * RELEASED["energy_error"]
    assert RELEASED["energy_error"] < 2e-3 * expected


def test_energy_draws_to_the_other_classes_and_moves_nothing_as_a_whole() -> None:
    embeddings = torch.tensor([[0.0], [0.0], [2.0], [2.0]], requires_grad=True)
    energy = confusion_energy(embeddings, torch.tensor([0, 0, 1, 1]))
    energy.log().backward()
    assert energy.item() == pytest.approx(2.0)
    # Each example is in two of the four pairs, at distance 2: 2 * 2 / 4, divided by the energy.
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad, torch.tensor([[-0.5], [-0.5], [0.5], [0.5]]))


def test_guard_is_zero_for_unit_rows_and_has_the_released_gradient() -> None:
    weight = batch()[0].requires_grad_()
    assert row_norm_penalty(functional.normalize(weight, dim=1)).item() == pytest.approx(0.0, abs=1e-20)
    (0.5 * row_norm_penalty(weight)).backward()
    expected = 4 * 0.5 / len(weight) * (weight.square().sum(1, keepdim=True) - 1) * weight
    torch.testing.assert_close(weight.grad, expected.detach())


def test_term_is_the_weighted_logarithm_and_the_guard() -> None:
    features, targets = batch()
    layer = nn.Linear(5, 4).double()
    energy, penalty = by_pairs(layer(features).detach(), targets), row_norm_penalty(layer.weight).item()
    found = EnergyConfusion(weight=0.3, guard=0.7)(features, layer, targets)
    assert found.item() == pytest.approx(0.3 * math.log(energy) + 0.7 * penalty)
    plain = EnergyConfusion(weight=0.3, guard=0.7, log=False)(features, layer, targets)
    assert plain.item() == pytest.approx(0.3 * energy + 0.7 * penalty)


def test_only_with_the_logarithm_does_the_scale_of_the_features_not_matter() -> None:
    features, targets = batch()
    layer = nn.Linear(5, 4, bias=False).double()
    for log in (True, False):
        term = EnergyConfusion(guard=0.0, log=log)
        small, large = (
            torch.autograd.grad(term(scale * features, layer, targets), layer.weight)[0] for scale in (1.0, 10.0)
        )
        assert torch.allclose(small, large) == log


def test_gradients_are_those_of_finite_differences() -> None:
    features, targets = batch()
    layer = nn.Linear(5, 4).double()

    def term(weight: Tensor) -> Tensor:
        made = nn.Linear(5, 4).double()
        del made.weight
        made.weight = weight  # type: ignore[assignment]
        return EnergyConfusion()(features, made, targets)

    assert torch.autograd.gradcheck(term, (layer.weight.detach().requires_grad_(),))


def test_a_batch_of_one_class_or_of_equal_embeddings_is_harmless() -> None:
    features, _ = batch()
    layer = nn.Linear(5, 4).double()
    alone = EnergyConfusion()(features, layer, torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(alone, 0.5 * row_norm_penalty(layer.weight))
    equal = EnergyConfusion()(features[:1].expand(9, -1), layer, torch.arange(9))
    # No energy at all, whose logarithm stops at 1e-12.
    torch.testing.assert_close(equal, alone + 0.13 * math.log(1e-12))
    for value in (alone, equal):
        (gradient,) = torch.autograd.grad(value, layer.weight)
        # Of the penalty alone: there is no pair of different embeddings and classes.
        (wanted,) = torch.autograd.grad(0.5 * row_norm_penalty(layer.weight), layer.weight)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float64_where_squares_overflow(dtype: torch.dtype, as_float64: Any) -> None:
    features, targets = batch()
    features = (6e4 * features / features.abs().max()).to(dtype)

    def term(weight: Tensor) -> Tensor:
        return EnergyConfusion(weight=1.0)(features, SimpleNamespace(weight=weight, in_features=5), targets)

    as_float64(term, batch(size=4)[0].to(dtype), rtol=1e-4)


def test_misuse_is_refused() -> None:
    with pytest.raises(DataError, match=r"features \(9, 5\) and targets \(9,\).*in_features=6"):
        EnergyConfusion()(batch()[0], nn.Linear(6, 2).double(), batch()[1])
    with pytest.raises(DataError, match=r"targets \(4,\)"):
        EnergyConfusion()(batch()[0], nn.Linear(5, 2).double(), torch.arange(4))
    for name in ("weight", "guard"):
        with pytest.raises(OptionError, match=f"{name}=-1"):
            ECAML(**{name: -1.0})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def gradients(criterion: nn.Module, methods: list[Method], lr: float = 0.0) -> tuple[list[Tensor], Step]:
    model = network()
    optimizer = lambda groups: torch.optim.SGD(groups, lr=lr)  # noqa: E731
    step = Step(model, optimizer, criterion, methods, classes=3)
    inputs, targets = batch()
    step({"input": inputs.float(), "target": targets, "index": torch.arange(len(targets))})
    return [p.grad for p in model.parameters() if p.grad is not None], step


@pytest.mark.parametrize("criterion", [BinomialDevianceLoss(), NormalisedSoftmaxLoss(3, dim=4), nn.CrossEntropyLoss()])
def test_the_network_below_feels_the_metric_loss_alone_bit_for_bit(criterion: nn.Module) -> None:
    plain, _ = gradients(criterion, [])
    confused, _ = gradients(criterion, [ECAML()])
    for below, other in zip(plain[:-2], confused[:-2]):
        assert torch.equal(below, other)
    assert not torch.allclose(plain[-2], confused[-2])
    # Distances do not depend on the bias.
    assert torch.equal(plain[-1], confused[-1])


def test_the_metric_layer_has_the_sum_of_both_gradients_from_one_pass() -> None:
    plain, _ = gradients(BinomialDevianceLoss(), [])
    confused, step = gradients(BinomialDevianceLoss(), [ECAML(weight=0.3, guard=0.7)])
    model, (inputs, targets) = step.run.model, batch()
    features = model[:-1](inputs.float()).detach()
    term = EnergyConfusion(0.3, 0.7)(features, model[-1], targets)
    (extra,) = torch.autograd.grad(term, model[-1].weight)
    torch.testing.assert_close(confused[-2], plain[-2] + extra)
    assert step.run.counts.forward == len(targets)


def test_without_weight_and_guard_it_is_the_metric_loss_bit_for_bit() -> None:
    plain, _ = gradients(BinomialDevianceLoss(), [])
    neutral, _ = gradients(BinomialDevianceLoss(), [ECAML(weight=0.0, guard=0.0)])
    assert all(torch.equal(a, b) for a, b in zip(plain, neutral))


def test_goes_with_another_method_that_listens_to_the_same_layer_in_either_order() -> None:
    look = {"k": 2, "memory": "batch", "features": "penultimate"}
    first, _ = gradients(nn.CrossEntropyLoss(), [ECAML(), LOOK(**look)])
    second, _ = gradients(nn.CrossEntropyLoss(), [LOOK(**look), ECAML()])
    torch.testing.assert_close(first, second)


def test_trained_with_it_classes_stand_closer_before_they_are_normalised() -> None:
    energies = []
    for methods in ([], [ECAML(weight=1.0)]):
        torch.manual_seed(1)
        model, (inputs, targets) = network(), batch(size=30)
        step = Step(model, torch.optim.SGD(model.parameters(), 0.1), NormalisedSoftmaxLoss(3, dim=4), methods)
        for _ in range(30):
            step((inputs.float(), targets))
        energies.append(confusion_energy(model(inputs.float()).detach(), targets).item())
    assert energies[1] < 0.5 * energies[0]
