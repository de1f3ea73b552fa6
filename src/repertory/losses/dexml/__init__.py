r"""Learn to retrieve several right labels or documents for a query without making them compete with each other.

## Idea
With the softmax over all labels, one right label that is found easily takes probability from the others, and as soon
as it has more than its share it is pushed down: a right answer is punished for being right. The decoupled softmax
compares each right label with the wrong ones only. A second loss asks for the right labels to be among the k that are
shown, by a differentiable top-k. With either, an encoder of queries and labels alone does what classifiers with a
vector a label do.

## Use it when
- queries have several right answers, of which some are frequent and easy, others rare;
- you train a dual encoder (two towers) with contrastive losses, and its negatives are many;
- what counts is what is among the first k: take the top-k loss.

## Do not use it when
- each query has one right answer: both are then ordinary losses (the decoupled softmax is the softmax);
- capacity is ample and right labels few and evenly frequent: the plain softmax is then as good or better;
- probabilities that add up to 1 over labels are wanted.

## Equations
With scores $s_j = q^\top l_j / \tau$ and right labels P,
$$ L_{\mathrm{decoupled}} = -\frac{1}{|P|} \sum_{j \in P} \log \frac{e^{s_j}}{e^{s_j} + \sum_{n \notin P} e^{s_n}},
   \qquad
   L_{\mathrm{top\text{-}k}} = -\frac{1}{|P|} \sum_{j \in P} \log \sigma(\alpha (s_j + t)), $$
with the t for which $\sum_j \sigma(\alpha (s_j + t)) = k$; both are averaged over queries.

## Defaults
`temperature=0.05` ($\tau$) on unit embeddings, `alpha=2`, `k=5` and 32 halvings are the authors'. In a comparison the
other examples of the class in the batch are what is right (k is their number), in batches of `per_class=4` a class; the
authors' setting has queries and labels, for which there are `DecoupledSoftmaxLoss` and `SoftTopKLoss`. They draw one
right label a query and step (`sample=1`); here all are taken, which is the same on average.

## Cost
One table of scores a step: `batch^2 * dim` products in a comparison, `batch * labels * dim` against all labels. The
top-k evaluates 32 sigmoids a score, without a graph. `backward_in_chunks` trains against all labels in the memory of
one chunk, for one more forward pass.

## Claim
Precision at 1 is higher with the decoupled softmax than with the softmax, and precision at 5 with the soft top-5.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.losses.dexml.chunks import backward_in_chunks
from repertory.losses.dexml.decoupled import DecoupledSoftmaxLoss, decoupled_softmax
from repertory.losses.dexml.in_batch import DEXMLLoss
from repertory.losses.dexml.metrics import (
    label_propensities,
    ndcg_at_k,
    precision_at_k,
    propensity_precision_at_k,
    recall_at_k,
)
from repertory.losses.dexml.top_k import SoftTopKLoss, soft_top_k
from repertory.recipe import Part, Recipe

__all__ = [
    "CARD",
    "DEXMLLoss",
    "DecoupledSoftmaxLoss",
    "SoftTopKLoss",
    "backward_in_chunks",
    "decoupled_softmax",
    "edit",
    "label_propensities",
    "ndcg_at_k",
    "precision_at_k",
    "propensity_precision_at_k",
    "recall_at_k",
    "soft_top_k",
]

CARD = Card(
    slug="dexml",
    name="DEXML",
    title="Dual-Encoders for Extreme Multi-Label Classification",
    authors="Nilesh Gupta et al.",
    year=2024,
    venue="ICLR 2024",
    link="https://arxiv.org/abs/2310.10636",
    kind="loss",
    entry="DEXMLLoss",
    problems=(
        "extreme multi-label classification",
        "several right answers a query",
        "dual encoders",
        "InfoNCE with many positives",
        "top-k retrieval",
        "very many classes",
    ),
    defaults={"loss": "decoupled", "temperature": 0.05, "k": "positives", "alpha": 2.0, "reduction": "mean"},
    scenarios=("retrieval",),
    needs=("classes",),
    search={"temperature": (0.02, 0.5)},
    across_batch=True,
    tags=("decoupled softmax", "soft top-k", "contrastive", "multi-label", "gradient cache", "two towers"),
)


def edit(recipe: Recipe, per_class: int = 4, **options: Any) -> Recipe:
    """Train the recipe's embedding with a loss of DEXML, in batches with `per_class` examples of each class."""
    sampler = Part("repertory.core.sampling:ClassBatches", {"per_class": per_class}, "dexml")
    return recipe.replace(criterion=Part("repertory.losses.dexml:DEXMLLoss", options, "dexml"), sampler=sampler)
