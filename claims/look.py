"""Do features learnt with LOOK on coarse labels serve the fine ones better than those of cross-entropy?"""

from __future__ import annotations

import functools

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from repertory import Method, Step
from repertory.algorithms import LOOK
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import seeded
from repertory.losses import ContrastiveLoss
from repertory.retrieval import retrieval_metrics
from repertory.testing.worlds import World, digits, mlp, predict
from repertory.training import BatchLoader

EPOCHS = 60


def pretrained(world: World, seed: int, methods: list[Method], criterion: nn.Module | None = None) -> nn.Module:
    """Train the network on five classes of two digits each, and return the part that makes its 32 features.

    Args:
        world: the digits.
        seed: of weights, order and views.
        methods: what to train with besides.
        criterion: a loss on the features; None puts a linear classifier behind them and trains with cross-entropy.
    """
    features = nn.Sequential(nn.Flatten(), *mlp([64, 256, 256, 32], seed))
    model = features
    if criterion is None:
        with seeded(seed, "classifier"):
            model = nn.Sequential(features, nn.Linear(32, 5))
        criterion = nn.CrossEntropyLoss()
    images, coarse = world.inputs.view(-1, 1, 8, 8), world.targets // 2
    loader = BatchLoader(images, coarse, batch_size=64, seed=seed, views=1)
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    step = Step(model, optimizer, criterion, methods, epochs=EPOCHS, examples=len(images), classes=5, seed=seed)
    for _ in range(EPOCHS):
        for batch in loader:
            step({**batch, "input": batch["views"][0]})
        step.end_epoch()
    return features


def probed(features: nn.Module, world: World) -> float:
    """Return the test accuracy of a logistic regression on the features, fitted to the digits themselves."""
    train, test = (predict(features, rows.view(-1, 1, 8, 8)) for rows in (world.inputs, world.test_inputs))
    scaler = StandardScaler().fit(train.numpy())
    probe = LogisticRegression(max_iter=2000).fit(scaler.transform(train.numpy()), world.targets.numpy())
    return float(probe.score(scaler.transform(test.numpy()), world.test_targets.numpy()))


def run(seed: int) -> dict[str, float]:
    """Pre-train with each loss and return Recall@1 and the probe's accuracy on the digits."""
    world = digits(seed)
    arms: dict[str, tuple[list[Method], nn.Module | None]] = {
        "cross-entropy": ([], None),
        "look": ([LOOK()], None),
        "all neighbours": ([LOOK(k=len(world.inputs))], None),
        "contrastive": ([], ContrastiveLoss(temperature=0.1)),
    }
    values: dict[str, float] = {}
    for name, (methods, criterion) in arms.items():
        features = pretrained(world, seed, methods, criterion)
        embedded: Tensor = predict(features, world.test_inputs.view(-1, 1, 8, 8))
        values[f"{name}/recall"] = retrieval_metrics(embedded, world.test_targets)["recall_at_1"]
        values[f"{name}/probe"] = probed(features, world)
    return values


CLAIM = Claim(
    slug="look",
    claim="Features pre-trained with LOOK serve another task better than those of cross-entropy and of the supervised "
    "contrastive loss.",
    paper="Pre-trained on ImageNet with its labels, LOOK transfers to several downstream data sets better than "
    "cross-entropy and than other supervised and self-supervised pre-training.",
    experiment="scikit-learn digits, half for training, with five coarse labels of two digits each; views moved by up "
    "to a pixel with noise of 0.1; perceptron 64-256-256-32 with a linear classifier behind; Adam, learning rate 1e-3, "
    "60 epochs, batches of 64, 10 seeds. LOOK with its defaults: a bank, k = 90, temperature 0.1; beside it all of the "
    "bank as neighbours (recorded, not judged), and the supervised contrastive loss on the 32 features at temperature "
    "0.1. Judged by the digit on the other half: Recall@1 of searching each among the others by cosine, and a logistic "
    "regression on the features, fitted to the training digits.",
    statements=(
        Statement(
            "Recall@1 is higher than with cross-entropy", left="look/recall", right="cross-entropy/recall", above=0.0
        ),
        Statement(
            "The probe is more accurate than with cross-entropy",
            left="look/probe",
            right="cross-entropy/probe",
            above=0.0,
        ),
        Statement(
            "Recall@1 is higher than with the supervised contrastive loss",
            left="look/recall",
            right="contrastive/recall",
            above=0.0,
        ),
    ),
    run=run,
    seeds=10,
)
