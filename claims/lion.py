"""Is Lion at a smaller learning rate as good as AdamW, and does it gain on AdamW as batches grow?"""

from __future__ import annotations

import torch
from torch import nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.optim import Lion
from repertory.testing.worlds import accuracy, mlp, mnist1d, predict, train

BATCH_SIZES = (32, 128, 1024)
ADAMW_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LION_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
VALIDATION = 800


def best(name: str, batch_size: int, seed: int) -> tuple[float, float]:
    """Train once a learning rate; return the test accuracy of the best on validation, and its rate."""
    world = mnist1d()
    found = []
    for rate in ADAMW_RATES if name == "adamw" else LION_RATES:
        model = mlp([40, 256, 256, 10], seed)
        optimizer: torch.optim.Optimizer
        if name == "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        else:
            optimizer = Lion(model.parameters(), lr=rate, weight_decay=0.1)
        step = Step(model, optimizer, nn.CrossEntropyLoss())
        inputs, targets = world.inputs[VALIDATION:], world.targets[VALIDATION:]
        train(step, inputs, targets, epochs=20, batch_size=batch_size, seed=seed)
        validation = accuracy(predict(model, world.inputs[:VALIDATION]), world.targets[:VALIDATION])
        found.append((validation, accuracy(predict(model, world.test_inputs), world.test_targets), rate))
    _, test, rate = max(found)
    return test, rate


def run(seed: int) -> dict[str, float]:
    """Return both optimizers' test accuracies at each batch size, and what Lion gains over AdamW."""
    values: dict[str, float] = {}
    for size in BATCH_SIZES:
        for name in ("adamw", "lion"):
            values[f"{name}/accuracy/{size}"], values[f"{name}/rate/{size}"] = best(name, size, seed)
        values[f"gain/{size}"] = values[f"lion/accuracy/{size}"] - values[f"adamw/accuracy/{size}"]
    return values


CLAIM = Claim(
    slug="lion",
    claim="At a learning rate about three times smaller Lion is as accurate as AdamW with half its state, and gains on "
    "it as batches grow.",
    paper="ViT-B/16 on ImageNet: Lion is ahead of AdamW by up to 2 points; its best batch size is 4096 where AdamW's "
    "is 256. Recommended: learning rate 3 to 10 times smaller, weight decay as many times larger.",
    experiment="MNIST-1D, 3200 signals to train on, 800 to choose the learning rate, 1000 to test; a perceptron "
    "40-256-256-10, 20 epochs with a cosine schedule, batches of 32, 128 and 1024, 5 seeds. AdamW with weight decay "
    "0.01 at learning rates 3e-4, 1e-3, 3e-3 and 1e-2, Lion with 0.1 at 1e-4, 3e-4, 1e-3 and 3e-3.",
    statements=(
        Statement(
            "At batches of 128 Lion is at most 2 points behind AdamW",
            left="lion/accuracy/128",
            right="adamw/accuracy/128",
            above=-0.02,
        ),
        Statement("Lion gains more at batches of 1024 than of 32", left="gain/1024", right="gain/32", above=0.0),
        Statement(
            "Lion's best learning rate at batches of 128 is smaller than AdamW's",
            left="lion/rate/128",
            right="adamw/rate/128",
            below=0.0,
        ),
    ),
    run=run,
    seeds=5,
)
