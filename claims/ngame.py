"""Do batches of clustered points hold harder negatives, and does the encoder become better for it?"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.algorithms.ngame import NGAME, NGAMELoss, draw_positives, relevance
from repertory.compare.claim import Claim, Statement
from repertory.core.method import Method
from repertory.core.randomness import generator_for
from repertory.testing.worlds import mlp

TOKENS, TOPICS, LABELS, MOST = 1500, 200, 2000, 8
TRAIN, TEST, BATCH, EPOCHS, NEGATIVES = 5000, 1000, 32, 12, 5
GROW_AT = (2, 4, 6, 8)


def bags(tokens: Tensor) -> Tensor:
    """Return bags of words of length 1 `(n, TOKENS)` for tokens `(n, m)`; -1 is no token."""
    counts = torch.zeros(len(tokens), TOKENS + 1).scatter_add_(1, tokens % (TOKENS + 1), torch.ones(tokens.shape))
    return functional.normalize(counts[:, :TOKENS], dim=1)


def world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return bags of the labels, bags of training and test points, and the points' label sets, filled up with -1."""
    generator = generator_for(seed, "points and labels")
    topics = torch.rand(TOPICS, TOKENS, generator=generator).argsort(1)[:, :30]
    topic = torch.randint(TOPICS, (LABELS,), generator=generator)
    chosen = torch.rand(LABELS, 30, generator=generator).argsort(1)[:, :6]
    labels = topics[topic].gather(1, chosen)
    count = TRAIN + TEST
    own = topic[torch.randint(LABELS, (count,), generator=generator)]
    keys = torch.rand(count, LABELS, generator=generator).masked_fill_(own[:, None] != topic, -1.0)
    value, sets = keys.topk(MOST, dim=1)
    number = torch.randint(1, MOST + 1, (count, 1), generator=generator)
    sets = sets.masked_fill((value < 0) | (torch.arange(MOST) >= number), -1)
    two = torch.rand(count, MOST, 6, generator=generator).argsort(2)[..., :2]
    words = labels[sets.clamp(min=0)].gather(2, two).masked_fill(sets[..., None] < 0, -1)
    noise = torch.randint(TOKENS, (count, 4), generator=generator)
    return bags(labels), bags(torch.cat([words.flatten(1), noise], 1)), sets


class Pairs(nn.Module):
    """One encoder for points and labels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.encoder = mlp([TOKENS, 256, 64], seed)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return embeddings of both."""
        return self.encoder(torch.cat(both)).chunk(2)


class Hardest(Method):
    """Keep each batch's mean cosine of a point with its hardest negative."""

    slug = "hardest"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        """Look at the output; change nothing."""
        loss = inner(state)
        points, labels = (functional.normalize(part.detach(), dim=1) for part in state.output)
        drawn, sets = state.batch["target"]
        self.seen.append((points @ labels.T).masked_fill(relevance(drawn, sets), -1.0).amax(1).mean())
        return loss


def fit(seed: int, clustered: bool) -> dict[str, float]:
    """Train with random or with clustered batches; return precision, hardness of negatives and share of clustering."""
    labels, points, sets = world(seed)
    model, hardest = Pairs(seed), Hardest()
    methods: list[Method] = [hardest, NGAME(GROW_AT, refresh=2)] if clustered else [hardest]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = Step(model, optimizer, NGAMELoss(negatives=NEGATIVES), methods=methods, epochs=EPOCHS, examples=TRAIN)
    order, draws = generator_for(seed, "order"), generator_for(seed, "labels")
    steps, taken, clustering, rows = EPOCHS * math.ceil(TRAIN / BATCH), 0, 0.0, torch.arange(TRAIN)
    start = time.perf_counter()
    for _ in range(EPOCHS):
        sampler = step.run.sampler
        epoch = rows[torch.randperm(TRAIN, generator=order)] if sampler is None else sampler(rows, rows, order)
        for index in epoch.split(BATCH):
            drawn = draw_positives(sets[index], draws)
            optimizer.param_groups[0]["lr"] = 5e-4 * (1 + math.cos(math.pi * taken / steps))
            step({"input": (points[index], labels[drawn]), "target": (drawn, sets[index]), "index": index})
            taken += 1
        before = time.perf_counter()
        step.end_epoch()
        clustering += time.perf_counter() - before
    total = time.perf_counter() - start
    with torch.no_grad():
        found, names = (functional.normalize(model.encoder(bag), dim=1) for bag in (points[TRAIN:], labels))
        first = (found @ names.T).argmax(1)
    late = hardest.seen[len(hardest.seen) * max(GROW_AT) // EPOCHS :]
    return {
        "precision at 1": float((sets[TRAIN:] == first[:, None]).any(1).float().mean()),
        "hardest negative": float(torch.stack(late).mean()),
        "share of clustering": clustering / total,
    }


def run(seed: int) -> dict[str, float]:
    """Train both arms."""
    found = {}
    for name, clustered in (("random", False), ("ngame", True)):
        found |= {f"{name}/{key}": value for key, value in fit(seed, clustered).items()}
    return {**found, "nothing": 0.0}


CLAIM = Claim(
    slug="ngame",
    claim="Batches of clustered points hold harder negatives than random ones of the same size, at little cost, and "
    "the encoder becomes more accurate.",
    paper="LF-AmazonTitles-131K and others: negatives provably close to the hardest ones, up to 16 % more accurate "
    "than earlier methods, at an overhead that is small beside an epoch.",
    experiment="Generated: 1500 tokens, 200 topics of 30 tokens, 2000 labels of 6 tokens of a topic; 5000 points for "
    "training and 1000 for testing, each with up to 8 labels of one topic, two tokens of each label and 4 at random. "
    "One encoder 1500-256-64 for points and labels, AdamW 1e-3 with a cosine, batches of 32, 12 epochs; margin 0.3, 5 "
    "hardest negatives, weights at temperature 0.1 in both arms. NGAME clusters every 2 epochs, in sizes of up to 2, "
    "4, 8 and 16 from epochs 2, 4, 6 and 8 on: the paper's doubling in a training of 12 epochs. Precision at 1 among "
    "all labels; the cosine of a point with its hardest negative is that of the last 4 epochs. 6 seeds.",
    statements=(
        Statement(
            "The hardest negatives of a batch are harder",
            left="ngame/hardest negative",
            right="random/hardest negative",
            above=0.0,
        ),
        Statement("Precision at 1 is higher", left="ngame/precision at 1", right="random/precision at 1", above=0.0),
        Statement(
            "Clustering takes less than a tenth of the time",
            left="ngame/share of clustering",
            right="nothing",
            below=0.1,
        ),
    ),
    run=run,
    seeds=6,
)
