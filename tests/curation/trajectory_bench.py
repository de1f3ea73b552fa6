"""What the tests of trajectory matching share: tiny options, networks, and a bench without a trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from repertory.datasets.splits import Examples, Normaliser

SMALL = {"iterations": 3, "steps": 4, "ahead": 2, "starts": 2, "lr_inputs": 1.0, "rate": 0.1, "experts": 2}
SMALL |= {"expert_epochs": 4, "expert_lr": 0.1, "expert_batch": 5}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=generator, dtype=value.dtype) / 2
    return model


def perceptron(seed: int = 0) -> nn.Module:
    return drawn(nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), seed)


def convolutions(seed: int = 0) -> nn.Module:
    return drawn(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), seed)


class Bench:
    """Twelve real examples of three classes, and networks of one hidden layer."""

    seed = 0
    outputs = 3
    per_class = 2
    device = torch.device("cpu")

    def __init__(self, shape: tuple[int, ...] = (6,), network: Any = perceptron) -> None:
        train = Examples(20 + 5 * draw(12, *shape), torch.arange(12) % 3)
        self.splits = SimpleNamespace(train=train, normaliser=Normaliser(torch.tensor(20.0), torch.tensor(5.0)))
        self.network = network
        self.counts = {"forward": 0, "backward": 0}
        self.shares: list[float] = []

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(map(ord, name)))

    def fresh_model(self, name: str) -> Any:
        with torch.random.fork_rng():
            return self.network(sum(map(ord, name)))

    def predict(self, model: nn.Module, part: str) -> Tensor:
        self.predicted = model.eval()
        with torch.no_grad():
            return model(self.splits.normaliser(getattr(self.splits, part).inputs))

    def count(self, *, forward: int, backward: int) -> None:
        self.counts["forward"] += forward
        self.counts["backward"] += backward

    def progress(self, share: float) -> None:
        self.shares.append(share)
