"""What share of a step of CoKe its clusters take: looking up the labels, and assigning the batch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from repertory import Step
from repertory.algorithms import CoKe
from repertory.models.small import small_cnn

EXAMPLES, BATCH = 2048, 128


def share(views: int, side: int, channels: int, epochs: int) -> float:
    """Return the share of the processor time of the steps after the first epoch, in which no weight changes."""
    spent = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            result = call(*given)
            spent += time.process_time() - start
            return result

        return run

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, channels, side, side, generator=generator)
    method = CoKe(views=views)
    model = small_cnn((channels, side, side), 10)
    optimizer = torch.optim.AdamW(model.parameters())
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method], epochs=epochs + 1, examples=EXAMPLES)
    for name in ("_targets", "_assign"):
        setattr(method, name, timed(getattr(method, name)))
    total = 0.0
    for epoch in range(epochs + 1):
        start, spent = time.process_time(), 0.0 if epoch <= 1 else spent
        for rows in torch.randperm(EXAMPLES, generator=generator).split(BATCH):
            versions = [inputs[rows] + 0.1, inputs[rows] - 0.1]
            step({"input": inputs[rows], "views": versions, "index": rows})
        step.end_epoch()
        total += time.process_time() - start if epoch else 0.0
    return spent / total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| images | views | share of a step |\n| --- | --- | --- |")
    for side, channels in ((8, 1), (32, 3)):
        for views in (1, 2):
            print(f"| {channels} x {side} x {side} | {views} | {share(views, side, channels, given.epochs):.3f} |")


if __name__ == "__main__":
    main()
