"""Do coarse labels and instance discrimination together find fine classes better than either alone?"""

from __future__ import annotations

import functools

import torch
from torch import nn

from repertory import Method, Step
from repertory.algorithms import CoIns
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import seeded
from repertory.losses import NormalisedSoftmaxLoss
from repertory.retrieval import retrieval_metrics
from repertory.testing.worlds import digits, mlp, predict
from repertory.training import BatchLoader

EPOCHS = 80


def run(seed: int) -> dict[str, float]:
    """Train on two kinds of coarse labels with one term, the other, and both; return how digits are retrieved."""
    world = digits(seed)
    images, tests = world.inputs.view(-1, 1, 8, 8), world.test_inputs.view(-1, 1, 8, 8)
    values: dict[str, float] = {}
    for task, coarse, classes in (("pairs", world.targets // 2, 5), ("parity", world.targets % 2, 2)):
        arms: dict[str, list[Method]] = {
            "coarse": [],
            "instance": [CoIns(weight=0.0, size=512, momentum=0.99)],
            "coins": [CoIns(size=512, momentum=0.99)],
        }
        for name, methods in arms.items():
            model = nn.Sequential(nn.Flatten(), *mlp([64, 256, 256, 32], seed))
            with seeded(seed, "head"):
                criterion = NormalisedSoftmaxLoss(classes, dim=32, temperature=0.2)
            optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
            step = Step(model, optimizer, criterion, methods, examples=len(images), classes=classes, seed=seed)
            loader = BatchLoader(images, coarse, batch_size=64, seed=seed, views=2)
            for _ in range(EPOCHS):
                for batch in loader:
                    step({**batch, "input": batch["views"][0]})
                step.end_epoch()
            found = retrieval_metrics(predict(model, tests), world.test_targets)
            values[f"{name}/{task}/recall"] = found["recall_at_1"]
            values[f"{name}/{task}/map"] = found["map_at_r"]
    return values


CLAIM = Claim(
    slug="coins",
    claim="Coarse classification and instance discrimination on one embedding retrieve fine classes better than either "
    "alone.",
    paper="On several data sets, ImageNet with 11 coarse classes among them, fine classes are retrieved better than "
    "with coarse classification alone and with instance classification alone.",
    experiment="scikit-learn digits, half for training, with coarse labels: five of two digits each, and parity; views "
    "moved by up to a pixel with noise of 0.1; perceptron 64-256-256-32 whose output is the embedding; Adam, learning "
    "rate 1e-3, 80 epochs, batches of 64, 5 seeds. CoIns with weight 0.5, temperature 0.2, a queue of 512 and momentum "
    "0.99; instance discrimination is the same with weight 0; coarse classification is a softmax on cosines at this "
    "temperature. Judged by the digit on the other half, each searched among the others by cosine.",
    statements=tuple(
        Statement(
            f"{label}: Recall@1 is higher than with {words} alone",
            left=f"coins/{task}/recall",
            right=f"{other}/{task}/recall",
            above=0.0,
        )
        for task, label in (("pairs", "Five labels of two digits"), ("parity", "Parity"))
        for other, words in (("coarse", "coarse classification"), ("instance", "instance discrimination"))
    ),
    run=run,
    seeds=5,
)
