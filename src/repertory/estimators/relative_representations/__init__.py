r"""Describe each latent by its similarity to fixed anchor examples, so that encoders trained apart can work together.

## Idea
Encoders that were trained with different seeds, architectures or languages differ roughly by a rotation and a scale of
their latent space. The angles between examples stay. So an example is described by its cosines with a set of anchor
examples, embedded by the same encoder: these numbers do not change under rotation and scale, and a head trained on them
works behind another encoder without any training (zero-shot stitching). They also tell how alike two spaces are.

## Use it when
- you have several encoders of the same kind of data and want to exchange heads, or search one's embeddings by
  another's;
- a model is trained anew and what was built on its embeddings should keep working;
- you want to compare latent spaces without labels and without training.

## Do not use it when
- the anchors cannot be embedded by every encoder: they must be the same examples, or translations of each other;
- one encoder is all there is: the coordinates that it has are as good and shorter;
- latents are not compared by angle: spaces that differ by more than rotation and scale need `similarity="basis"`, or
  training.

## Equations
For an encoder $E$ and anchors $a_1, \dots, a_A$:
$$ r(x) = \big( \cos(E(x), E(a_1)), \dots, \cos(E(x), E(a_A)) \big) $$
With latents $Z$ and anchors $B$ as rows, for orthogonal $Q$ and $s > 0$: $r(s Z Q; s B Q) = r(Z; B)$. Coordinates in
the anchors, $Z B^{+}$, do not change under any invertible linear map where there are as many anchors as dimensions.

## Defaults
`anchors=500`, cosines, and a layer norm in front of the head are the authors' for images (300 anchors in their
demonstration). Anchors are drawn at random; "stratified" is what their image experiments use. In a comparison anchors
are taken from the training part, all of it if there are fewer than 500.

## Cost
`rows * anchors * dim` multiplications. `RelativeLayer` encodes the anchors in each training pass, without gradient;
`refresh=10` does so in every tenth.

## Claim
A head trained behind one encoder works behind another that it has never seen, with little loss; on absolute latents it
is at chance.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.estimators.relative_representations.anchors import choose_anchors
from repertory.estimators.relative_representations.layer import RelativeLayer
from repertory.estimators.relative_representations.projection import (
    alignment_errors,
    latent_similarity,
    quantise,
    relative_projection,
)
from repertory.estimators.relative_representations.transformer import RelativeProjection
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="relative-representations",
    name="Relative representations",
    title="Relative representations enable zero-shot latent space communication",
    authors="Luca Moschella et al.",
    year=2023,
    venue="ICLR 2023",
    link="https://arxiv.org/abs/2209.15430",
    kind="estimator",
    entry="RelativeProjection",
    problems=(
        "model stitching",
        "latent space alignment",
        "comparing embeddings",
        "backward-compatible embeddings",
        "cross-model reuse",
    ),
    defaults={"anchors": 500, "similarity": "cosine", "choice": "random", "center": False, "random_state": 0},
    scenarios=("retrieval",),
    tags=("anchors", "invariance", "zero-shot", "representation similarity", "embedding"),
)

__all__ = [
    "CARD",
    "RelativeLayer",
    "RelativeProjection",
    "alignment_errors",
    "choose_anchors",
    "edit",
    "latent_similarity",
    "quantise",
    "relative_projection",
]


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Search by similarities to anchors from the training part, instead of by embeddings."""
    RelativeProjection(**options).check_options()
    part = Part("repertory.estimators.relative_representations:RelativeProjection", options, "relative-representations")
    return recipe.add("after", part)
