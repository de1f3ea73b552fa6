r"""Make a few examples from which a student takes the steps that experts took on all real ones.

## Idea
Train experts on the real data and keep their weights after each epoch. Then put a student where an expert once
was, let it make some steps of gradient descent on a handful of made examples, and compare its weights with the
expert's a few epochs later. The whole training of the student is differentiated, down to the pixels, and so is
its step size, which is learned.

## Use it when
- you want a tiny set to train many small networks on quickly: for search, for continual learning, to share in
  place of the data;
- one to fifty made examples a class are enough, and you can afford the experts, which serve for every set size.

## Do not use it when
- the network is large: the memory holds the graph of all `steps` of a student at once;
- the students that will use the set are of another kind than the experts: the set is made for one network;
- you look for a subset of real examples: made ones may show nothing a person knows (take `data-diet`);
- classes are simple and there is room for several examples of each: at five digits a class, real ones chosen by
  herding taught as much;
- the experts are poor: the set teaches little that they do not know, so train them well first;
- the network normalises by batches: a few made examples are no batch, take instance or group norm.

## Equations
$$ \theta_{n+1} = \theta_n - \eta \nabla_\theta \ell(\theta_n; \mathcal A(S)), \quad \theta_0 = \theta^*_s, \qquad
   L = \frac{\lVert \theta_N - \theta^*_{s+M} \rVert^2}{\lVert \theta^*_s - \theta^*_{s+M} \rVert^2} $$
for a random expert $\theta^*$ and start $s < s_{\max}$; gradient descent with momentum 0.5 on the made examples
$S$ and on $\eta$. The set begins as random real examples.

## Defaults
Those of the authors' code: 100 experts of 50 epochs at learning rate 0.01 without momentum, `steps=20` steps to
catch up with `ahead=3` epochs, `starts=25`, 5000 iterations, learning rates 1000 for the examples and 1e-5 for
the step size, which begins at 0.01. They suit ConvNets on 32x32 photos; the paper tunes `steps`, `ahead`,
`starts` and the rates for every set size (at one CIFAR-10 image a class 50, 2 and 2). Small data want far less:
`iterations=200, experts=10, expert_epochs=20, expert_batch=32, steps=10, ahead=2, starts=8, lr_inputs=10` take
seconds on a table. `strategy` is the augmentation of images; leave mirroring out for digits:
`strategy=[crop,scale,rotate]`.

## Cost
`experts` full trainings, then for each iteration `steps` forward passes of the made examples and four backward
passes each, since a step is differentiated: about four times the plain training of as many steps. Memory: the
graphs of `steps` steps (activations of the forward and backward pass of a batch, and some `3 * steps` copies of
the parameters); `batch_size` bounds the activations. Snapshots take `4 * experts * (expert_epochs + 1)` bytes a
parameter: on the CPU, above 4 GiB in a file that is mapped. All is done in float32, whatever the precision of
the run.

## Claim
Networks trained on the made examples are far more accurate than networks trained on as many real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repertory.card import Card
from repertory.curation.condensing import STRATEGY, condensed_by
from repertory.curation.trajectories import ExpertTraining, TrajectoryCondenser
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="mtt",
    name="MTT",
    title="Dataset Distillation by Matching Training Trajectories",
    authors="George Cazenavette et al.",
    year=2022,
    venue="CVPR 2022",
    link="https://arxiv.org/abs/2203.11932",
    kind="curation",
    entry="MTT",
    problems=("dataset distillation", "synthetic training set", "dataset condensation", "trajectory matching"),
    defaults={
        "iterations": 5000,
        "steps": 20,
        "ahead": 3,
        "starts": 25,
        "lr_inputs": 1000.0,
        "lr_rate": 1e-5,
        "rate": 0.01,
        "batch_size": None,
        "strategy": ("colour", "crop", "cutout", "flip", "scale", "rotate"),
        "experts": 100,
        "expert_epochs": 50,
        "expert_lr": 0.01,
        "expert_batch": 256,
    },
    scenarios=("condensation",),
    needs=("classes",),
    neutral={"iterations": 0},
    search={"lr_inputs": (1.0, 1000.0), "rate": (0.001, 0.1)},
    tags=("matching training trajectories", "bilevel optimisation", "hypergradient", "few examples"),
    baseline=True,
)

__all__ = ["CARD", "MTT", "edit"]


class MTT(TrajectoryCondenser):
    """Condense a training set by matching the trajectories of experts.

    Args:
        iterations: updates of the made examples; 0 leaves them the random real ones they begin as.
        steps: steps of a student.
        ahead: epochs of an expert that these steps are to catch up with.
        starts: students start where an expert was after 0 to `starts - 1` epochs.
        lr_inputs: learning rate of the made examples, whose gradients are small since the loss is relative.
        lr_rate: learning rate of the student's step size.
        rate: the step size at first.
        batch_size: made examples in a step of the student; None takes all.
        strategy: augmentations of which one is drawn for every batch of images, of experts and students.
        experts: number of experts.
        expert_epochs: of each; at least `starts - 1 + ahead`.
        expert_lr: their learning rate.
        expert_batch: their batch size.

    Raises:
        OptionError: if an option is out of range.

    Attributes:
        rate_: the learned step size, to train with on the set; None before it is made.

    >>> MTT(steps=10, starts=8).training.epochs
    50

    Notes:
        A network trained in scenario condensation follows the recipe; the authors train it with gradient descent,
        momentum 0.9 and the learned step size. They step through their experts in a random order; here one is drawn
        anew each time. ZCA whitening and sets with textures are not offered; for whitened inputs, whiten the data.

    Reference: Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022,
    https://arxiv.org/abs/2203.11932.
    """

    def __init__(
        self,
        iterations: int = 5000,
        steps: int = 20,
        ahead: int = 3,
        starts: int = 25,
        lr_inputs: float = 1000.0,
        lr_rate: float = 1e-5,
        rate: float = 0.01,
        batch_size: int | None = None,
        strategy: Sequence[str] = STRATEGY,
        experts: int = 100,
        expert_epochs: int = 50,
        expert_lr: float = 0.01,
        expert_batch: int = 256,
    ) -> None:
        super().__init__(
            ExpertTraining(epochs=expert_epochs, lr=expert_lr, batch=expert_batch, prefix="expert_"),
            experts=experts,
            iterations=iterations,
            steps=steps,
            ahead=ahead,
            starts=starts,
            lr_inputs=lr_inputs,
            lr_rate=lr_rate,
            rate=rate,
            batch_size=batch_size,
            strategy=strategy,
        )


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Let MTT make the condensed set."""
    return condensed_by(recipe, Part("repertory.curation.mtt:MTT", options, "mtt"))
