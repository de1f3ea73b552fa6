"""Small worlds that tests and claims share: data built once and kept, a small network, a training loop."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.randomness import generator_for, seeded
from repertory.core.step import Step
from repertory.datasets.noise import flip_labels


@dataclass(frozen=True)
class World:
    """A classification problem in memory. Worlds are cached and shared: clone a tensor before you change it.

    Args:
        inputs: training inputs `(train, ...)`, float32.
        targets: training classes `(train,)`, int64.
        test_inputs: test inputs `(test, ...)`, float32.
        test_targets: test classes `(test,)`, int64.
        classes: number of classes.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int


@functools.cache
def mnist1d() -> World:
    """Return MNIST-1D as its package makes it: 4000 training and 1000 test signals `(n, 40)`, 10 classes."""
    import numpy as np
    from mnist1d.data import make_dataset

    # The package seeds the global generators of Python and NumPy.
    states = random.getstate(), np.random.get_state()
    try:
        made = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    inputs, test_inputs = (torch.from_numpy(made[name]).float() for name in ("x", "x_test"))
    targets, test_targets = (torch.from_numpy(made[name]).long() for name in ("y", "y_test"))
    return World(inputs, targets, test_inputs, test_targets, 10)


@functools.cache
def digits(seed: int = 0, share: float = 0.5) -> World:
    """Return scikit-learn's 1797 handwritten digits, 64 pixels in [0, 1], split at random.

    Args:
        seed: of the split.
        share: share of the digits to train on.

    >>> digits().inputs.shape, digits().test_inputs.shape
    (torch.Size([898, 64]), torch.Size([899, 64]))
    """
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(targets), generator=generator_for(seed, "digits"))
    cut = int(share * len(order))
    train, test = order[:cut], order[cut:]
    x, y = torch.from_numpy(inputs).float() / 16, torch.from_numpy(targets).long()
    return World(x[train], y[train], x[test], y[test], 10)


@functools.cache
def digit_pairs(seed: int = 0, train: int = 5000, test: int = 1500) -> World:
    """Return pairs of handwritten digits side by side, 100 classes: inputs `(n, 128)` in [0, 1], left half first.

    Training and test pairs are made of different halves of the digits.

    Args:
        seed: of the halves and of the pairs.
        train: number of training pairs.
        test: number of test pairs.

    >>> world = digit_pairs(train=10, test=5)
    >>> world.inputs.shape, world.test_targets.shape, world.classes
    (torch.Size([10, 128]), torch.Size([5]), 100)
    """
    world, generator = digits(seed), generator_for(seed, "digit pairs")

    def pairs(inputs: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        left, right = torch.randint(len(inputs), (2, count), generator=generator)
        return torch.cat([inputs[left], inputs[right]], 1), 10 * targets[left] + targets[right]

    trained, tested = (
        pairs(world.inputs, world.targets, train),
        pairs(world.test_inputs, world.test_targets, test),
    )
    return World(*trained, *tested, classes=100)


def noisy_labels(targets: Tensor, rate: float, seed: int, classes: int = 10) -> Tensor:
    """Return the labels with `round(rate * n)` of them, drawn at random, moved to another class at random.

    Args:
        targets: classes `(n,)`, int64; not changed.
        rate: share of labels to change, in [0, 1).
        seed: of the draw, which has a generator of its own.
        classes: number of classes.

    >>> labels = torch.zeros(10, dtype=torch.int64)
    >>> int((noisy_labels(labels, 0.3, seed=0) != labels).sum())
    3
    """
    return flip_labels(targets.clone(), rate, classes, generator_for(seed, "noise"))


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Return linear layers with ReLU between them, with the weights that torch draws from `seed`.

    >>> [layer.out_features for layer in mlp([40, 256, 10]) if isinstance(layer, nn.Linear)]
    [256, 10]
    """
    layers: list[nn.Module] = []
    with seeded(seed, "weights"):
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(inputs: Tensor, targets: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Yield one pass in a new random order, as mappings with `input`, `target` and `index`."""
    for index in torch.randperm(len(inputs), generator=generator).split(batch_size):
        yield {"input": inputs[index], "target": targets[index], "index": index}


def train(step: Step, inputs: Tensor, targets: Tensor, *, epochs: int, batch_size: int = 128, seed: int = 0) -> None:
    """Train for `epochs` passes, the learning rate falling to 0 along a cosine over all steps.

    The order of the batches depends on `seed` alone, so that runs of different methods are paired. Each group
    of the optimizer falls from its own rate, which stays in the group as `initial_lr`.

    Args:
        step: what to call on each batch; its model is left in training mode.
        inputs: training inputs `(n, ...)`.
        targets: training targets `(n, ...)`.
        epochs: passes over the data.
        batch_size: examples a step.
        seed: of the order.
    """
    generator = generator_for(seed, "order")
    total = epochs * math.ceil(len(inputs) / batch_size)
    taken = 0
    step.run.model.train()
    for _ in range(epochs):
        for batch in batches(inputs, targets, batch_size, generator):
            share = (1 + math.cos(math.pi * taken / total)) / 2
            for group in step.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * share
            step(batch)
            taken += 1
        step.end_epoch()


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits `(n, classes)` in evaluation mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in inputs.split(1000)])
    model.train(was_training)
    return logits


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share of examples whose largest logit is their class.

    >>> accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
    0.5
    """
    return float((logits.argmax(1) == targets).double().mean())


def nll(logits: Tensor, targets: Tensor) -> float:
    """Return the mean negative log-likelihood in nats."""
    return float(nn.functional.cross_entropy(logits, targets))


def ece(logits: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over bins of confidence.

    Args:
        logits: `(n, classes)`.
        targets: classes `(n,)`.
        bins: number of equal bins of [0, 1], each closed on the right.

    >>> ece(torch.tensor([[100.0, 0.0], [100.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    confidence, chosen = logits.double().softmax(1).max(1)
    gaps = (chosen == targets).double() - confidence
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(torch.zeros(bins, dtype=torch.double).index_add_(0, place, gaps).abs().sum() / len(targets))
