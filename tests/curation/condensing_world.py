"""Numbers, a small network and a bench for tests of condensers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from repertory.datasets import Examples, Normaliser, Splits
from repertory.recipe import Part, Recipe
from repertory.scenarios.condensation import CondensationBench
from repertory.training.budget import Budget


def wave(*shape: int, step: float) -> Tensor:
    """Return the same numbers wherever this is run."""
    values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * step + 0.5)
    return values.view(*shape)


def convnet(classes: int = 3) -> nn.Sequential:
    """Return a convolutional network for 1 x 4 x 4 images whose weights are waves, in float64."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.GroupNorm(3, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, classes),
    ).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(wave(*parameter.shape, step=0.7 + 0.31 * number) + (number == 2))
    return model


def bench_of(inputs: Tensor, targets: Tensor, per_class: int, model: str, seed: int = 0, **options: Any) -> Any:
    """Return a bench on some examples, which are normalised for it."""
    train = Examples(inputs, targets)
    splits = Splits(train, train, train, None, Normaliser.fit(inputs), {"train": list(range(len(targets)))}, targets)
    recipe = Recipe(Part(model, options), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))
    return CondensationBench(
        recipe,
        splits,
        in_shape=tuple(inputs.shape[1:]),
        outputs=int(targets.max()) + 1,
        task="classification",
        seed=seed,
        budget=Budget("steps", 1),
        per_class=per_class,
    )
