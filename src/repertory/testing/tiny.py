"""The tiny problem on which methods are checked, and the smallest arguments at which each of them acts.

A method that needs no special arguments needs no line here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.randomness import generator_for
from repertory.layers.embedding import with_embedding
from repertory.recipe import Part, Recipe

CLASSES = 3
EXAMPLES = 12
CLASS_COUNTS = torch.tensor([8, 3, 1])
"""What methods are told of the classes, which the examples do not bear out: they are four of each."""
BATCH = 6
STEPS = 8
"""Updates of a checked run: four passes over the examples."""


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What the checks need to know of a method beyond its signature.

    Args:
        arguments: of the entry, for parameters without a default (and sizes to make smaller).
        options: what its `edit` is given so that the method acts within `STEPS` updates.
        in_shape: shape of one input.
        model: path of the network that is trained.
        negative: numeric options for which any negative number makes sense, each with the reason.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    in_shape: tuple[int, ...] = (6,)
    model: str = "repertory.testing.tiny:network"
    negative: Mapping[str, str] = field(default_factory=dict)


TINY: dict[str, Tiny] = {
    "b-attention": Tiny(
        arguments={"k": 4, "outputs": 4, "steps": 3, "batch": 6}, options={"k": 4, "outputs": 4, "share": 0.5}
    ),
    "batchformer": Tiny(arguments={"dim": 8}),
    "bo-rep": Tiny(options={"lower_steps": 2, "interval": 1, "eta": 1.0}),
    "cfcd": Tiny(arguments={"outputs": 3, "dim": 3}, options={"alpha": 0.3, "largest_scale": 32.0}),
    "dash": Tiny(options={"warmup": 0.25, "decay_every": 0.25}),
    "ebv": Tiny(arguments={"classes": 3}),
    "fixmatch": Tiny(options={"threshold": 0.3}),
    "fira": Tiny(arguments={"rank": 0.5}, options={"rank": 0.5}),
    "graph-reranking": Tiny(arguments={"k1": 2, "k2": 1}, options={"k1": 3}),
    "icl-newton": Tiny(arguments={"layers": 2, "width": 8, "heads": 2, "steps": 5, "batch": 8, "tasks": 32}),
    "matryoshka": Tiny(
        arguments={"criterion": nn.CrossEntropyLoss(), "sizes": (2, 4)}, options={"dim": 4, "sizes": [2, 4]}
    ),
    "ngame": Tiny(options={"dim": 3, "grow_at": [1, 2], "refresh": 1, "margin": 1.0}),
    "optimistic-omd": Tiny(negative={"low": "a bound of the box", "high": "refused as below low"}),
    "poolformer": Tiny(in_shape=(3, 8, 8), negative={"layer_scale": "a start value of learned factors"}),
    "projection-head": Tiny(arguments={"dim": 8}),
    "relationship-batch": Tiny(arguments={"dim": 8}),
    "relative-representations": Tiny(arguments={"anchors": 2}),
    "saf": Tiny(options={"start": 0, "lag": 1}),
    "solider": Tiny(
        options={"prototypes": 8, "width": 4, "momentum": 0.9, "parts": 2, "weight": 0.3},
        in_shape=(1, 6, 4),
        model="repertory.testing.tiny:conv_network",
    ),
    "softtriple": Tiny(arguments={"outputs": 3, "dim": 3}, options={"dim": 3, "centers": 2, "scale": 4.0}),
    "key-value-bottleneck": Tiny(arguments={"dim": 8}, options={"codebooks": 2, "pairs": 4, "dim_key": 3, "lr": 1.0}),
    "stationary-representations": Tiny(options={"preallocated": 5, "from_start": True, "weight": 0.3}),
    "repertory.losses.binomial_deviance:BinomialDevianceLoss": Tiny(),
    "repertory.losses.sinkhorn_newton.labels:LabelTransportLoss": Tiny(),
    "repertory.losses.dexml.decoupled:DecoupledSoftmaxLoss": Tiny(arguments={"temperature": 0.5}),
    "repertory.losses.dexml.top_k:SoftTopKLoss": Tiny(arguments={"k": 1, "temperature": 1.0}),
    "repertory.losses.matryoshka.loss:MRLLoss": Tiny(arguments={"sizes": (1, 3)}),
    "repertory.losses.contrastive:ContrastiveLoss": Tiny(options={"temperature": 1.0}),
    "repertory.losses.stablemax:StableMaxCrossEntropy": Tiny(),
    "repertory.algorithms.saf:MESA": Tiny(options={"start": 0}),
    "repertory.diagnostics.batch_size_lr.tuner:LanczosTuner": Tiny(),
    "repertory.optim.fira.lowrank:GaLore": Tiny(arguments={"rank": 0.5}),
    "repertory.optim.stable_spam.spam:SPAM": Tiny(),
}
"""Special arguments by slug; or by `module:name` for a further class of a module, which is then checked too."""

EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "dash": {
        "accumulate_equals_one_batch": "the mean is over the examples that were selected in a micro-batch",
    },
    "esam": {
        "two_processes_equal_one": "each process selects examples within its own share of the batch",
    },
    "guidance": {
        "two_processes_equal_one": "the examples of a process are compared with each other only",
    },
    "solider": {
        "no_graph_break": "which images have parts, and are passed once more, is only known while it runs",
    },
}
"""Checks that a method of the catalogue does not pass, by slug, each with the reason; they must fail."""


def network(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return a network of one hidden layer, without normalisation and dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), 8), nn.Tanh(), nn.Linear(8, outputs))


def conv_network(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return a network of two convolutions for images, without normalisation and dropout."""
    return nn.Sequential(
        *(nn.Conv2d(in_shape[0], 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs)),
    )


def baseline_recipe(scenario: str = "supervised") -> Recipe:
    """Return the recipe that methods edit in the checks.

    Args:
        scenario: the one that the method names first; a classifier, or for "retrieval" an embedding.
    """
    if scenario == "retrieval":
        loss = Part("repertory.losses.normalised_softmax:NormalisedSoftmaxLoss", {"dim": CLASSES, "temperature": 0.2})
        return with_embedding(baseline_recipe(), CLASSES, None).replace(criterion=loss)
    return Recipe(
        model=Part("repertory.testing.tiny:network"),
        criterion=Part("torch.nn:CrossEntropyLoss"),
        optimizer=Part("torch.optim:SGD", {"lr": 0.1, "momentum": 0.9}),
        schedule="constant",
        warmup=0.0,
        epochs=STEPS * BATCH // EXAMPLES,
        batch_size=BATCH,
    )


def problem(in_shape: tuple[int, ...] = (6,)) -> dict[str, Tensor]:
    """Return the examples: `input` `(12, *in_shape)` around their class's mean, `target` and `index` `(12,)`."""
    generator = generator_for(0, "tiny problem")
    target = torch.arange(EXAMPLES) % CLASSES
    means = torch.randn(CLASSES, *in_shape, generator=generator)
    noise = torch.randn(EXAMPLES, *in_shape, generator=generator)
    return {"input": means[target] + noise / 2, "target": target, "index": torch.arange(EXAMPLES)}


def batch(number: int, in_shape: tuple[int, ...] = (6,)) -> dict[str, Any]:
    """Return the batch of a step of the run; each pass over the examples has an order of its own."""
    epoch, place = divmod(number, EXAMPLES // BATCH)
    order = torch.randperm(EXAMPLES, generator=generator_for(epoch, "tiny order"))
    rows = order[place * BATCH : (place + 1) * BATCH]
    made: dict[str, Any] = {name: values[rows] for name, values in problem(in_shape).items()}
    generator = generator_for(number, "tiny views")
    made["views"] = [made["input"] + torch.randn(made["input"].shape, generator=generator) / 10 for _ in range(2)]
    return made


class TinyStream:
    """A loader of further batches that can say and take up its position."""

    def __init__(self, in_shape: tuple[int, ...]) -> None:
        self.in_shape = in_shape
        self.number = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go on from the position."""
        while True:
            self.number += 1
            yield batch(self.number + STEPS, self.in_shape)

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"number": self.number}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up a position."""
        self.number = state["number"]
