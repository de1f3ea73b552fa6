"""Norms of the gradients of single examples against one backward pass an example, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core import gradient_norms
from repertory.core.gradient_norms import example_gradient_norms


def summed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


def looped(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = []
    for x, y in zip(inputs, targets):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(summed(model(x[None]), y[None]), parameters, allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None) ** 0.5)
    return torch.stack(norms)


class Tokens(nn.Module):
    """A linear layer and a normalisation over several places of an example, wide enough for either way to multiply."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh()).mean(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x).tanh()))


class Folded(nn.Module):
    """Puts the places of all examples in the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1, dilation=2, groups=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (2, 1), bias=False), nn.GroupNorm(2, 4), nn.ELU(inplace=True), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


DIRECT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 4)), (5,)),
    "few places": (lambda: Tokens(64), (2, 3)),
    "many places": (lambda: Tokens(4), (30, 3)),
    "convolutions": (convolutions, (2, 9, 8)),
    "sequences": (sequences, (2, 11)),
}
MAPPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "called twice": (Twice, (3,)),
    "places as examples": (Folded, (2, 3)),
    "tied weights": (Tied, (4,)),
    "another kind of layer": (lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU()), (3,)),
    "another padding": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(32, 4)), (1, 4, 4)
    ),
}  # fmt: skip


def prepared(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = make().double()
    inputs = torch.randn(9, *shape, dtype=torch.float64)
    model(inputs)  # sizes of lazy layers, and statistics
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), inputs, torch.arange(9) % 4


@pytest.mark.parametrize("name", [*DIRECT, *MAPPED])
def test_norms_equal_those_of_a_backward_pass_an_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets = prepared(*{**DIRECT, **MAPPED}[name])
    mapped = []
    one_by_one = gradient_norms._one_by_one
    monkeypatch.setattr(gradient_norms, "_one_by_one", lambda *a: mapped.append(name) or one_by_one(*a))
    found = example_gradient_norms(model, inputs, targets, summed, chunk=4)
    torch.testing.assert_close(found, looped(model, inputs, targets), rtol=1e-10, atol=1e-12)
    assert bool(mapped) == (name in MAPPED)
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("frozen", [r"0\.weight", r"0\.bias", r"1\.", r"7\.weight", r"[0-6]\."])
def test_frozen_parameters_do_not_count(frozen: str) -> None:
    import re

    model, inputs, targets = prepared(*DIRECT["convolutions"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.match(frozen, name) is None)
    found = example_gradient_norms(model, inputs, targets, summed, chunk=9)
    torch.testing.assert_close(found, looped(model, inputs, targets), rtol=1e-10, atol=1e-12)


def test_a_layer_that_is_not_used_adds_nothing() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 4), "unused": nn.Linear(3, 4)}).double()
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 4
    found = example_gradient_norms(model, inputs, targets, summed, chunk=5)
    torch.testing.assert_close(found, looped(model, inputs, targets), rtol=1e-10, atol=1e-12)


def test_hooks_are_gone_afterwards() -> None:
    model, inputs, targets = prepared(*DIRECT["linear"])
    example_gradient_norms(model, inputs, targets, summed, chunk=9)
    assert not any(module._forward_hooks for module in model.modules())
