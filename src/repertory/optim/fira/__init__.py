r"""Train with full-rank updates and optimizer state of low rank: Adam's quality at a part of its memory.

## Idea
GaLore keeps Adam's moments for a projection of each weight's gradient on its leading singular directions, and
throws the rest of the gradient away. But Adam scales gradients by nearly the same ratio at low and at full rank.
So Fira also steps along the rest, scaled row by row (or column by column) by the ratio that Adam gave to the
projected part, which needs no state. The norm of that residual step may grow by one per cent a step only, which
takes away the spikes after a change of projection.

## Use it when
- optimizer state is a large part of your memory: it shrinks with the rank, a quarter of the width is usual;
- you train or fine-tune networks that are mostly large linear layers: transformers, wide perceptrons;
- GaLore fits your memory and loses accuracy.

## Do not use it when
- the network is small, or most of its weights are in embeddings, convolutions with few channels, or vectors:
  there is little to save, and two or three products of matrices a step to pay;
- gradients of the first step have at most `rank` independent rows, as with batches smaller than the rank: the
  residual then starts at nothing and may grow by one per cent a step only;
- steps are short and learning rates fine as they are: Adam is simpler.

## Equations
For a weight of $m \times n$ numbers with $m \le n$ (else the transpose) and gradient $G$: every `update_interval`
steps $P$ becomes the leading $r$ left singular vectors of $G$, and with $R = P^\top G$
$$ M \leftarrow \beta_1 M + (1 - \beta_1) R, \qquad V \leftarrow \beta_2 V + (1 - \beta_2) R^2, \qquad
   N = \frac{M}{\sqrt{V} + \epsilon} $$
$$ S = (I - P P^\top)\, G, \qquad \phi_j = \frac{\lVert N_{:,j} \rVert}{\lVert R_{:,j} \rVert}, \qquad
   Q_{:,j} = \phi_j S_{:,j} $$
$$ Q_t \leftarrow Q_t \min\!\left(1, \gamma\, \frac{\lVert Q_{t-1} \rVert}{\lVert Q_t \rVert}\right), \qquad
   W \leftarrow W - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \left( \alpha P N + Q_t \right) $$
then decoupled weight decay. The moments are not rotated when $P$ changes, and $Q_{t-1}$ is the limited one. The
authors' code has $S = G - \alpha P P^\top G$: `scaled_residual=True`. The two agree at $\alpha = 1$.

## Defaults
`lr=0.01, rank=128, update_interval=200, alpha=0.25` are the authors' for a language model of 60 M parameters and
width 512; `gamma=1.01`, `betas=(0.9, 0.999)`, `eps=1e-6`. A rank between 0 and 1 is a share of each weight's shorter
side. A rank that leaves no weight to project is an error. A comparison takes `rank=0.25` and `alpha=1` at the
learning rate and weight decay of the baseline's AdamW, so that each part of the update has the size of AdamW's.

## Cost
State of an $m \times n$ weight, $m \le n$: $2 n r + m r + 1$ numbers; AdamW has $2 m n$. At a quarter of the width
that is 0.25 to 0.375 of AdamW's. Three products of $m n r$ multiplications a step, and a singular value decomposition
every `update_interval` steps, in which a step takes ten times as
long: on a CPU a step of 5 M parameters took 2 times AdamW's, and 23 times with new projections.

## Claim
At equal rank Fira is more accurate than GaLore, and about as accurate as Adam.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.optim.fira.full import Fira, growth_limit, residual_scale
from repertory.optim.fira.lowrank import GaLore, leading_basis, low_rank, project, project_back
from repertory.recipe import Part, Recipe

__all__ = [
    "CARD",
    "Fira",
    "GaLore",
    "edit",
    "growth_limit",
    "leading_basis",
    "low_rank",
    "project",
    "project_back",
    "residual_scale",
]

CARD = Card(
    slug="fira",
    name="Fira",
    title="Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
    authors="Xi Chen et al.",
    year=2024,
    venue="NeurIPS 2025",
    link="https://arxiv.org/abs/2410.01623",
    kind="optimizer",
    entry="Fira",
    problems=("memory-efficient training", "low-rank optimizer state", "memory-efficient optimizer", "GaLore"),
    defaults={
        "lr": 1e-2,
        "rank": 128,
        "update_interval": 200,
        "alpha": 0.25,
        "gamma": 1.01,
        "scaled_residual": False,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.0,
        "maximize": False,
        "foreach": None,
    },
    scenarios=("supervised", "retrieval", "continual", "semi_supervised", "segmentation"),
    search={"lr": (3e-4, 3e-2)},
    tags=("optimizer state", "low rank", "gradient projection", "large language models", "fine-tuning"),
)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Replace the optimizer, at a rank of a quarter of each weight's shorter side and `alpha=1`.

    After AdamW it has the learning rate and weight decay of that; after another optimizer the authors' defaults
    of these and of `alpha`.
    """
    base = recipe.optimizer
    options = {"rank": 0.25, **options}
    if base.factory == "torch.optim:AdamW":
        decay = base.options.get("weight_decay", 1e-2)
        options = {"lr": base.options.get("lr", 1e-3), "weight_decay": decay, "alpha": 1.0, **options}
    return recipe.replace(optimizer=Part("repertory.optim.fira:Fira", options, "fira"))
