r"""Decide by many tests whether two examples belong together: by their similarities to everything else, too.

## Idea
An edge of a neighbour graph usually rests on one similarity, which noise in the features makes unreliable. Here every
other example acts as a further test: two examples are linked where their whole profiles of similarities agree
(Q-attention). B-attention fuses that with plain self-attention, and a small network of such layers over each example's
nearest neighbours learns cleaner features. The comparison of profiles also works by itself, without training.

## Use it when
- features are noisy, and there are many examples of each class to search, cluster or link;
- you have labels of some classes and want better features of others (faces, products, re-identification);
- you build a graph of nearest neighbours: `profile_graph` weighs its links without any training.

## Do not use it when
- features are clean: profiles then add nothing, and the network costs much;
- most classes have one or two examples: there is no neighbourhood to learn from;
- examples must be embedded alone: features depend on the gallery they are searched in.

## Equations
For a context $x \in \mathbb{R}^{k \times d}$, the example and its nearest neighbours at length 1, and $S = x x^\top$:
$$ A_{ij} = q_i^\top k_j, \qquad [u_i, w_i] = W S_i + b, \quad
   Q_{ij} = \frac{u_i^\top w_j}{\lVert u_i \rVert \lVert w_j \rVert}, \qquad
   P = \operatorname{softmax}\big( (\alpha A + \beta Q + \gamma) / \tau \big) $$
$$ x' = \operatorname{LayerNorm}\big( W_o [x, P x] \big) $$
over three layers; the example's own row is kept, and a linear map with PReLU follows. The loss of a batch with cosines
$c_{ij}$ is
$$ 10 \operatorname{mean}_{y_i = y_j} \max(0, 0.95 - c_{ij}) + \max\big(0, 1 + \max_{y_i \ne y_j} c_{ij}\big) . $$
Without training, $R$ is $S$ with rows at length 1 and $Q = R R^\top$.

## Defaults
Contexts of 120, 3 layers of one head, 2048 outputs, loss and SGD (learning rate 0.008, momentum 0.9) are the authors'
for faces, with 100000 updates; `steps=1000` is ours. A context should be smaller than
a class: in a comparison it has 20 rows and a batch 32, and `share=0.3` of the budget goes to the training, where a
context counts as one example. On small data that makes few updates, and most of the effect is that of averaging.

## Cost
A context costs `k^2 * dim` multiplications for similarities and attention and `4 * k^3` for the profiles, a layer.
Without training `rows^3`, and on the `k` nearest neighbours `rows * k^2`.

## Claim
On noisy features, profiles of similarities rank better than similarities, and the network with both kinds of attention
better than with self-attention alone.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.estimators.b_attention.attention import BAttention, BAttentionEncoder, contexts_of, profile_scores
from repertory.estimators.b_attention.loss import cluster_loss
from repertory.estimators.b_attention.profiles import profile_graph, profile_similarity
from repertory.estimators.b_attention.search import BAttentionSearch
from repertory.estimators.b_attention.transformer import BAttentionFeatures
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="b-attention",
    name="B-Attention",
    title="Robust Graph Structure Learning via Multiple Statistical Tests",
    authors="Yaohua Wang et al.",
    year=2022,
    venue="NeurIPS 2022",
    link="https://arxiv.org/abs/2210.03956",
    kind="estimator",
    entry="BAttentionFeatures",
    problems=(
        "noisy nearest-neighbour graph",
        "noisy embeddings",
        "face clustering",
        "person re-identification",
        "graph structure learning",
    ),
    defaults={
        "k": 120,
        "layers": 3,
        "outputs": 2048,
        "heads": 1,
        "hidden": 2048,
        "dropout": 0.0,
        "temperature": 1.0,
        "version": "gcn",
        "scores": "B",
        "feature": "head",
        "pairs": "allmax",
        "margin": 1.0,
        "positive_margin": 0.95,
        "positive_weight": 10.0,
        "steps": 1000,
        "batch": 128,
        "lr": 0.008,
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "random_state": 0,
    },
    scenarios=("retrieval",),
    needs=("classes",),
    tags=("attention", "graph convolution", "transformer", "clustering", "re-ranking", "statistical tests"),
)

__all__ = [
    "CARD",
    "BAttention",
    "BAttentionEncoder",
    "BAttentionFeatures",
    "BAttentionSearch",
    "cluster_loss",
    "contexts_of",
    "edit",
    "profile_graph",
    "profile_scores",
    "profile_similarity",
]


def edit(recipe: Recipe, share: float = 0.3, k: int = 20, batch: int = 32, **options: Any) -> Recipe:
    """Leave B-attention its share of the budget, and refine searched embeddings with it.

    Args:
        recipe: the baseline.
        share: of the recipe's training, that goes to B-attention instead.
        k: rows of a context; fewer than a class has.
        batch: rows an update.
        **options: of `BAttentionFeatures`.
    """
    options = {"k": k, "batch": batch, **options}
    BAttentionSearch(share, **options)
    part = Part("repertory.estimators.b_attention:BAttentionSearch", {"share": share, **options}, "b-attention")
    return recipe.replace(train_share=recipe.train_share * (1 - share)).add("after", part)
