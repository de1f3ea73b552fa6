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
from repertory.recipe import Part, Recipe

CLASSES = 3
EXAMPLES = 12
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
        negative: numeric options for which any negative number makes sense, each with the reason.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    in_shape: tuple[int, ...] = (6,)
    negative: Mapping[str, str] = field(default_factory=dict)


TINY: dict[str, Tiny] = {
    "bo-rep": Tiny(options={"lower_steps": 2, "interval": 1, "eta": 1.0}),
    "ebv": Tiny(arguments={"classes": 3}),
    "fira": Tiny(arguments={"rank": 0.5}, options={"rank": 0.5}),
    "icl-newton": Tiny(arguments={"layers": 2, "width": 8, "heads": 2, "steps": 5, "batch": 8, "tasks": 32}),
    "optimistic-omd": Tiny(negative={"low": "a bound of the box", "high": "refused as below low"}),
    "poolformer": Tiny(in_shape=(3, 8, 8), negative={"layer_scale": "a start value of learned factors"}),
    "saf": Tiny(options={"start": 0, "lag": 1}),
    "softtriple": Tiny(arguments={"outputs": 3, "dim": 3}, options={"dim": 3, "centers": 2, "scale": 4.0}),
    "repertory.losses.sinkhorn_newton.labels:LabelTransportLoss": Tiny(),
    "repertory.losses.stablemax:StableMaxCrossEntropy": Tiny(),
    "repertory.algorithms.saf:MESA": Tiny(options={"start": 0}),
    "repertory.diagnostics.batch_size_lr.tuner:LanczosTuner": Tiny(),
    "repertory.optim.fira.lowrank:GaLore": Tiny(arguments={"rank": 0.5}),
    "repertory.optim.stable_spam.spam:SPAM": Tiny(),
}
"""Special arguments by slug; or by `module:name` for a further class of a module, which is then checked too."""

EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "esam": {
        "two_processes_equal_one": "each process selects examples within its own share of the batch",
    },
    "guidance": {
        "two_processes_equal_one": "the examples of a process are compared with each other only",
    },
}
"""Checks that a method of the catalogue does not pass, by slug, each with the reason; they must fail."""


def network(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return a network of one hidden layer, without normalisation and dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), 8), nn.Tanh(), nn.Linear(8, outputs))


def baseline_recipe() -> Recipe:
    """Return the recipe that methods edit in the checks."""
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
