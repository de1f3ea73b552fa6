"""Does a layer that mixes the batch in training help the rare classes of a long tail?"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for
from repertory.layers.batchformer import BatchFormerTraining
from repertory.testing.worlds import digits, mlp, predict, train

CLASSES, IMBALANCE, FEW = 10, 30.0, 20


class BalancedSoftmaxLoss(nn.Module):
    """Cross-entropy on logits to which the logarithm of each class's share of the training set is added."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", (counts / counts.sum()).log())
        self.reduction = "mean"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss for logits `(batch, classes)` and classes `(batch,)`."""
        return nn.functional.cross_entropy(logits + self.prior, target, reduction=self.reduction)


def long_tail(targets: Tensor, seed: int) -> Tensor:
    """Return rows of which class c keeps a share of `IMBALANCE ** (-c / 9)`, and which classes are chosen at random."""
    generator = generator_for(seed, "long tail")
    kept = []
    for place, label in enumerate(torch.randperm(CLASSES, generator=generator).tolist()):
        rows = (targets == label).nonzero().flatten()
        share = IMBALANCE ** (-place / (CLASSES - 1))
        order = torch.randperm(len(rows), generator=generator)
        kept.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(kept)


def run(seed: int) -> dict[str, float]:
    """Train with and without the layer; return the mean accuracy over classes, of all and of those with few images."""
    world = digits(seed)
    rows = long_tail(world.targets, seed)
    inputs, targets = world.inputs[rows], world.targets[rows]
    counts = targets.bincount(minlength=CLASSES)
    values: dict[str, float] = {}
    for name in ("plain", "batchformer"):
        model = mlp([64, 128, 64, CLASSES], seed)
        optimizer = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
        methods = [BatchFormerTraining(lr_scale=0.1)] if name == "batchformer" else []
        step = Step(model, optimizer, BalancedSoftmaxLoss(counts), methods, seed=seed)
        train(step, inputs, targets, epochs=120, batch_size=64, seed=seed)
        right = (predict(model, world.test_inputs).argmax(1) == world.test_targets).double()
        accuracies = torch.stack([right[world.test_targets == label].mean() for label in range(CLASSES)])
        values[f"{name}/accuracy"] = float(accuracies.mean())
        values[f"{name}/few"] = float(accuracies[counts < FEW].mean())
    return values


CLAIM = Claim(
    slug="batchformer",
    claim="A layer that mixes the batch in training, and is left out at test time, makes a network more accurate on "
    "long-tailed data, above all on the rare classes.",
    paper="ImageNet-LT, ResNet-50, RIDE with 3 experts: 53.6 to 54.1 % in all, 33.2 to 35.1 % on classes with fewer "
    "than 20 images; PaCo 57.0 to 57.4 % and 39.1 to 42.1 %.",
    experiment="scikit-learn digits, half for training, of which the classes in random order keep shares from 1 down "
    "to 1/30; perceptron 64-128-64, balanced softmax, SGD 0.05 with momentum 0.9 and weight decay 5e-4, cosine, 120 "
    "epochs, batches of 64, 20 seeds. BatchFormer with the authors' settings for balanced softmax (4 heads, dropout "
    "0.5, a tenth of the learning rate). Mean of the classes' accuracies on the test half; few: over classes with "
    "fewer than 20 training images.",
    statements=(
        Statement("More accurate over all classes", left="batchformer/accuracy", right="plain/accuracy", above=0.0),
        Statement("More accurate on classes with few images", left="batchformer/few", right="plain/few", above=0.0),
    ),
    run=run,
    seeds=20,
)
