"""A step of FixMatch and of Dash against a bare forward and backward pass of the same images."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import print_table, ratios
from torch import nn

from repertory import Step
from repertory.algorithms import Dash, FixMatch
from repertory.core import Method
from repertory.models.small import small_cnn

LABELLED, UNLABELLED, CLASSES = 8, 56, 10


def candidates(side: int, channels: int) -> dict[str, Callable[[], object]]:
    """Return the calls; the views are made beforehand, `loader.py` has what making them costs."""
    shape = (channels, side, side)
    inputs, target = torch.randn(LABELLED, *shape), torch.arange(LABELLED) % CLASSES
    weak, strong = torch.randn(UNLABELLED, *shape), torch.randn(UNLABELLED, *shape)

    def network() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = small_cnn(shape, CLASSES)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def bare() -> Callable[[], object]:
        model, optimizer = network()
        images, labels = torch.cat([inputs, weak, strong]), torch.arange(LABELLED + 2 * UNLABELLED) % CLASSES

        def call() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return call

    def with_method(method: Method) -> Callable[[], object]:
        model, optimizer = network()
        stream = itertools.repeat({"input": weak, "views": [weak, strong]})
        options = {"streams": {"unlabelled": stream}, "classes": CLASSES, "epochs": 1}
        step = Step(model, optimizer, nn.CrossEntropyLoss(), [method], **options)
        return lambda: step({"input": inputs, "target": target})

    return {"bare": bare(), "FixMatch": with_method(FixMatch()), "Dash": with_method(Dash(warmup=0.0))}


def main() -> None:
    """Print a table a size of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for side, channels in ((8, 1), (32, 3), (64, 3)):
        found = ratios(candidates(side, channels), "bare", rounds=given.rounds, calls=5)
        print_table(f"{channels} x {side} x {side}, {LABELLED} labelled and {UNLABELLED} unlabelled images", found)


if __name__ == "__main__":
    main()
