"""SAM against a plain loop, and its perturbation against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repertory import Step
from repertory.algorithms import SAM
from repertory.algorithms.sam import ascent_offsets
from repertory.errors import OptionError


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return model


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(4)]


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_a_plain_loop(adaptive: bool) -> None:
    model, rho = network(), 0.05
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches():
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in model.parameters()]
        norm = torch.cat([(s * p.grad).flatten() for s, p in zip(scales, model.parameters())]).norm()
        with torch.no_grad():
            for s, p in zip(scales, model.parameters()):
                p += rho * s**2 * p.grad / norm
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), before):
                p.copy_(old)
        optimizer.step()

    own = network()
    step = Step(
        own,
        torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        methods=[SAM(rho=rho, adaptive=adaptive)],
    )
    for batch in batches():
        step(batch)
    torch.testing.assert_close([p.detach() for p in own.parameters()], [p.detach() for p in model.parameters()])


def test_offsets_have_length_rho_over_all_tensors_together() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    offsets = ascent_offsets(list(model.parameters()), rho=0.3)
    assert torch.cat([o.flatten() for o in offsets]).norm().item() == pytest.approx(0.3, rel=1e-5)


def test_adaptive_perturbation_does_not_depend_on_the_scale_of_a_layer() -> None:
    """Scaling one layer by a and the next by 1/a leaves a ReLU network as it was, perturbed or not."""
    inputs, targets = batches()[0]

    def perturbed_loss(scale: float) -> float:
        model = network()
        with torch.no_grad():
            model[0].weight *= scale
            model[0].bias *= scale
            model[2].weight /= scale
        nn.functional.cross_entropy(model(inputs), targets).backward()
        offsets = ascent_offsets(list(model.parameters()), rho=0.5, adaptive=True)
        with torch.no_grad():
            for parameter, offset in zip(model.parameters(), offsets):
                parameter += offset
            return nn.functional.cross_entropy(model(inputs), targets).item()

    assert perturbed_loss(4.0) == pytest.approx(perturbed_loss(1.0), rel=1e-4)


@pytest.mark.parametrize("options", [{"rho": -0.1}, {"rho": "0.1"}, {"adaptive": 1}])
def test_bad_options_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        SAM(**options)  # type: ignore[arg-type]
