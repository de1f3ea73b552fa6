"""Does telling pseudo-parts put semantics into an embedding, and does the controller trade them for identity?"""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms.solider import SOLIDER, add_semantic_control
from repertory.compare.claim import Claim, Statement
from repertory.core.classifier import features_and_output
from repertory.core.randomness import generator_for, seeded
from repertory.retrieval import retrieval_metrics

HEIGHT, WIDTH = 24, 12
PEOPLE, TIMES, UNSEEN, UNSEEN_TIMES, LABELLED = 40, 12, 20, 10, 40
EPOCHS, BATCH, LR = 30, 48, 2e-3


def people(count: int, times: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw upright figures of a head, a trunk and two legs, whose colours are a person's own.

    Returns:
        Images `(count * times, 3, HEIGHT, WIDTH)`, the part of each pixel (0 is background), and who it is.
    """
    who = torch.arange(count).repeat_interleave(times)
    images = len(who)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (images, 1, 1), generator=generator)

    row, column = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    top, middle = whole(0, 2), whole(5, 6)
    neck = top + whole(5, 6)
    hip, sole = neck + whole(8, 9), whole(HEIGHT - 2, HEIGHT)
    side = (column - middle + 0.5).abs()
    parts = torch.zeros(images, HEIGHT, WIDTH, dtype=torch.int64)
    parts[(row >= top) & (row < neck) & (side < 3)] = 1
    parts[(row >= neck) & (row < hip) & (side < 5)] = 2
    parts[(row >= hip) & (row < sole) & (side < 5) & (side > 0.6)] = 3
    colours = 0.25 + 0.75 * torch.rand(count, 4, 3, generator=generator)
    colours[:, 0] = 0.1
    picture = colours[who[:, None, None], parts].permute(0, 3, 1, 2)
    # Cloth and legs have stripes of their own direction.
    stripes = torch.where(parts == 2, (row % 4 < 2).expand(HEIGHT, WIDTH), (column % 4 < 2).expand(HEIGHT, WIDTH))
    picture = picture * (1 - 0.2 * (stripes & (parts > 1))[:, None])
    return changed(picture, generator), parts, who


def changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images in other light, with noise."""
    light = 0.8 + 0.4 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return images * light + 0.05 * torch.randn(images.shape, generator=generator)


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images in other light, moved by up to a pixel, with noise."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    down, right = (torch.randint(3, (len(images),), generator=generator) for _ in range(2))
    rows, columns = down[:, None] + torch.arange(HEIGHT), right[:, None] + torch.arange(WIDTH)
    which = torch.arange(len(images))[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    return changed(moved, generator)


def fit(images: Tensor, seed: int, **options: Any) -> Any:
    """Train a controlled network without labels, and return it."""
    stages = [(3, 16), (16, 32), (32, 32)]
    layers: list[nn.Module] = []
    with seeded(seed, "weights"):
        for inputs, outputs in stages:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if inputs == 3 else []
        model: Any = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        model = add_semantic_control(model, in_shape=(3, HEIGHT, WIDTH), layers=["3", "6", "9"])
    method = SOLIDER(momentum=0.99, supervised=False, **options)
    step = Step(model, lambda groups: torch.optim.AdamW(groups, LR), nn.CrossEntropyLoss(), methods=[method], seed=seed)
    order, draws = generator_for(seed, "order"), generator_for(seed, "views")
    total, taken = EPOCHS * len(images) // BATCH, 0
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), generator=order).split(BATCH):
            batch = images[index]
            for group in step.optimizer.param_groups:
                group["lr"] = LR / 2 * (1 + math.cos(math.pi * taken / total))
            step.run.progress = taken / total
            step({"input": batch, "views": [view(batch, draws) for _ in range(2)]})
            taken += 1
        step.end_epoch()
    return model.eval()


@torch.no_grad()
def seen(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings `(n, 32)` and tokens `(n * places, 32)`."""
    kept: list[Tensor] = []
    handle = model.controller.stages[-1].register_forward_hook(lambda module, args, output: kept.append(output))
    features, _ = features_and_output(model, images)
    handle.remove()
    return features, kept[0].flatten(2).transpose(1, 2).flatten(0, 1)


def run(seed: int) -> dict[str, float]:
    """Train with and without parts; return how well people are found and parts are told, by ratio."""
    generator = generator_for(seed, "people")
    images, parts, _ = people(PEOPLE, TIMES, generator)
    unseen, unseen_parts, who = people(UNSEEN, UNSEEN_TIMES, generator)
    # The part of most of a place's pixels.
    places, unseen_places = (
        nn.functional.avg_pool2d(nn.functional.one_hot(p, 4).permute(0, 3, 1, 2).float(), 2).argmax(1).flatten()
        for p in (parts[:: len(parts) // LABELLED], unseen_parts)
    )
    found: dict[str, float] = {}
    for name, options, ratios in (("dino", {"semantic_weight": 0.0}, (0.0,)), ("solider", {}, (0.0, 0.5, 1.0))):
        model = fit(images, seed, **options)
        for ratio in ratios:
            model.controller.ratio = ratio
            features, tokens = seen(model, unseen)
            _, labelled = seen(model, images[:: len(images) // LABELLED])
            mean, spread = labelled.mean(0), labelled.std(0) + 1e-6
            probe = LogisticRegression(max_iter=1000).fit((labelled - mean) / spread, places)
            told = balanced_accuracy_score(unseen_places, probe.predict((tokens - mean) / spread))
            found[f"{name} at {ratio:g}/people"] = retrieval_metrics(features, who)["map_at_r"]
            found[f"{name} at {ratio:g}/parts"] = float(told)
    return found


CLAIM = Claim(
    slug="solider",
    claim="Telling pseudo-labels of parts makes tokens tell true parts better than self-distillation alone, and the "
    "controller trades that for identity.",
    paper="LUPerson, Swin: better than DINO on six tasks about people; with a larger ratio parsing gets better and "
    "re-identification worse.",
    experiment="Generated: figures of 24 x 12 pixels with head, trunk and legs in a person's own colours, in changing "
    "light, size and place; 40 people 12 times, unlabelled. Three convolutions (16, 32, 32 channels, batch norm), "
    "each controlled; tokens of 12 x 6 places. Views moved by a pixel, in other light; AdamW 2e-3 with a cosine, "
    "batches of 48, 30 epochs, teacher momentum 0.99, the rest as published here: 3 parts, 1024 prototypes. Judged on "
    "20 other people, 10 times each: mean average precision at R of searching by the pooled embedding, and balanced "
    "accuracy of a linear probe for the part of a token (trained on 40 images). 6 seeds.",
    statements=(
        Statement(
            "At ratio 1 parts are told better than by self-distillation alone",
            left="solider at 1/parts",
            right="dino at 0/parts",
            above=0.0,
        ),
        Statement(
            "Parts are told better at ratio 1 than at 0",
            left="solider at 1/parts",
            right="solider at 0/parts",
            above=0.0,
        ),
        Statement(
            "People are found better at ratio 0 than at 1",
            left="solider at 0/people",
            right="solider at 1/people",
            above=0.0,
        ),
        Statement(
            "At ratio 0 people are found as well as by self-distillation alone (within 2 points)",
            left="solider at 0/people",
            right="dino at 0/people",
            above=-0.02,
        ),
    ),
    run=run,
    seeds=6,
)
