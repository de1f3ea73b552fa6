r"""Train through a projection head and use what enters it: features that the training objective would throw away.

## Idea
A loss only keeps what it needs. Gradient descent makes the features ever more unequal from layer to layer, so the last
one holds what the training labels ask for, while earlier ones still hold the rest. A head behind the encoder takes that
loss upon itself: train with it, then search or transfer by what enters it. Where a learned head is too opaque, a fixed
one that weighs the coordinates by falling powers does part of it without parameters.

## Use it when
- you search, or transfer, for finer or other classes than those you can train on;
- augmentation disturbs what the later task needs;
- training finds a shortcut, and the later data lacks it.

## Do not use it when
- the later task is the one you train for: what leaves the head is then as good;
- only the predictions of the trained classifier count: the head is then just one more layer;
- batch normalisation stands at the end of the encoder and you want the fixed head: it undoes the unequal weights.

## Equations
Features $h = f(x)$, training on $z = g(h)$, use of $h$. Heads: $g(h) = W_2 \, \mathrm{ReLU}(W_1 h)$, linear, or fixed,
$z_i = \kappa^{-(i-1)} h_i$.

Of a linear network on independent coordinates with second moments $a_i$, and $b_i$ across a positive pair, the spectral
contrastive loss is least where feature $i$ leaves the head with the gain $s_i = \sqrt{b_i} / a_i$, and 0 for
$b_i \le 0$. Small initial weights balance the $L$ layers, so that behind layer $l$ the gain is $s_i^{l/L}$: before a
linear head all ratios of gains are those behind it under a root.

## Defaults
`kind="mlp"` with two layers as wide as the features is what the authors put between network and classifier. The values
of `kappa` they used are not known here; `kappa=1.05` weighs the last of 64 features by 0.05. `kind="identity"` is the
network as it was.

## Cost
$2 N d^2$ multiplications for the MLP, none worth mentioning for the fixed head. Searching by $h$ costs what the width
of the features costs.

## Claim
What enters the head serves other tasks better than what leaves it, and better than what a network without a head
learns; the fixed head gains about as much.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.layers.projection_head.heads import KINDS, FixedReweightingHead, ProjectionHead
from repertory.layers.projection_head.network import ProjectedNetwork, add_projection_head
from repertory.layers.projection_head.report import layer_report, linear_probe
from repertory.layers.projection_head.theory import (
    feature_gains,
    feature_moments,
    layer_gains,
    optimal_gains,
    spectral_loss,
)
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="projection-head",
    name="Projection head",
    title="Investigating the Benefits of Projection Head for Representation Learning",
    authors="Yihao Xue et al.",
    year=2024,
    venue="ICLR 2024",
    link="https://arxiv.org/abs/2403.11391",
    kind="layer",
    entry="ProjectionHead",
    problems=(
        "coarse labels",
        "unseen classes",
        "class collapse",
        "which layer to transfer",
        "image retrieval",
        "spurious features",
    ),
    defaults={"kind": "mlp", "hidden": None, "output": None, "kappa": 1.05},
    scenarios=("retrieval", "supervised"),
    neutral={"kind": "identity"},
    search={"kappa": (1.01, 1.2)},
    tags=("contrastive learning", "representation", "transfer learning", "embedding", "linear probe"),
)

__all__ = [
    "CARD",
    "KINDS",
    "FixedReweightingHead",
    "ProjectedNetwork",
    "ProjectionHead",
    "add_projection_head",
    "edit",
    "feature_gains",
    "feature_moments",
    "layer_gains",
    "layer_report",
    "linear_probe",
    "optimal_gains",
    "spectral_loss",
]


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Put a head before the network's last linear layer; a search then goes by what enters the head."""
    factory = "repertory.layers.projection_head:add_projection_head"
    return recipe.add("surgery", Part(factory, options, "projection-head"))
