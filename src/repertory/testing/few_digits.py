"""Digits cut for condensation, experts on them, and what a few examples teach: shared by the claims of condensers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from repertory.core.randomness import generator_for
from repertory.curation.trajectories import ExpertTraining, ExpertTrajectories, FlatNetwork
from repertory.testing.worlds import accuracy, digits, mlp, predict

Part = tuple[Tensor, Tensor]
"""Inputs `(n, 64)` and classes `(n,)`."""

SIZES = (64, 64, 10)
"""Of the perceptron that is expert, student and what is judged."""

_HELD = 257


@functools.cache
def parts(seed: int) -> tuple[Part, Part, Part]:
    """Return 1000 digits to condense, 257 to choose by and 540 to test on, all scaled by the first ones' statistics.

    >>> [len(targets) for _, targets in parts(0)]
    [1000, 257, 540]
    """
    world = digits(seed, share=0.7)
    mean, deviation = world.inputs[_HELD:].mean(), world.inputs[_HELD:].std()
    inputs, test = (world.inputs - mean) / deviation, (world.test_inputs - mean) / deviation
    held = inputs[:_HELD], world.targets[:_HELD]
    return (inputs[_HELD:], world.targets[_HELD:]), held, (test, world.test_targets)


def experts_on(part: Part, training: ExpertTraining, count: int, seed: int) -> tuple[FlatNetwork, ExpertTrajectories]:
    """Train experts; their first weights and batches depend on the seed alone, whatever the training is.

    Returns:
        The last one's network, and the snapshots of all.
    """
    network = FlatNetwork(mlp(SIZES))
    trajectories = ExpertTrajectories(count, training.epochs, network.size)
    for number in range(count):
        network = FlatNetwork(mlp(SIZES, 100 * (seed + 1) + number))
        generator = generator_for(seed, f"expert {number}")
        training.train(network, *part, trajectories, number, generator=generator)
    return network, trajectories


def final_accuracy(network: FlatNetwork, trajectories: ExpertTrajectories, part: Part) -> float:
    """Return the experts' mean accuracy on a part after their last epoch; the network is left as the last of them."""
    found = []
    for number in range(len(trajectories)):
        network.load(trajectories.read(number, trajectories.epochs, trajectories.epochs)[0])
        found.append(accuracy(predict(network.module, part[0]), part[1]))
    return fmean(found)


def taught(
    examples: Part, rate: float, seed: int, judged: Sequence[Part], steps: int = 300, networks: int = 5
) -> list[float]:
    """Return the mean accuracies, on each of the parts to judge by, of fresh networks trained on all examples at once.

    Args:
        examples: the condensed set.
        rate: learning rate, which falls to 0 along a cosine; momentum 0.9, weight decay 5e-4.
        seed: of the networks.
        judged: parts to predict.
        steps: of each network.
        networks: how many.
    """
    found = []
    for number in range(networks):
        model = mlp(SIZES, 1000 * (seed + 1) + number)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(model(examples[0]), examples[1]).backward()
            optimizer.step()
        found.append([accuracy(predict(model, x), y) for x, y in judged])
    return [fmean(each) for each in zip(*found)]
