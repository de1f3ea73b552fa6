"""Does attention over the batch, told by the images which of them look alike, make a classifier more accurate?"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for, seeded
from repertory.layers.relationship_batch import RBITraining, relate
from repertory.testing.worlds import accuracy, digits, mlp, train

NOISE, BATCH = 0.3, 32
PAPER: dict[str, Any] = {"train": "joint", "inference": "batch"}
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "paper": PAPER,
    "paper without relations": {**PAPER, "rpe": None},
    "default": {},
}


def noisy(images: Tensor, seed: int, part: str) -> Tensor:
    """Return the images with Gaussian noise, the same for all arms."""
    return images + NOISE * torch.randn(images.shape, generator=generator_for(seed, part))


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits `(n, classes)` in batches of the size that the network was trained with, in random order."""
    model.eval()
    return torch.cat([model(part) for part in inputs.split(BATCH)])


def run(seed: int) -> dict[str, float]:
    """Train every arm; return test accuracies."""
    world = digits(seed, share=0.3)
    inputs, test_inputs = noisy(world.inputs, seed, "train"), noisy(world.test_inputs, seed, "test")
    values: dict[str, float] = {}
    for name, options in ARMS.items():
        model: nn.Module = mlp([64, 128, 64, world.classes], seed)
        if options is not None and options.get("inference", "drop") != "drop":
            with seeded(seed, "relations"):
                model = relate(model, world.classes, **options)
        methods = [] if options is None else [RBITraining(**options)]
        adam = functools.partial(torch.optim.AdamW, lr=1e-3)
        step = Step(model, adam, nn.CrossEntropyLoss(), methods, seed=seed)
        train(step, inputs, world.targets, epochs=60, batch_size=BATCH, seed=seed)
        values[f"{name}/accuracy"] = accuracy(predict(model, test_inputs), world.test_targets)
    return values


CLAIM = Claim(
    slug="relationship-batch",
    claim="Attention over the batch between backbone and classifier, biased by how alike the images are, makes a "
    "classifier of similar images more accurate.",
    paper="On average over backbones 2.78 points more accuracy on CUB-200-2011 and 3.83 on Stanford Dogs. The code is "
    "not public; joint training and inference by batches is how the paper is read here.",
    experiment="scikit-learn digits, 30 % for training, Gaussian noise of 0.3 on pixels in [0, 1]; perceptron "
    "64-128-64, AdamW 1e-3, cosine, 60 epochs, batches of 32, 10 seeds. Paper: only mixed features are classified, "
    "test images in random batches of 32. Default: plain and mixed features share the classifier, the layer is left "
    "out at test time.",
    statements=(
        Statement(
            "The paper's reading is more accurate than the network alone",
            left="paper/accuracy",
            right="plain/accuracy",
            above=0.0,
        ),
        Statement(
            "The relations of the images add to it",
            left="paper/accuracy",
            right="paper without relations/accuracy",
            above=0.0,
        ),
        Statement(
            "Trained with both halves and left out at test time it is more accurate than the network alone",
            left="default/accuracy",
            right="plain/accuracy",
            above=0.0,
        ),
    ),
    run=run,
    seeds=10,
)
