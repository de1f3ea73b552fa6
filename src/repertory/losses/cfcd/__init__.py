r"""Train one compact descriptor for image search: a softmax whose margin follows the batch, then local triplets.

## Idea
The scale and margin of a softmax on cosines are set anew for each batch, from the median cosine with the right class:
the median example is always given the same small probability of its class, so that supervision hardens as training goes
on, without two numbers to tune. In a second stage matched positions of the last feature map are drawn together, against
those of images that the classifier confuses; the descriptor learns from local details that it is alone at search time.

## Use it when
- you search for instances or classes (landmarks, products) by one vector an image, and re-ranking is too dear;
- the scale and margin of CosFace or ArcFace have to be found for each data set;
- classes to be searched were in training, or there are very many of them.

## Do not use it when
- classes are few and easy, and the search is among others: the margin grows far, and what it gains among the classes of
  training did not carry over in the recorded experiment;
- batches are tiny: one median sets the loss of all;
- for the second stage: the network has no feature map of many positions, or classes have one image.

## Equations
With m the median over the batch of the cosines with the right class, and i the example that has it,
$$ s = \frac{\log\big( \rho (1 - \alpha) / \alpha \big)}{1 - m}, \qquad
   \delta = \max\Big( 0,\; m - \frac1s \log \frac{\alpha \sum_{c \ne y_i} e^{s \cos_{ic}}}{1 - \alpha} \Big), \qquad
   \ell = -\log \frac{e^{s (\cos_y - \delta)}}{e^{s (\cos_y - \delta)} + \sum_{c \ne y} e^{s \cos_c}} . $$
Second stage, over matched descriptors (a, p) and the nearest n of six negatives:
$\sum \max(0, \lVert a - p \rVert^2 - \lVert a - n \rVert^2 + 0.1)$.

## Defaults
`alpha=0.02, rho=9999999` and a scale of at least 32 are those of the authors' experiments; the largest scale of 512 is
ours, where theirs overflows. Tuples of 8, margin 0.1, ratio 0.9 and the half of the positions with most attention are
theirs. In a comparison `local=true` adds the second stage in the second half of the epochs (theirs follows 50 epochs of
the first, with 50 of its own), and `gem=true` pools by a generalised mean with exponent 3, as their network does.

## Cost
A softmax on cosines and a median. The second stage compares all positions of an anchor with all of its positive, and
those that match with all of six negatives, without gradient; at search time nothing.

## Claim
Better mean average precision than with fixed margins, and still better with local triplets.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.errors import check_choice
from repertory.layers.embedding import with_embedding
from repertory.losses.cfcd.gem import GeM, replace_pooling
from repertory.losses.cfcd.local import local_descriptors, local_triplets, match_descriptors
from repertory.losses.cfcd.madacos import MadaCos, madacos_scale_and_margin
from repertory.losses.cfcd.method import LocalTriplet
from repertory.losses.cfcd.tuples import TupleSampler
from repertory.recipe import Part, Recipe

__all__ = [
    "CARD",
    "GeM",
    "LocalTriplet",
    "MadaCos",
    "TupleSampler",
    "edit",
    "local_descriptors",
    "local_triplets",
    "madacos_scale_and_margin",
    "match_descriptors",
    "replace_pooling",
]

CARD = Card(
    slug="cfcd",
    name="CFCD",
    title="Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval",
    authors="Yunquan Zhu et al.",
    year=2023,
    venue="ICCV 2023",
    link="https://arxiv.org/abs/2308.04008",
    kind="loss",
    entry="MadaCos",
    problems=(
        "image retrieval",
        "landmark retrieval",
        "margin and scale to tune",
        "local descriptors",
        "hard negatives",
        "deep metric learning",
    ),
    defaults={
        "dim": 64,
        "alpha": 0.02,
        "rho": 9999999.0,
        "smallest_scale": 32.0,
        "largest_scale": 512.0,
        "reduction": "mean",
    },
    scenarios=("retrieval", "supervised"),
    needs=("classes",),
    owns=("head",),
    search={"alpha": (0.005, 0.2)},
    across_batch=True,
    tags=("MadaCos", "adaptive margin", "CosFace", "GeM pooling", "triplet loss", "tuples"),
)


def edit(
    recipe: Recipe,
    dim: int | None = None,
    local: bool = False,
    gem: bool = False,
    weight: float = 2.0,
    start: float = 0.5,
    **options: Any,
) -> Recipe:
    """Train the recipe's embedding, of `dim` numbers, with MadaCos, and if asked for with local triplets.

    Args:
        recipe: the baseline.
        dim: size of the embedding, None for that of the recipe's criterion, or 64.
        local: add the second stage; it takes a convolutional network.
        gem: pool by a generalised mean.
        weight: of the local triplets.
        start: share of the epochs after which they act.
        options: of `MadaCos`.
    """
    check_choice("local", local, (True, False))
    check_choice("gem", gem, (True, False))
    dim = recipe.criterion.options.get("dim", 64) if dim is None else dim
    recipe = with_embedding(recipe, dim, "cfcd")
    if gem:
        recipe = recipe.add("surgery", Part("repertory.losses.cfcd:replace_pooling", {}, "cfcd"))
    if local:
        triplets = {"weight": weight, "start": start}
        recipe = recipe.add("methods", Part("repertory.losses.cfcd:LocalTriplet", triplets, "cfcd"))
    return recipe.replace(criterion=Part("repertory.losses.cfcd:MadaCos", {"dim": dim, **options}, "cfcd"))
