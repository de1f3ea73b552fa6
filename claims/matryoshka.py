"""Are the first numbers of one embedding as good as an embedding trained at that size?"""

from __future__ import annotations

import torch
from torch import Tensor

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import seeded
from repertory.losses import AdaptiveRetrieval, MRLLoss
from repertory.testing.worlds import accuracy, digit_pairs, mlp, predict, train

_SIZES = [4, 8, 16, 32, 64]
_SMALL, _WHOLE = 8, 64


def nearest_class(gallery: Tensor, classes: Tensor, queries: Tensor, targets: Tensor, *sizes: int) -> float:
    """Return the share of queries whose nearest neighbour, searched by the sizes in turn, is of their class."""
    _, places = AdaptiveRetrieval(sizes).fit(gallery).search(queries, k=1)
    return float((classes[places[:, 0]] == targets).double().mean())


def run(seed: int) -> dict[str, float]:
    """Train nested, ordinary and small embeddings of digit pairs; return 1-NN and classifier accuracies."""
    world = digit_pairs(seed)
    values: dict[str, float] = {}
    embeddings = {}
    for name, sizes in (("nested", _SIZES), ("ordinary", [_WHOLE]), ("separate", [_SMALL])):
        model = mlp([128, 256, sizes[-1]], seed)
        with seeded(seed, "head"):
            criterion = MRLLoss(world.classes, sizes)
        step = Step(model, torch.optim.Adam([*model.parameters(), *criterion.parameters()], lr=1e-3), criterion)
        train(step, world.inputs, world.targets, epochs=20, batch_size=100, seed=seed)
        rows, tests = predict(model, world.inputs), predict(model, world.test_inputs)
        embeddings[name] = rows, tests
        with torch.no_grad():
            for size, logits in zip(sizes, criterion.head(tests)):
                values[f"{name}/{size}/head"] = accuracy(logits, world.test_targets)
    rows, tests = embeddings["ordinary"]
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:_SMALL].T
    embeddings["pca"] = (rows - rows.mean(0)) @ axes, (tests - rows.mean(0)) @ axes
    for name, sizes in (
        ("nested", [_SMALL]),
        ("nested", [_WHOLE]),
        ("nested", [_SMALL, _WHOLE]),
        ("ordinary", [_SMALL]),
        ("ordinary", [_WHOLE]),
        ("separate", [_SMALL]),
        ("pca", [_SMALL]),
    ):
        rows, tests = embeddings[name]
        found = nearest_class(rows, world.targets, tests, world.test_targets, *sizes)
        values[f"{name}/{' to '.join(map(str, sizes))}/nn"] = found
    return values


CLAIM = Claim(
    slug="matryoshka",
    claim="A prefix of one nested embedding is as good as a model trained at that size and better than a shortened "
    "ordinary embedding; the whole loses nothing; a search by the prefix, ranked by the whole, finds what the whole "
    "finds.",
    paper="ResNet-50 on ImageNet, sizes 8 to 2048: nested prefixes match separately trained models in linear and 1-NN "
    "accuracy (1-NN up to 2 % better at small sizes), far above slimmed or SVD-shortened embeddings there; adaptive "
    "retrieval with 16 dimensions and ranking of 200 by 2048 is as accurate as a search by 2048 at 14 times less time.",
    experiment="Pairs of scikit-learn's digits side by side, 100 classes, 5000 for training and 1500 of other digits "
    "for the test; perceptron 128-256-64, sizes 4, 8, 16, 32, 64 with a classifier each (MRL), against an ordinary one "
    "of 64 and a separate one of 8; Adam, learning rate 1e-3, cosine, 20 epochs, batches of 100, 5 seeds. 1-NN: the "
    "nearest training pair by cosine. PCA: of the ordinary embedding, fitted on the training pairs. Shortlist of 200.",
    statements=(
        Statement(
            "The first 8 of 64 are as good as a model of 8, within 1 point of 1-NN accuracy",
            left="nested/8/nn",
            right="separate/8/nn",
            above=-0.01,
        ),
        Statement(
            "The first 8 of 64 are as good as a model of 8, within 1 point of the classifiers' accuracy",
            left="nested/8/head",
            right="separate/8/head",
            above=-0.01,
        ),
        Statement(
            "The first 8 are better than those of an ordinary embedding",
            left="nested/8/nn",
            right="ordinary/8/nn",
            above=0.0,
        ),
        Statement(
            "The first 8 are better than the ordinary embedding reduced to 8 by PCA",
            left="nested/8/nn",
            right="pca/8/nn",
            above=0.0,
        ),
        Statement(
            "All 64 are as good as the ordinary embedding, within 1 point",
            left="nested/64/nn",
            right="ordinary/64/nn",
            above=-0.01,
        ),
        Statement(
            "Search by 8 and ranking of 200 by 64 is as good as search by 64, within half a point",
            left="nested/8 to 64/nn",
            right="nested/64/nn",
            above=-0.005,
        ),
    ),
    run=run,
    seeds=5,
)
