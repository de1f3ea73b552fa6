r"""Adam that survives gradient spikes: clip them, smooth each tensor's gradient norm, and forget old moments.

## Idea
At four bits gradient norms jump about, single entries spike, and Adam turns sensitive to its learning rate: a
spike stays in its moments for hundreds of steps. Stable-SPAM puts two filters before Adam, each with a memory
of one number a tensor. The first shrinks entries above a running mean of the tensor's largest entry. The second
gives the whole gradient a norm that follows from running means of its norm and squared norm. From SPAM it takes
over that the moments start anew every thousand steps.

## Use it when
- you train with weights or activations at four or eight bits, really or simulated;
- the loss spikes, or runs at your learning rate sometimes diverge;
- you cannot afford to tune the learning rate closely: it loses less at one that is too large.

## Do not use it when
- training is stable and the rate well tuned: there Adam is as good or better, and cheaper;
- gradients shrink to nothing towards the end of training and the size matters to you: the filters make the step
  independent of their scale, tensor by tensor;
- the run is shorter than a few hundred steps: the filters and resets have nothing to go by.

## Equations
For the gradient $g$ of a tensor in its step $k$, with all running means from zero:
$$ M \leftarrow \gamma_3 M + (1 - \gamma_3) \max_i |g_i|, \qquad \hat M = M / (1 - \gamma_3^k), \qquad
   g_i \leftarrow g_i\, \hat M / \max_j |g_j| \ \text{ where } |g_i| > \hat M $$
$$ a \leftarrow \gamma_1 a + (1 - \gamma_1) \lVert g \rVert, \qquad
   b \leftarrow \gamma_2 b + (1 - \gamma_2) \lVert g \rVert^2, \qquad
   g \leftarrow \frac{g}{\lVert g \rVert} \cdot
   \frac{a / (1 - \gamma_1^k)}{\sqrt{b / (1 - \gamma_2^k)} + \epsilon} $$
Then Adam with decoupled weight decay on $g$, whose moments are zero again, and whose count of steps starts at 1
again, in every step that `reset_interval` divides. With `total_steps` both $\gamma_1$ and $\beta_1$ fall along a
cosine to `eta_min` of themselves.

## Defaults
`gamma1=0.7, gamma2=0.9, gamma3=0.999` are the authors' for four bits; their run in bfloat16 has `gamma1=0.85,
gamma2=0.99999`. `reset_interval=1000`; 500 in their 4-bit scripts. `total_steps` is the length of the training
in steps of the optimizer, advised for language models. A comparison keeps the learning rate and weight decay of
the baseline's AdamW.

## Cost
AdamW's state and three numbers a tensor. Two reductions and a few passes over the gradient more than AdamW: on a CPU
a step of 5 M parameters took 1.7 times AdamW's (`benchmarks/optimizer_cost.py`).

## Claim
Under four bits and spikes it is more accurate than Adam, above all where the learning rate is too large.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.optim.stable_spam.spam import SPAM
from repertory.optim.stable_spam.stable import STATISTICS, StableSPAM, stable_gradients
from repertory.recipe import Part, Recipe

__all__ = ["CARD", "SPAM", "STATISTICS", "StableSPAM", "edit", "stable_gradients"]

CARD = Card(
    slug="stable-spam",
    name="Stable-SPAM",
    title="Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam",
    authors="Tianjin Huang et al.",
    year=2025,
    venue="arXiv",
    link="https://arxiv.org/abs/2502.17055",
    kind="optimizer",
    entry="StableSPAM",
    problems=("low-precision training", "gradient spikes", "learning-rate robustness", "unstable Adam"),
    defaults={
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "gamma1": 0.7,
        "gamma2": 0.9,
        "gamma3": 0.999,
        "reset_interval": 1000,
        "total_steps": None,
        "eta_min": 0.5,
        "maximize": False,
        "foreach": None,
    },
    scenarios=("supervised", "online", "retrieval", "continual", "semi_supervised", "segmentation"),
    search={"lr": (3e-4, 3e-2)},
    tags=("quantisation", "4-bit", "int4", "gradient clipping", "gradient normalisation", "momentum reset"),
)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Replace the optimizer; after AdamW at its learning rate and weight decay."""
    base = recipe.optimizer
    if base.factory == "torch.optim:AdamW":
        decay = base.options.get("weight_decay", 1e-2)
        options = {"lr": base.options.get("lr", 1e-3), "weight_decay": decay, **options}
    return recipe.replace(optimizer=Part("repertory.optim.stable_spam:StableSPAM", options, "stable-spam"))
