"""Does what enters a projection head hold more of what the labels leave out than what leaves it?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for, seeded
from repertory.layers.projection_head import ProjectedNetwork, ProjectionHead, linear_probe
from repertory.losses import ContrastiveLoss
from repertory.testing.worlds import batches, digits, mlp

WIDTH, EPOCHS, BATCH, NOISE = 64, 40, 128, 0.1
ARMS = {"none": "identity", "mlp": "mlp", "fixed": "fixed"}


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of 8 x 8 pixels in a row, each shifted by up to one pixel and with Gaussian noise."""
    windows = nn.functional.pad(images.view(-1, 8, 8), (1, 1, 1, 1)).unfold(1, 8, 1).unfold(2, 8, 1)
    down, right = torch.randint(3, (2, len(images)), generator=generator)
    shifted = windows[torch.arange(len(images)), down, right].flatten(1)
    return shifted + NOISE * torch.randn(shifted.shape, generator=generator)


def run(seed: int) -> dict[str, float]:
    """Train on parity through each head; return accuracies of probes for the ten digits before and behind it."""
    world = digits(seed)
    values: dict[str, float] = {}
    for name, kind in ARMS.items():
        encoder = mlp([64, 256, WIDTH], seed)
        with seeded(seed, "head"):
            model = ProjectedNetwork(nn.Sequential(encoder, ProjectionHead(WIDTH, kind, kappa=1.05)))
        step = Step(model, torch.optim.Adam(model.parameters(), lr=1e-3), ContrastiveLoss(temperature=0.1))
        order, draws = generator_for(seed, "order"), generator_for(seed, "views")
        for _ in range(EPOCHS):
            for batch in batches(world.inputs, world.targets % 2, BATCH, order):
                views = [view(batch["input"], draws) for _ in range(2)]
                step((torch.cat(views), batch["target"].repeat(2)))
            step.end_epoch()
        with torch.no_grad():
            train, test = model.both(world.inputs), model.both(world.test_inputs)
        for place, features, test_features in zip(("before", "behind"), train, test):
            values[f"{name}/{place}"] = linear_probe(features, world.targets, test_features, world.test_targets)
    return values


CLAIM = Claim(
    slug="projection-head",
    claim="Trained on coarse labels, a network holds more of the finer classes before a projection head than behind "
    "it, and than it would without a head; a fixed head that reweights coordinates gains about as much.",
    paper="CIFAR-10 and CIFAR-100 with coarse labels, UrbanCars and shifted versions of ImageNet: representations from "
    "before the head are the better ones where the later task is not the one trained for; the fixed head is reported "
    "to gain as much.",
    experiment="scikit-learn digits, half for training; labels are parity, two views a digit (shift by up to one "
    "pixel, Gaussian noise 0.1). Perceptron 64-256-64, supervised contrastive loss at temperature 0.1, Adam 1e-3, 40 "
    "epochs, batches of 128, 8 seeds. No head, a head 64-64-64 with ReLU, and the fixed head with kappa 1.05. "
    "Logistic regression for the ten digits on standardised features, judged on the test half.",
    statements=(
        Statement("Before the MLP more than behind it", left="mlp/before", right="mlp/behind", above=0.0),
        Statement("Before the MLP more than without a head", left="mlp/before", right="none/before", above=0.0),
        Statement("Before the fixed head more than without", left="fixed/before", right="none/before", above=0.0),
        Statement(
            "Before the fixed head within 2 points of before the MLP",
            left="fixed/before",
            right="mlp/before",
            above=-0.02,
        ),
    ),
    run=run,
    seeds=8,
)
