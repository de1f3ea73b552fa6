"""Products with the Hessian and the Gauss-Newton matrix, and Lanczos, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from repertory.core.curvature import Curvature, lanczos
from repertory.errors import OptionError


def problem(activation: nn.Module | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), activation or nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3


def dense_hessian(model: nn.Module, criterion: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        return criterion(functional_call(model, weights, (inputs,)), targets)

    found: Tensor = torch.autograd.functional.hessian(loss, flat)
    return found


def test_hessian_equals_the_dense_one() -> None:
    model, inputs, targets = problem()
    curvature = Curvature(model, nn.CrossEntropyLoss(), inputs, targets)
    torch.testing.assert_close(curvature.dense(), dense_hessian(model, nn.CrossEntropyLoss(), inputs, targets))


def test_gauss_newton_is_the_jacobian_around_the_loss_in_the_output() -> None:
    model, inputs, targets = problem()
    curvature = Curvature(model, nn.CrossEntropyLoss(), inputs, targets, matrix="ggn")
    outputs = model(inputs)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])
        for value in outputs.reshape(-1)
    ]
    jacobian = torch.stack(rows).view(8, 3, -1)
    p = outputs.softmax(1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(curvature.dense(), torch.einsum("bip,bij,bjq->pq", jacobian, inner, jacobian) / 8)


def test_gauss_newton_equals_the_hessian_of_a_linear_network() -> None:
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 2), torch.randn(6, 3), torch.arange(6) % 2
    pair = [Curvature(model, nn.CrossEntropyLoss(), inputs, targets, matrix=m).dense() for m in ("hessian", "ggn")]
    torch.testing.assert_close(pair[0], pair[1])


def test_the_gradient_and_the_loss_are_those_of_backward() -> None:
    model, inputs, targets = problem()
    curvature = Curvature(model, nn.CrossEntropyLoss(), inputs, targets)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    torch.testing.assert_close(curvature.gradient, torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    assert curvature.loss == pytest.approx(loss.item())


def test_a_piecewise_linear_loss_has_no_curvature() -> None:
    curvature = Curvature(nn.Linear(2, 1, bias=False), nn.L1Loss(), torch.ones(3, 2), torch.full((3, 1), 9.0))
    assert curvature(torch.ones(2)).tolist() == [0.0, 0.0]


def test_frozen_parameters_are_left_out() -> None:
    model, inputs, targets = problem()
    model[0].weight.requires_grad_(False)
    curvature = Curvature(model, nn.CrossEntropyLoss(), inputs, targets)
    assert curvature.size == sum(p.numel() for p in model.parameters()) - 12


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True).double()
    inputs, targets = torch.randn(2, 3, 8, dtype=torch.float64), torch.zeros(2, 3, 8, dtype=torch.float64)
    direction = torch.randn(sum(p.numel() for p in layer.parameters()), dtype=torch.float64)
    found = Curvature(layer, nn.MSELoss(), inputs, targets)(direction)
    start, gradients = nn.utils.parameters_to_vector(layer.parameters()).detach(), []
    for shift in (1e-5, -1e-5):
        nn.utils.vector_to_parameters(start + shift * direction, layer.parameters())
        gradients.append(Curvature(layer, nn.MSELoss(), inputs, targets).gradient)
    torch.testing.assert_close(found, (gradients[0] - gradients[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_lanczos_with_all_steps_gives_all_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = lanczos(lambda v: matrix @ v, 12, steps=50, like=matrix)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix))
    assert found.weights.sum().item() == pytest.approx(1.0)
    for vector, value in ((found.largest, found.values[-1]), (found.smallest, found.values[0])):
        torch.testing.assert_close(matrix @ vector, value * vector)


def test_lanczos_finds_the_ends_of_a_large_spectrum_in_single_precision() -> None:
    spectrum = torch.linspace(-1, 1, 4000)
    spectrum[0], spectrum[-1] = -3.0, 10.0
    found = lanczos(lambda v: spectrum * v, 4000, steps=40)
    assert found.values[-1].item() == pytest.approx(10.0, rel=1e-4)
    assert found.values[0].item() == pytest.approx(-3.0, rel=1e-4)


def test_lanczos_moments_are_those_of_the_spectrum() -> None:
    spectrum = torch.linspace(0, 1, 300, dtype=torch.float64)
    found = [
        lanczos(lambda v: spectrum * v, 300, steps=15, generator=torch.Generator().manual_seed(s), like=spectrum)
        for s in range(60)
    ]
    means = torch.stack([(f.values * f.weights).sum() for f in found])
    assert means.mean().item() == pytest.approx(0.5, abs=4 * means.std().item() / 60**0.5)


def test_lanczos_stops_where_the_space_is_exhausted() -> None:
    found = lanczos(lambda v: 2.0 * v, 5, steps=5)
    assert found.values.tolist() == pytest.approx([2.0])


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="steps"):
        lanczos(lambda v: v, 3, steps=0)
    with pytest.raises(OptionError, match="matrix"):
        Curvature(nn.Linear(1, 1), nn.MSELoss(), torch.ones(1, 1), torch.ones(1, 1), matrix="fisher")
