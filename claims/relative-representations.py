"""Does a head work behind an encoder that it was not trained with, if both see anchors?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory import Step
from repertory.compare.claim import Claim, Statement
from repertory.core.neighbours import nearest_neighbours
from repertory.core.randomness import seeded
from repertory.estimators import RelativeLayer
from repertory.estimators.relative_representations import choose_anchors, latent_similarity
from repertory.testing.worlds import World, accuracy, digits, mlp, predict, train

ANCHORS, LATENT, HIDDEN = 100, 32, 64


def fitted(world: World, encoder: nn.Module, width: int, seed: int, targets: int | None) -> tuple[nn.Module, nn.Module]:
    """Train an encoder and a head of its own, and return both.

    Args:
        world: the data.
        encoder: maps inputs to `width` numbers.
        width: what the head takes.
        seed: of the head's weights and of the batches.
        targets: number of classes, or None to reconstruct the inputs.
    """
    with seeded(seed, "head"):
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, targets or 64))
    model = nn.Sequential(encoder, head)
    criterion = nn.CrossEntropyLoss() if targets else nn.MSELoss()
    step = Step(model, torch.optim.Adam(model.parameters(), lr=1e-3), criterion)
    train(step, world.inputs, world.targets if targets else world.inputs, epochs=40, batch_size=64, seed=seed)
    return encoder, head


def error(outputs: Tensor, inputs: Tensor) -> float:
    """Return the mean squared error of reconstructions over the variance of the inputs."""
    return float((outputs - inputs).square().mean() / (inputs - inputs.mean(0)).square().mean())


def run(seed: int) -> dict[str, float]:
    """Train two networks with seeds of their own for each form, and judge them with their own and the other's head."""
    world = digits(seed)
    anchors = world.inputs[choose_anchors(world.inputs, ANCHORS, seed=seed)]
    found: dict[str, float] = {}
    for task, targets in (("classes", 10), ("reconstruction", None)):
        for form in ("absolute", "relative"):
            pairs = []
            for number in (2 * seed, 2 * seed + 1):
                encoder: nn.Module = mlp([64, 128, LATENT], number)
                if form == "relative":
                    encoder = RelativeLayer(encoder, anchors)
                width = ANCHORS if form == "relative" else LATENT
                pairs.append(fitted(world, encoder, width, number, targets))
            for name, heads in (("native", (0, 1)), ("stitched", (1, 0))):
                outputs = [predict(nn.Sequential(pairs[i][0], pairs[heads[i]][1]), world.test_inputs) for i in (0, 1)]
                judged = [accuracy(o, world.test_targets) if targets else error(o, world.test_inputs) for o in outputs]
                found[f"{task}/{form}/{name}"] = sum(judged) / 2
            if targets:
                found |= {f"search/{form}/{k}": v for k, v in across(pairs, world).items()}
    return found


def across(pairs: list[tuple[nn.Module, nn.Module]], world: World) -> dict[str, float]:
    """Return how often the nearest test digit of another encoder is of the right class, and how alike spaces are."""
    one, two = (predict(encoder, world.test_inputs) for encoder, _ in pairs)
    near = nearest_neighbours(one, two, 1, own=torch.arange(len(one)))[1][:, 0]
    return {
        "precision": float((world.test_targets[near] == world.test_targets).double().mean()),
        "similarity": latent_similarity(one, two, torch.arange(ANCHORS)),
    }


CLAIM = Claim(
    slug="relative-representations",
    claim="A head that was trained on relative representations of one encoder works behind another with little loss; "
    "on absolute latents it is at chance.",
    paper="Heads are exchanged without training between encoders of other seeds, architectures and languages with a "
    "small loss; on absolute latents the exchange fails altogether, for classification as for reconstruction.",
    experiment="scikit-learn digits, half for training; two perceptrons 64-128-32 of different seeds, each with a head "
    "of its own (layer norm, 64 hidden units with ReLU), on 32 latents or on cosines with the same 100 random training "
    "digits; Adam 1e-3, cosine, 40 epochs, batches of 64. Judged on the test half with the head of the other network, "
    "mean of both ways. Besides, the same with heads that reconstruct the pixels (error over their variance), and "
    "search of one encoder's test digits among the other's. 8 seeds.",
    statements=(
        Statement(
            "Stitched heads lose less than 4 points",
            left="classes/relative/stitched",
            right="classes/relative/native",
            above=-0.04,
        ),
        Statement(
            "Absolute latents: stitched heads lose more than 50 points",
            left="classes/absolute/stitched",
            right="classes/absolute/native",
            below=-0.5,
        ),
        Statement(
            "Relative representations cost less than 1 point where nothing is stitched",
            left="classes/relative/native",
            right="classes/absolute/native",
            above=-0.01,
        ),
        Statement(
            "Reconstruction: stitched, the error is smaller than on absolute latents",
            left="reconstruction/relative/stitched",
            right="reconstruction/absolute/stitched",
            below=0.0,
        ),
        Statement(
            "Search across encoders finds the right class more than 50 points more often",
            left="search/relative/precision",
            right="search/absolute/precision",
            above=0.5,
        ),
    ),
    run=run,
    seeds=8,
)
