"""Can half of a data set go without loss if the examples that a few early networks get right are left out?"""

from __future__ import annotations

import math

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for
from repertory.curation.data_diet import el2n, select
from repertory.testing.worlds import World, accuracy, batches, digits, mlp, noisy_labels, predict

STEPS, BATCH, EPOCHS, RUNS = 1500, 128, 4, 4


def fit(inputs: Tensor, targets: Tensor, steps: int, seed: int) -> nn.Module:
    """Make the first `steps` steps of a training of `STEPS` steps with a cosine schedule."""
    model = mlp([64, 64, 10], seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step, generator, taken = Step(model, optimizer, nn.CrossEntropyLoss()), generator_for(seed, "order"), 0
    while taken < steps:
        for batch in batches(inputs, targets, BATCH, generator):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * taken / STEPS))
            step(batch)
            taken += 1
            if taken == steps:
                break
    return model


def scores(inputs: Tensor, targets: Tensor, seed: int) -> Tensor:
    """Return EL2N after 4 epochs, averaged over 4 networks."""
    steps = EPOCHS * math.ceil(len(inputs) / BATCH)
    runs = (fit(inputs, targets, steps, 1000 * (seed + 1) + run) for run in range(RUNS))
    return torch.stack([el2n(predict(model, inputs), targets) for model in runs]).mean(0)


def redundant(world: World) -> tuple[Tensor, Tensor]:
    """Return the training digits and three copies of each, one pixel to the left, right and up."""
    padded = functional.pad(world.inputs.view(-1, 8, 8), (1, 1, 1, 1))
    corners = ((1, 1), (1, 2), (1, 0), (2, 1))
    copies = [padded[:, top : top + 8, left : left + 8].flatten(1) for top, left in corners]
    return torch.cat(copies), world.targets.repeat(4)


def run(seed: int) -> dict[str, float]:
    """Return test accuracies by data, share and choice, and how well EL2N finds wrong labels."""
    world = digits(seed, share=0.7)
    found: dict[str, float] = {}

    def trained(name: str, inputs: Tensor, targets: Tensor, rows: Tensor | None = None) -> None:
        inputs, targets = (inputs, targets) if rows is None else (inputs[rows], targets[rows])
        found[name] = accuracy(predict(fit(inputs, targets, STEPS, seed), world.test_inputs), world.test_targets)

    for data, (inputs, targets), shares in (
        ("copies", redundant(world), (0.5, 0.25)),
        ("plain", (world.inputs, world.targets), (0.7,)),
    ):
        trained(f"{data}/all", inputs, targets)
        ranked = scores(inputs, targets, seed)
        for share in shares:
            count = round(share * len(targets))
            trained(f"{data}/{share:.0%}/hard", inputs, targets, select(ranked, count))
            trained(f"{data}/{share:.0%}/easy", inputs, targets, select(ranked, count, "window"))
            drawn = select(ranked, count, "random", generator=generator_for(seed, "random"))
            trained(f"{data}/{share:.0%}/random", inputs, targets, drawn)
    noisy = noisy_labels(world.targets, 0.1, seed)
    wrong = noisy != world.targets
    return {
        **found,
        "wrong labels/el2n": float(roc_auc_score(wrong, scores(world.inputs, noisy, seed))),
        "wrong labels/chance": 0.5,
    }


CLAIM = Claim(
    slug="data-diet",
    claim="Half of a redundant data set can go without loss of accuracy when the half that early networks find hard "
    "is kept, and not when a random or the easy half is.",
    paper="CIFAR-10, ResNet-18: half of the training set goes without loss of test accuracy by EL2N after 20 of 200 "
    "epochs, averaged over 10 networks, at the same number of steps.",
    experiment="scikit-learn digits, 1257 for training, each with three copies moved by one pixel (5028 rows), 540 for "
    "testing; MLP 64-64-10, SGD with the paper's learning rate 0.1, Nesterov momentum 0.9, weight decay 5e-4 and "
    "batches of 128, cosine schedule, 1500 steps whatever is kept. EL2N after 4 epochs, mean of 4 networks; as in the "
    "paper scoring is not counted. Besides, 70 % of the digits without copies, and 10 % wrong labels among them. "
    "8 seeds.",
    statements=(
        Statement(
            "The hard half is as good as all (within half a point)",
            left="copies/50%/hard",
            right="copies/all",
            above=-0.005,
        ),
        Statement(
            "The hard half beats a random half by a point",
            left="copies/50%/hard",
            right="copies/50%/random",
            above=0.01,
        ),
        Statement("A random half beats the easy half", left="copies/50%/random", right="copies/50%/easy", above=0.0),
        Statement(
            "The hard quarter beats a random quarter",
            left="copies/25%/hard",
            right="copies/25%/random",
            above=0.0,
        ),
        Statement(
            "Without copies the hard 70 % are no worse than a random 70 % (within half a point)",
            left="plain/70%/hard",
            right="plain/70%/random",
            above=-0.005,
        ),
        Statement(
            "The score finds wrong labels (area under the curve above 0.9)",
            left="wrong labels/el2n",
            right="wrong labels/chance",
            above=0.4,
        ),
    ),
    run=run,
    seeds=8,
)
