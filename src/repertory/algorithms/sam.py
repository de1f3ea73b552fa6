r"""Descend along the gradient taken at the worst nearby weights, so that training settles in flat minima.

## Idea
A minimum whose loss rises quickly around it tends to generalise worse than a flat one. SAM first climbs: it moves the
weights a distance `rho` along their gradient, to where a first-order model expects the highest loss nearby. The
gradient computed there replaces the ordinary one in the base optimizer's update of the original weights.

## Use it when
- the network overfits, labels are noisy, or the data set is small for the model;
- you fine-tune or train vision models from scratch and can afford twice the cost a step;
- you need a strong, simple baseline for anything that claims flat minima.

## Do not use it when
- training is limited by compute: at equal cost, twice the steps of the base optimizer may be worth more (see ESAM);
- batches are very large and one gradient for the whole batch smooths the perturbation away.

## Equations
$$ \epsilon = \rho \, \frac{g}{\lVert g \rVert_2 + \delta}, \quad g = \nabla L_B(w), \qquad
   w \leftarrow w - \eta\, \nabla L_B(w + \epsilon) $$
Adaptive (ASAM): $\epsilon = \rho \, w^2 g / (\lVert\, |w| g \,\rVert_2 + \delta)$, element by element.

## Defaults
`rho=0.05` is the paper's choice for CIFAR and ImageNet; adaptive radii are about ten times larger.

## Cost
Two forward and two backward passes a step.

## Claim
SAM lowers the test error of networks that can fit their training set, most of all when part of the labels is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.method import Inner, Method
from repertory.core.perturbation import frozen_norm_statistics, perturbed, total_norm
from repertory.core.state import State
from repertory.errors import check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="sam",
    name="SAM",
    title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
    authors="Pierre Foret et al.",
    year=2021,
    venue="ICLR 2021",
    link="https://arxiv.org/abs/2010.01412",
    kind="algorithm",
    entry="SAM",
    problems=("flat minima", "generalisation", "overfitting", "label noise", "sharpness-aware training"),
    defaults={"rho": 0.05, "adaptive": False},
    scenarios=("supervised", "retrieval", "continual", "semi_supervised", "segmentation"),
    neutral={"rho": 0.0},
    search={"rho": (0.01, 0.5)},
    tags=("sharpness", "robust training"),
    baseline=True,
)

_EPSILON = 1e-12


def ascent_offsets(
    parameters: Sequence[nn.Parameter],
    rho: float,
    adaptive: bool = False,
    epsilon: float = _EPSILON,
) -> list[Tensor]:
    """Return the step of length `rho` along the gradient that each parameter holds in `.grad`.

    Args:
        parameters: parameters with a gradient.
        rho: Euclidean length of the whole step (of `step / |w|` when adaptive).
        adaptive: scale each entry by its weight squared, so that the radius does not depend on the weights' scale.
        epsilon: added to the norm.

    Returns:
        One offset a parameter, of its shape.

    >>> weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> ascent_offsets([weight], rho=0.1)[0]
    tensor([0.0600, 0.0800])
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if adaptive:
        weights = [p.detach() for p in parameters]
        gradients = list(torch._foreach_mul(gradients, weights))
        norm = total_norm(gradients)
        gradients = list(torch._foreach_mul(gradients, weights))
    else:
        norm = total_norm(gradients)
    return list(torch._foreach_mul(gradients, rho / (norm + epsilon))) if gradients else []


class SAM(Method):
    """Sharpness-aware minimization around any base optimizer.

    The running statistics of normalisation layers are those of the first pass only. Weight decay and momentum belong to
    the base optimizer and see the unperturbed weights.

    Args:
        rho: radius of the perturbation, in the norm of all parameters together; 0 is the base optimizer.
        adaptive: use the scale-invariant radius of ASAM.

    Raises:
        OptionError: if `rho` is negative or `adaptive` not a boolean.

    >>> from repertory import Step
    >>> model = nn.Linear(2, 2)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[SAM(rho=0.05)])
    >>> step.explain()
    'step > gradient[sam] > loss'

    Reference: Foret, Kleiner, Mobahi, Neyshabur, https://arxiv.org/abs/2010.01412; adaptive radius: Kwon et al.,
    https://arxiv.org/abs/2102.11600.
    """

    slug = "sam"
    owns = frozenset({"ascent"})

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__()
        check_number("rho", rho, minimum=0)
        check_choice("adaptive", adaptive, (True, False))
        self.rho = rho
        self.adaptive = adaptive

    def gradient(self, state: State, inner: Inner) -> Tensor:
        """Take the gradient at the weights moved up the first gradient."""
        loss = inner(state)
        if self.rho == 0:
            return loss
        moved = [p for p in state.run.parameters if p.grad is not None]
        offsets = ascent_offsets(moved, self.rho, self.adaptive)
        with perturbed(moved, offsets), frozen_norm_statistics(state.run.model):
            inner(state.replace(evaluation=state.evaluation + 1))
        return loss


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add SAM to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.sam:SAM", options, "sam"))
