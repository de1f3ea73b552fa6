"""What it costs to make a batch, with and without views, beside the step that the batch is for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import timm
import torch
from timing import print_table, ratios
from torch import Tensor, nn

from repertory import Step
from repertory.datasets import Normaliser
from repertory.models.small import small_cnn
from repertory.training import BatchLoader

BATCH, EXAMPLES, CLASSES = 64, 256, 10
KINDS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "flipped and shifted": {"augment": "flip-shift"},
    "two random views": {"augment": "flip-shift", "views": 2},
    "weak and strong views": {"augment": "flip-shift", "views": "weak-strong"},
}
PHOTOS = 48
"""Side from which on the views of photos are timed too, against a larger network."""
for _name in ("two random views", "weak and strong views"):
    KINDS[f"{_name} of photos"] = {**KINDS[_name], "kind_of_views": "photo"}


def batches(loader: BatchLoader) -> Iterator[dict[str, Any]]:
    """Yield batches without end."""
    for source in repeat(loader):
        yield from source


def making(images: Tensor, options: dict[str, Any]) -> Callable[[], object]:
    """Return a call that makes one batch."""
    stream = batches(
        BatchLoader(
            images,
            torch.arange(EXAMPLES) % CLASSES,
            batch_size=BATCH,
            normaliser=Normaliser.fit(images),
            **options,
        )
    )
    return lambda: next(stream)


def step(network: nn.Module, side: int) -> Callable[[], object]:
    """Return a call that makes one update with a ready batch."""
    made = Step(network, torch.optim.AdamW(network.parameters()), nn.CrossEntropyLoss())
    batch = (torch.randn(BATCH, 3, side, side), torch.arange(BATCH) % CLASSES)
    return lambda: made(batch)


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 32, 64, 224])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for side in arguments.sides:
        images = torch.randint(0, 256, (EXAMPLES, 3, side, side), dtype=torch.uint8)
        table = {f"step: small convolutional network, {side}x{side}": step(small_cnn((3, side, side), CLASSES), side)}
        baseline = next(iter(table))
        kinds = {name: given for name, given in KINDS.items() if side >= PHOTOS or "kind_of_views" not in given}
        table |= {f"batch: {name}": making(images, options) for name, options in kinds.items()}
        if side >= PHOTOS:
            table[f"step: ResNet-18, {side}x{side}"] = step(timm.create_model("resnet18", num_classes=CLASSES), side)
        print_table(f"{BATCH} images of {side}x{side}", ratios(table, baseline, rounds=arguments.rounds, calls=3))


if __name__ == "__main__":
    main()
