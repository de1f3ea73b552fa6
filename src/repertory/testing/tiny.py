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

from repertory.core.dense import IGNORED
from repertory.core.randomness import generator_for
from repertory.layers.embedding import with_embedding
from repertory.recipe import Part, Recipe

CLASSES = 3
EXAMPLES = 12
CLASS_COUNTS = torch.tensor([8, 3, 1])
"""What methods are told of the classes, which the examples do not bear out: they are four of each."""
BATCH = 6
PER_CLASS = 2
"""Examples of each class in a condensed set."""
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
        dense: whether the targets are masks, a class a pixel.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    in_shape: tuple[int, ...] = (6,)
    model: str = "repertory.testing.tiny:network"
    negative: Mapping[str, str] = field(default_factory=dict)
    dense: bool = False


_TRAJECTORIES: dict[str, Any] = {"iterations": 3, "steps": 3, "ahead": 2, "starts": 2, "lr_inputs": 1.0, "rate": 0.1}
_TRAJECTORIES |= {"experts": 2, "expert_epochs": 4, "expert_lr": 0.1, "expert_batch": 6}

TINY: dict[str, Tiny] = {
    "b-attention": Tiny(
        arguments={"k": 4, "outputs": 4, "steps": 3, "batch": 6}, options={"k": 4, "outputs": 4, "share": 0.5}
    ),
    "balanced-softmax": Tiny(arguments={"class_counts": CLASS_COUNTS}),
    "batchformer": Tiny(arguments={"dim": 8}),
    "bo-rep": Tiny(options={"lower_steps": 2, "interval": 1, "eta": 1.0}),
    "cfcd": Tiny(arguments={"outputs": 3, "dim": 3}, options={"alpha": 0.3, "largest_scale": 32.0}),
    "coke": Tiny(options={"clusters": [2, 3], "dim": 4, "temperature": 1.0}),
    "dc": Tiny(options={"iterations": 2, "updates": 2, "passes": 1, "batch": 3}),
    "dcc": Tiny(options={"iterations": 2, "updates": 2, "passes": 1, "batch": 3, "outer_warmup": 0.5}),
    "dash": Tiny(options={"warmup": 0.25, "decay_every": 0.25}),
    "dfu-ensemble": Tiny(options={"members": 2, "ratio": 2.0}),
    "ebv": Tiny(arguments={"classes": 3}),
    "ferkd": Tiny(
        options={"crops": 2, "stored": 4, "smallest": 0.7, "low": 0.0, "top": 1.0},
        in_shape=(1, 6, 6),
        model="repertory.testing.tiny:conv_network",
    ),
    "fixmatch": Tiny(options={"threshold": 0.3}),
    "fira": Tiny(arguments={"rank": 0.5}, options={"rank": 0.5}),
    "graph-reranking": Tiny(arguments={"k1": 2, "k2": 1}, options={"k1": 3}),
    "instance-classifier": Tiny(options={"hardest": 3, "dim": 4}),
    "grow-and-merge": Tiny(options={"new": 2, "k": 1, "consistency": 1.0, "quantile": 0.05, "novelty": "energy"}),
    "icl-newton": Tiny(arguments={"layers": 2, "width": 8, "heads": 2, "steps": 5, "batch": 8, "tasks": 32}),
    "matryoshka": Tiny(
        arguments={"criterion": nn.CrossEntropyLoss(), "sizes": (2, 4)}, options={"dim": 4, "sizes": [2, 4]}
    ),
    "mdcs": Tiny(options={"warmup": 2.0}, negative={"lambdas": "an expert that leans to frequent classes"}),
    "mtt": Tiny(
        arguments=_TRAJECTORIES,
        options=_TRAJECTORIES,
        in_shape=(1, 6, 6),
        model="repertory.testing.tiny:conv_network",
    ),
    "ngame": Tiny(options={"dim": 3, "grow_at": [1, 2], "refresh": 1, "margin": 1.0}),
    "optimistic-omd": Tiny(negative={"low": "a bound of the box", "high": "refused as below low"}),
    "pixel-hardness": Tiny(in_shape=(1, 4, 4), model="repertory.testing.tiny:dense_network", dense=True),
    "poolformer": Tiny(in_shape=(3, 8, 8), negative={"layer_scale": "a start value of learned factors"}),
    "projection-head": Tiny(arguments={"dim": 8}),
    "rcal": Tiny(options={"multiple": 2.0, "beta": 0.1}),
    "relationship-batch": Tiny(arguments={"dim": 8}),
    "relative-representations": Tiny(arguments={"anchors": 2}),
    "saf": Tiny(options={"start": 0, "lag": 1}),
    "solider": Tiny(
        options={"prototypes": 8, "width": 4, "momentum": 0.9, "parts": 2, "weight": 0.3},
        in_shape=(1, 6, 4),
        model="repertory.testing.tiny:conv_network",
    ),
    "simple-propagation": Tiny(
        options={"propagation": 0.5, "similarity": 0.5, "agreement": 0.2, "lr_scale": 1.0},
        in_shape=(1, 4, 4),
        model="repertory.testing.tiny:dense_network",
        dense=True,
    ),
    "sie": Tiny(options={"width": 8, "similarity": 1.0, "variance": 1.0, "covariance": 0.1}),
    "simclr": Tiny(options={"temperature": 0.2, "dim": 4}),
    "smooth-trajectories": Tiny(
        arguments=_TRAJECTORIES,
        options=_TRAJECTORIES,
        in_shape=(1, 6, 6),
        model="repertory.testing.tiny:conv_network",
    ),
    "softtriple": Tiny(arguments={"outputs": 3, "dim": 3}, options={"dim": 3, "centers": 2, "scale": 4.0}),
    "instance-mil": Tiny(options={"dim": 4, "queue": 12, "phi": 0.5, "last_phi": 0.5}),
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
    "mdcs": {
        "accumulate_equals_one_batch": "the mean is over the examples that were recognised in a micro-batch",
    },
    "simple-propagation": {
        "selection": "it makes masks for all examples, and leaves none out",
    },
    "rcal": {
        "two_processes_equal_one": "an example is mixed with others of its own process only",
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


def dense_network(in_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return a network of two convolutions that gives logits for each pixel of images."""
    return nn.Sequential(nn.Conv2d(in_shape[0], 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, outputs, 1))


def teacher(in_shape: tuple[int, ...]) -> nn.Sequential:
    """Return a network for methods that learn from one: its logits say which class's mean is the nearest."""
    made = problem(in_shape)
    # Its weights are set below; drawing them would move the global generator.
    linear = nn.utils.skip_init(nn.Linear, math.prod(in_shape), CLASSES)
    means = torch.stack([made["input"][made["target"] == label].mean(0).flatten() for label in range(CLASSES)])
    with torch.no_grad():
        linear.weight.copy_(means)
        linear.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), linear)


def baseline_recipe(scenario: str = "supervised") -> Recipe:
    """Return the recipe that methods edit in the checks.

    Args:
        scenario: the one that the method names first; a classifier, or for "retrieval" an embedding, or for
            "self_supervised" features that are learnt without labels, or for "segmentation" logits of pixels.
    """
    if scenario in ("segmentation", "weak_segmentation"):
        return baseline_recipe().replace(
            model=Part("repertory.testing.tiny:dense_network"),
            criterion=Part("repertory.losses.pixel_cross_entropy:PixelCrossEntropyLoss"),
        )
    if scenario == "self_supervised":
        return baseline_recipe().replace(objective=Part("repertory.algorithms.simclr:SimCLR", {}))
    if scenario == "condensation":
        return baseline_recipe().add("curation", Part("repertory.curation.condensing:RealExamples"))
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


def problem(in_shape: tuple[int, ...] = (6,), dense: bool = False) -> dict[str, Tensor]:
    """Return the examples: `input` `(12, *in_shape)` around their class's mean, `target` and `index` `(12,)`.

    Args:
        in_shape: shape of one input.
        dense: give masks `(12, height, width)` of stripes, some pixels without a class, and images as bright as these.
    """
    if dense:
        return _stripes(in_shape)
    generator = generator_for(0, "tiny problem")
    target = torch.arange(EXAMPLES) % CLASSES
    means = torch.randn(CLASSES, *in_shape, generator=generator)
    noise = torch.randn(EXAMPLES, *in_shape, generator=generator)
    return {"input": means[target] + noise / 2, "target": target, "index": torch.arange(EXAMPLES)}


def _stripes(in_shape: tuple[int, ...]) -> dict[str, Tensor]:
    rows, columns = torch.arange(EXAMPLES), torch.arange(in_shape[-1]) // 2
    masks = ((rows[:, None] + columns) % CLASSES)[:, None].repeat(1, in_shape[-2], 1)
    noise = torch.randn(EXAMPLES, *in_shape, generator=generator_for(0, "tiny stripes"))
    images = (masks - 1.0)[:, None] + noise / 2
    masks[::3, 0] = IGNORED
    return {"input": images, "target": masks, "index": rows}


def batch(number: int, in_shape: tuple[int, ...] = (6,), dense: bool = False) -> dict[str, Any]:
    """Return the batch of a step of the run; each pass over the examples has an order of its own."""
    epoch, place = divmod(number, EXAMPLES // BATCH)
    order = torch.randperm(EXAMPLES, generator=generator_for(epoch, "tiny order"))
    rows = order[place * BATCH : (place + 1) * BATCH]
    made: dict[str, Any] = {name: values[rows] for name, values in problem(in_shape, dense).items()}
    generator = generator_for(number, "tiny views")
    made["views"] = [made["input"] + torch.randn(made["input"].shape, generator=generator) / 10 for _ in range(2)]
    generator = generator_for(number, "tiny strong views")
    made["group"] = made["target"]
    made["change"] = torch.randn(len(rows), 2, generator=generator_for(number, "tiny change"))
    made["strong"] = made["input"] + torch.randn(made["input"].shape, generator=generator) / 3
    return made


class TinyStream:
    """A loader of further batches that can say and take up its position."""

    def __init__(self, in_shape: tuple[int, ...], dense: bool = False) -> None:
        self.in_shape = in_shape
        self.dense = dense
        self.number = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go on from the position."""
        while True:
            self.number += 1
            yield batch(self.number + STEPS, self.in_shape, self.dense)

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"number": self.number}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up a position."""
        self.number = state["number"]
