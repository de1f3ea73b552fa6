r"""Re-rank search results by improving the features: each row takes up what its nearest neighbours say.

## Idea
Re-ranking usually replaces the distance by a costlier one. Here the features of queries and gallery are propagated over
a graph of nearest neighbours a few times, and then searched as before, by cosine or Euclidean distance, with any index.
A second graph that only links different cameras (domains, sources) works against a bias of the camera, and profile
vectors centre and whiten the features of each camera beforehand. No labels are used.

## Use it when
- you search by embeddings and the gallery holds several examples of what is looked for;
- the order of results matters more than the first hit (mean average precision rather than rank 1);
- examples come from cameras, sites or domains that you know, and look alike within one.

## Do not use it when
- most things occur once in the gallery: neighbours are then other things, and features blur;
- the embeddings are so weak that most neighbours are wrong;
- every query must be judged by itself: rows that are refined together depend on each other (`GCR.transform` refines
  queries one by one over a fitted gallery).

## Equations
For unit rows $x_i$ of queries and gallery together, $N_k(i)$ the $k$ nearest rows of $i$, itself among them:
$$ S_{ij} = e^{x_i^\top x_j / \beta} \;[j \in N_k(i)], \qquad
   L_{ij} = \frac{S_{ij}}{\sqrt{\sum_l S_{il} \, \sum_l S_{lj}}} $$
$$ x_i \leftarrow \operatorname{unit}\Big( \alpha \sum_j L'_{ij} x_j + (1 - \alpha) \sum_j L_{ij} x_j \Big) $$
where $L'$ is made like $L$ from rows of other cameras only. Profile vectors, from the gallery's $n_c$ rows $X_c$ of a
camera with mean $\mu_c$:
$$ f = \operatorname{unit}\big( (X_c^\top X_c + n_c \lambda I)^{-1} (x - \mu_c) \big) $$

## Defaults
`k1=15, k2=3, beta1=0.2, beta2=0.2, scale` ($\alpha$) `=0.3, rounds=3, la` ($\lambda$) `=10` are the authors' for
Market-1501 and MARS; for DukeMTMC `k1=13` and no profile vectors. In a comparison they are used where cameras
are known, unless `profile=False`.

## Cost
A nearest-neighbour search of all rows among all in each round, and a sparse product: memory for `rows * k1` links,
never for all pairs. "localk" also compares the neighbours of each row with each other. Searching costs what it did.

## Claim
Propagated features rank better than those that went in, and better than query expansion; the graph between cameras and
profile vectors add to it.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.errors import check_choice
from repertory.estimators.graph_reranking.graph import graph_rerank
from repertory.estimators.graph_reranking.profile import ProfileVector
from repertory.estimators.graph_reranking.transformer import GCR
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="graph-reranking",
    name="GCR",
    title="Graph Convolution for Re-ranking in Person Re-identification",
    authors="Yuqi Zhang et al.",
    year=2022,
    venue="ICASSP 2022",
    link="https://arxiv.org/abs/2107.02220",
    kind="estimator",
    entry="GCR",
    problems=("re-ranking", "image retrieval", "person re-identification", "query expansion", "camera bias"),
    defaults={"k1": 15, "k2": 3, "beta1": 0.2, "beta2": 0.2, "scale": 0.3, "rounds": 3, "mode": "nonsym"},
    scenarios=("retrieval",),
    neutral={"rounds": 0, "profile": False},
    tags=("graph convolution", "diffusion", "video tracklets", "post-processing", "domain shift", "whitening"),
)

__all__ = ["CARD", "GCR", "ProfileVector", "edit", "graph_rerank"]


def edit(recipe: Recipe, profile: bool = True, la: float = 10.0, **options: Any) -> Recipe:
    """Refine all searched embeddings together: profile vectors where cameras are known, then the propagation.

    Args:
        recipe: the baseline.
        profile: use profile vectors.
        la: ridge of the profile vectors.
        **options: of `GCR`.
    """
    check_choice("profile", profile, (True, False))
    GCR(**options).check_options()
    ProfileVector(la=la).check_options()
    if profile:
        options_of_profile = {"la": la}
        recipe = recipe.add(
            "after", Part("repertory.estimators.graph_reranking:ProfileVector", options_of_profile, "graph-reranking")
        )
    return recipe.add("after", Part("repertory.estimators.graph_reranking:GCR", options, "graph-reranking"))
