"""Norms of the gradients of single examples: all at once against one example after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import print_table, ratios
from torch import Tensor, nn

from repertory.curation.data_diet import grand
from repertory.models.small import mlp, small_cnn

EXAMPLES, CLASSES = 256, 10


def one_by_one(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the norms by a backward pass an example."""
    norms = []
    parameters = list(model.parameters())
    for x, y in zip(inputs, targets):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), parameters)
        norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    return torch.stack(norms)


def calls(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Return both ways on the same examples, which must agree."""
    inputs, targets = torch.randn(EXAMPLES, *shape), torch.arange(EXAMPLES) % CLASSES
    model.eval()
    torch.testing.assert_close(grand(model, inputs, targets), one_by_one(model, inputs, targets), rtol=1e-3, atol=1e-5)
    return {
        "one by one": lambda: one_by_one(model, inputs, targets),
        "all at once": lambda: grand(model, inputs, targets),
        "last layer, in closed form": lambda: grand(model, inputs, targets, mode="last_layer"),
    }


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    for name, model, shape in (
        ("multilayer perceptron on 64 numbers", mlp((64,), CLASSES), (64,)),
        ("small convolutional network on 8x8 images", small_cnn((1, 8, 8), CLASSES), (1, 8, 8)),
        ("small convolutional network on 32x32 images", small_cnn((3, 32, 32), CLASSES), (3, 32, 32)),
    ):
        print_table(f"{EXAMPLES} gradients, {name}", ratios(calls(model, shape), "one by one", rounds=given.rounds))


if __name__ == "__main__":
    main()
