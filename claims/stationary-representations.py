"""Are embeddings of new versions more comparable with those of old ones on a fixed simplex, and more so with HOC?"""

from __future__ import annotations

from typing import Any

from repertory import datasets
from repertory.algorithms.stationary_representations import edit
from repertory.compare.claim import Claim, Statement
from repertory.scenarios import continual

ARMS: dict[str, dict[str, Any] | None] = {"free": None, "simplex": {"weight": 1.0}, "hoc": {}}


def run(seed: int) -> dict[str, float]:
    """Learn the digits in five tasks with every arm; return what the versions find in each other's galleries."""
    data = datasets.load("digits")
    plain = continual.baseline(data, continual.default_model(data)[0])
    budget = continual.budget_of("compute", plain, data, data.prepare(seed))
    values: dict[str, float] = {}
    for name, options in ARMS.items():
        recipe = plain if options is None else edit(plain, **options)
        found = continual.run(recipe, data, seed=seed, budget=budget).metrics["test"]
        values |= {f"{name}/{metric}": found[metric] for metric in sorted(found)}
    return values


CLAIM = Claim(
    slug="stationary-representations",
    claim="New versions search better in galleries of old ones than after fine-tuning a free classifier, and HOC adds "
    "to what the fixed simplex alone does.",
    paper="CIFAR-100 in 7 and 31 tasks, ResNet-18, 20 stored images a class: reported as more compatible (AC, AA) than "
    "experience replay and other compatible training; its tables were not at hand.",
    experiment="scikit-learn digits in the scenario continual at its defaults: 5 tasks of 2 classes in random order, "
    "20 stored examples a class as half of each batch, a small convolutional network, AdamW 2e-3 with a cosine a task, "
    "passes of 30 epochs for each arm. Each version's queries, half of the test part, are identified in every older "
    "version's gallery, the other half, of all ten classes. Free classifier, simplex with cross-entropy alone, and "
    "simplex with HOC at its defaults; 6 seeds.",
    statements=(
        Statement(
            "d-Simplex-HOC has a higher multi-model accuracy (AA) than a free classifier",
            left="hoc/cross_version",
            right="free/cross_version",
            above=0.0,
        ),
        Statement(
            "d-Simplex-HOC has a higher compatibility (AC) than a free classifier",
            left="hoc/compatibility",
            right="free/compatibility",
            above=0.0,
        ),
        Statement(
            "HOC has a higher compatibility (AC) than cross-entropy on the simplex alone",
            left="hoc/compatibility",
            right="simplex/compatibility",
            above=0.0,
        ),
    ),
    run=run,
    seeds=6,
)
