r"""Match the trajectories of strong experts whose way was made smooth, from representative examples on.

## Idea
A student of a few made examples can follow weak experts, but not strong ones: with momentum they move too fast.
AST (Alignment with Smooth Experts) slows experts down where they are fastest, by a scaled-down loss in the
first epochs and a penalty on their slopes, and helps the student: it begins with examples that stand for their
class, steps further from late starts than from early ones, meets the expert on the way as well as at its end,
and starts from slightly perturbed weights.

## Use it when
- you would take `mtt`, and experts are trained with momentum or for long;
- the sets that `mtt` makes depend much on the real examples they began as.

## Do not use it when
- `mtt` is not for you: what is said there of memory, networks and made examples holds here too;
- students keep up with strong experts as they are, as perceptrons on digits did: smoothing then only weakens the
  experts, so match these first with all other switches off;
- you would rather not choose options: each part is a switch, and with all of them off this is `mtt`;
- the network has no convolutions and you count on `perturbation`: it acts on their kernels alone.

## Equations
Experts minimise $a_e\, \ell + \lambda\, \operatorname{mean}((\lVert \partial_x \sum_k z_k \rVert_2 - 1)^2)$
with $a_e = \min(1, 0.5 + 0.05 e)$ in epoch $e$. A student starts at $\theta_0 = \theta^*_s + \alpha\, d /
\lVert d \rVert_F \odot \theta^*_s$ (kernels; $d$ normal) and takes steps with momentum $\beta$ on $c_s \ell$;
it is judged by
$$ L = \frac{\lVert \theta_N - \theta^*_{s+M} \rVert^2}{\lVert \theta_0 - \theta^*_{s+M} \rVert^2}
   + \sum_{i=1}^{M-1} b_i
   \frac{\lVert \theta_{i \lfloor N/M \rfloor} - \theta^*_{s+i} \rVert^2}{\lVert \theta_0 - \theta^*_{s+i} \rVert^2} $$
with $c_s = \log_5(s - h + 8)$ from $h = \lfloor s_{\max} / 2 \rfloor$ on, and $1 / \log_5(h - s + 8)$ before.

## Defaults
Of the authors' code for one CIFAR-100 image a class: `steps=20`, `ahead=3`, `starts=20`, 5000 iterations at
1000 (examples) and 1e-5 (step size, from 0.01), $\beta = 0.9$, $\alpha = 1$, $b_i = 1$; 100 experts of 50
epochs at 0.003 with momentum 0.9, weight decay 1e-3, and 0.6 times the learning rate in their second half;
$\lambda = 2$. They advise (`ahead`, `starts`) = (2, 30) at 10 and 80 steps with (2, 40) at 50 images a class.
`mtt` says what small data want. The slope's length is taken over the channels of each pixel, as in the code;
`penalty_norm=example` takes it over the image.

## Cost
A matching step costs what one of `mtt` costs, memory included; momentum and intermediate targets add next to
nothing. The penalty adds a forward pass and a differentiated backward pass to every step of an expert, which
then costs about three times as much.

## Claim
Sets matched to smooth strong experts train better networks than those of MTT from as many experts and
iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repertory.card import Card
from repertory.curation.condensing import STRATEGY, condensed_by
from repertory.curation.trajectories import ExpertTraining, TrajectoryCondenser
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="smooth-trajectories",
    name="AST",
    title="Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories",
    authors="Jiyuan Shen et al.",
    year=2023,
    venue="arXiv 2023",
    link="https://arxiv.org/abs/2310.10541",
    kind="curation",
    entry="AST",
    problems=("dataset distillation", "synthetic training set", "dataset condensation", "trajectory matching"),
    defaults={
        "iterations": 5000,
        "steps": 20,
        "ahead": 3,
        "starts": 20,
        "lr_inputs": 1000.0,
        "lr_rate": 1e-5,
        "rate": 0.01,
        "batch_size": None,
        "strategy": ("colour", "crop", "cutout", "flip", "scale", "rotate"),
        "momentum": 0.9,
        "balanced": True,
        "intermediate": "equal",
        "perturbation": 1.0,
        "initialisation": "representative",
        "experts": 100,
        "expert_epochs": 50,
        "expert_lr": 0.003,
        "expert_batch": 256,
        "expert_momentum": 0.9,
        "expert_weight_decay": 1e-3,
        "expert_decay": 0.6,
        "clipped": True,
        "penalty": 2.0,
        "penalty_norm": "channels",
    },
    scenarios=("condensation",),
    needs=("classes",),
    neutral={"iterations": 0, "initialisation": "random"},
    search={"lr_inputs": (1.0, 1000.0), "rate": (0.001, 0.1)},
    tags=("matching training trajectories", "smooth experts", "gradient penalty", "k-means initialisation"),
)

__all__ = ["AST", "CARD", "edit"]


class AST(TrajectoryCondenser):
    """Condense a training set by matching the trajectories of smooth experts.

    With `momentum=0, balanced=False, intermediate="none", perturbation=0, initialisation="random", expert_momentum=0,
    expert_weight_decay=0, expert_decay=1, clipped=False, penalty=0` it is `MTT`, bit for bit.

    Args:
        iterations: updates of the made examples.
        steps: steps of a student.
        ahead: epochs of an expert that these steps are to catch up with.
        starts: students start where an expert was after 0 to `starts - 1` epochs.
        lr_inputs: learning rate of the made examples.
        lr_rate: learning rate of the student's step size.
        rate: the step size at first.
        batch_size: made examples in a step of the student; None takes all.
        strategy: augmentations of which one is drawn for every batch of images, of experts and students.
        momentum: of the student, 0 for plain gradient descent.
        balanced: scale the student's loss by its start, see `repertory.curation.trajectories.balance`.
        intermediate: weight of the expert's snapshots on the way: "none", "equal" (1) or "rising" (i of M).
        perturbation: noise on the convolutions of the start, relative to each weight; 0 for none.
        initialisation: "representative", real examples nearest to the centres of k-means clusters of an expert's
            outputs, as many clusters as examples a class; or "random".
        experts: number of experts.
        expert_epochs: of each; at least `starts - 1 + ahead`.
        expert_lr: their learning rate.
        expert_batch: their batch size.
        expert_momentum: their momentum.
        expert_weight_decay: their weight decay.
        expert_decay: factor on their learning rate in the second half.
        clipped: scale their loss by 0.5 in the first epoch, by 0.05 more in each further one, up to 1.
        penalty: weight of their slopes' distance from length 1; 0 for none.
        penalty_norm: length over the "channels" of each place, or all of an "example".

    Raises:
        OptionError: if an option is out of range.

    Attributes:
        rate_: the learned step size, to train with on the set; None before it is made.

    >>> AST().training.share(epoch=2)
    0.6

    Notes:
        The authors' code cuts every class into 10 clusters and takes the ipc/10 examples nearest to each centre, which
        needs ipc to divide by 10; here there are as many clusters as examples, as in the paper. Kernels of convolutions
        in one and three dimensions are perturbed like those in two. Their code also trains on test batches while it
        evaluates experts with a clipped loss; nothing of that here. See `MTT` for what is trained on the set.

    Reference: Shen, Yang, Lam, Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert
    Trajectories, 2023, https://arxiv.org/abs/2310.10541.
    """

    def __init__(
        self,
        iterations: int = 5000,
        steps: int = 20,
        ahead: int = 3,
        starts: int = 20,
        lr_inputs: float = 1000.0,
        lr_rate: float = 1e-5,
        rate: float = 0.01,
        batch_size: int | None = None,
        strategy: Sequence[str] = STRATEGY,
        momentum: float = 0.9,
        balanced: bool = True,
        intermediate: str = "equal",
        perturbation: float = 1.0,
        initialisation: str = "representative",
        experts: int = 100,
        expert_epochs: int = 50,
        expert_lr: float = 0.003,
        expert_batch: int = 256,
        expert_momentum: float = 0.9,
        expert_weight_decay: float = 1e-3,
        expert_decay: float = 0.6,
        clipped: bool = True,
        penalty: float = 2.0,
        penalty_norm: str = "channels",
    ) -> None:
        training = ExpertTraining(
            epochs=expert_epochs,
            lr=expert_lr,
            momentum=expert_momentum,
            weight_decay=expert_weight_decay,
            batch=expert_batch,
            decay=expert_decay,
            clipped=clipped,
            penalty=penalty,
            penalty_norm=penalty_norm,
            prefix="expert_",
        )
        super().__init__(
            training,
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
            momentum=momentum,
            balanced=balanced,
            intermediate=intermediate,
            perturbation=perturbation,
            initialisation=initialisation,
        )


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Let AST make the condensed set."""
    return condensed_by(recipe, Part("repertory.curation.smooth_trajectories:AST", options, "smooth-trajectories"))
