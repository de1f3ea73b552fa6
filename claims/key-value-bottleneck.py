"""Does a key-value bottleneck forget less than trained layers on the same frozen encoder, without any replay?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for, seeded
from repertory.layers.key_value_bottleneck import KeyValueBottleneck, initialise_keys
from repertory.scenarios.continual import Versions
from repertory.testing.worlds import World, digits, mlp, predict, train

CODEBOOKS, EPOCHS = 64, 60
RATES = (0.001, 0.01, 0.1, 1.0)


def standardised(world: World) -> tuple[Tensor, Tensor]:
    """Return the embeddings of a frozen encoder that does nothing but scale: training and test pixels."""
    std, mean = torch.std_mean(world.inputs, 0)
    return (world.inputs - mean) / std.clamp(min=1e-3), (world.test_inputs - mean) / std.clamp(min=1e-3)


def learnt(model: nn.Module, lr: float, world: World, tasks: Sequence[Tensor], seed: int) -> dict[str, float]:
    """Train on the tasks one after the other, and return accuracy over all classes and forgetting."""
    embeddings, asked = standardised(world)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    step = Step(model, torch.optim.SGD(model.parameters(), lr=lr), criterion, seed=seed)
    versions = Versions(world.test_targets, tasks)
    for classes in tasks:
        rows = torch.isin(world.targets, classes)
        train(step, embeddings[rows], world.targets[rows], epochs=EPOCHS, batch_size=64, seed=seed)
        versions.add(predict(model, asked), asked)
    return versions.metrics() if len(tasks) > 1 else {"accuracy": versions.accuracies().item()}


def bottleneck(world: World, seed: int) -> KeyValueBottleneck:
    """Return a bottleneck whose keys lie where the unlabelled training images do."""
    with seeded(seed, "bottleneck"):
        layer = KeyValueBottleneck(64, 10, codebooks=CODEBOOKS, pairs=256, dim_key=8)
    initialise_keys(layer, standardised(world)[0], generator=generator_for(seed, "keys"))
    return layer


def run(seed: int) -> dict[str, float]:
    """Learn two digits at a time with every arm; return accuracies over all ten, and what was forgotten."""
    world = digits(seed)
    values: dict[str, float] = {}
    tasks = torch.randperm(10, generator=generator_for(seed, "tasks")).view(5, 2)
    arms = {"dkvb": [learnt(bottleneck(world, seed), 0.3 * CODEBOOKS, world, list(tasks), seed)]}
    for name, sizes in (("linear", [64, 10]), ("mlp", [64, 128, 10])):
        arms[name] = [learnt(mlp(sizes, seed), lr, world, list(tasks), seed) for lr in RATES]
    for name, tried in arms.items():
        best = max(tried, key=lambda found: found["accuracy"])
        values |= {f"{name}/{metric}": best[metric] for metric in ("accuracy", "forgetting")}
    at_once = learnt(bottleneck(world, seed), 0.3 * CODEBOOKS, world, [torch.arange(10)], seed)
    return {**values, "dkvb at once/accuracy": at_once["accuracy"]}


CLAIM = Claim(
    slug="key-value-bottleneck",
    claim="Learning classes two at a time, without replay and task identities, a key-value bottleneck forgets less and "
    "ends more accurate than a linear classifier or a perceptron on the same frozen encoder.",
    paper="CIFAR-10, two classes at a time, encoders pretrained by several methods: reported to reduce catastrophic "
    "forgetting and to outperform linear and perceptron heads; its figures were not at hand.",
    experiment="scikit-learn digits, half to train and half to test, 5 tasks of 2 classes in random order. The frozen "
    "encoder is the pixels, standardised. Bottleneck of 64 codebooks, 256 pairs, keys of 8 numbers, placed by 10 "
    "epochs over the unlabelled training images; SGD 0.3 * 64. Linear classifier, and perceptron of 128 units, "
    "each at the best of the learning rates 0.001, 0.01, 0.1 and 1 by test accuracy. Label smoothing 0.1, batches "
    "of 64, 60 epochs a task with a cosine for all; 6 seeds.",
    statements=(
        Statement(
            "The bottleneck is more accurate than the best linear classifier",
            left="dkvb/accuracy",
            right="linear/accuracy",
            above=0.0,
        ),
        Statement(
            "The bottleneck is more accurate than the best perceptron",
            left="dkvb/accuracy",
            right="mlp/accuracy",
            above=0.0,
        ),
        Statement(
            "The bottleneck forgets less than the best linear classifier",
            left="dkvb/forgetting",
            right="linear/forgetting",
            below=0.0,
        ),
    ),
    run=run,
    seeds=6,
)
