r"""Train one embedding so that its first numbers are a good embedding by themselves, for every size in a list.

## Idea
A task loss is added up over prefixes of the embedding. So the first coordinates learn what matters most, and one model
serves every budget: cut the embedding to what storage or search allows, search by few dimensions and rank what was
found by more.

## Use it when
- embeddings are stored or searched in numbers, and the size that you can afford is not fixed yet or differs by use;
- you want a cheap first search and an exact ranking from the same vectors;
- you would otherwise train one model a size.

## Do not use it when
- one size is all you need: train at that size; a prefix is at best as good;
- you can afford a linear map after the fact and the data have few dimensions: PCA of an ordinary embedding is a strong
  rival there (at 8 of 64 dimensions it was better in the recorded experiment), so compare with it;
- the embedding ends in a ReLU, or in a LayerNorm over all of it: prefixes die, or depend on what was cut off.

## Equations
For sizes $m_1 < \dots < m_S = d$ and an embedding $z \in \mathbb{R}^d$, with a classifier $W_m, b_m$ a size
$$ L = \sum_m c_m \, \mathrm{CE}\big( W_m z_{1:m} + b_m,\; y \big) . $$
MRL-E shares one matrix, $W_m = W_{:, 1:m}$, and one bias. Around a loss $\ell$ on embeddings, prefixes are scaled:
$$ L = \sum_m c_m \, \ell\Big( \frac{z_{1:m}}{\lVert z_{1:m} \rVert}, \dots \Big) . $$

## Defaults
All weights $c_m$ are 1, as the authors have it. Their sizes are the width of the network, halved down to 8; so are
those of a comparison, down from the embedding's. In the scenario retrieval the recipe's own loss is put around every
prefix; `softtriple+matryoshka` works too. In the scenario supervised classifiers stand on an embedding of `dim=64`
numbers that is not scaled; `efficient=true` is MRL-E.

## Cost
The network's own, and the loss once a size. Classifiers: `classes * sum(sizes)` products, about twice those of one
classifier where sizes double. MRL-E makes the products of one classifier, but writes and reads the logits of every
size: forward and backward of nine sizes of 2048 dimensions and 1000 classes take 1.2 times as long as one classifier on
a CPU core (2.5 times with a product a size), five sizes of 128 dimensions 1.4 to 2 times (2.5), by how much memory is
contended (`benchmarks/matryoshka.py`). A search by 8 of 64 dimensions and a ranking of 200 takes an eighth of the
products, and 200 times 64 more.

## Claim
Prefixes are as good as models trained at that size, better than an ordinary embedding cut short, and the whole is as
good as ever; a search by few dimensions, ranked by all, finds what the exact search finds.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from repertory.card import Card
from repertory.core.features import takes_embeddings
from repertory.errors import OptionError, check_choice
from repertory.layers.embedding import with_embedding
from repertory.losses.matryoshka.head import MRLHead, nested_linear
from repertory.losses.matryoshka.loss import MatryoshkaLoss, MRLLoss, truncate
from repertory.losses.matryoshka.search import AdaptiveRetrieval
from repertory.losses.matryoshka.sizes import check_sizes, check_weights, halved
from repertory.recipe import Part, Recipe, locate

__all__ = [
    "CARD",
    "AdaptiveRetrieval",
    "MRLHead",
    "MRLLoss",
    "MatryoshkaLoss",
    "edit",
    "matryoshka_criterion",
    "nested_linear",
    "truncate",
]

CARD = Card(
    slug="matryoshka",
    name="MRL",
    title="Matryoshka Representation Learning",
    authors="Aditya Kusupati et al.",
    year=2022,
    venue="NeurIPS 2022",
    link="https://arxiv.org/abs/2205.13147",
    kind="loss",
    entry="MatryoshkaLoss",
    problems=(
        "embedding truncation",
        "variable-size embeddings",
        "cheap nearest-neighbour search",
        "adaptive retrieval",
        "memory of a vector index",
    ),
    defaults={"weights": None, "reduction": "mean"},
    scenarios=("retrieval", "supervised"),
    needs=("classes",),
    owns=("head",),
    tags=("embedding", "nested dropout", "re-ranking", "funnel search", "MRL-E", "image retrieval"),
)

_FACTORY = "repertory.losses.matryoshka:matryoshka_criterion"


def matryoshka_criterion(
    outputs: int,
    around: Mapping[str, Any],
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
    efficient: bool = False,
) -> nn.Module:
    """Build a recipe's criterion on every prefix of an embedding.

    Args:
        outputs: number of classes.
        around: the criterion, as `Part.to_dict()` gives it; its options `dim` and `outputs` are set where it has them.
        sizes: numbers of leading dimensions.
        weights: factor on the loss of each size.
        efficient: one classifier for all sizes, for a criterion on logits.

    Returns:
        `MatryoshkaLoss` around a criterion on embeddings, `MRLLoss` with one on logits.
    """
    part = Part.from_dict(around)
    if not takes_embeddings(locate(part.factory)):
        return MRLLoss(outputs, sizes, weights, efficient, _built(part, outputs, None))
    return MatryoshkaLoss(lambda size: _built(part, outputs, size), sizes, weights)


def _built(part: Part, outputs: int, dim: int | None) -> nn.Module:
    asked = inspect.signature(locate(part.factory)).parameters
    context = {"outputs": outputs, "dim": dim}
    made: nn.Module = part.build(**{name: value for name, value in context.items() if name in asked and value})
    return made


def edit(
    recipe: Recipe,
    dim: int | None = None,
    sizes: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    efficient: bool = False,
) -> Recipe:
    """Put the recipe's loss on every prefix of its embedding; a recipe that classifies gets an embedding and heads.

    Args:
        recipe: the baseline, edited or not.
        dim: size of the embedding, None for that of the recipe's criterion, or 64.
        sizes: growing numbers of leading dimensions, None for `dim` and its halves down to 8.
        weights: factor on the loss of each size, None for 1.
        efficient: one classifier for all sizes (MRL-E), where the recipe classifies.

    Raises:
        OptionError: if an option is not allowed.
    """
    searched = takes_embeddings(locate(recipe.criterion.factory))
    dim = (
        (recipe.criterion.options.get("dim", 64) if sizes is None else max(check_sizes(sizes))) if dim is None else dim
    )
    chosen = list(check_sizes(halved(dim) if sizes is None else sizes, increasing=True))
    check_weights(weights, chosen)
    check_choice("efficient", efficient, (True, False))
    if efficient and searched:
        raise OptionError(
            "efficient=True shares a classifier of logits, but the recipe's loss takes embeddings; leave it"
        )
    options = {"around": recipe.criterion.to_dict(), "sizes": chosen, "weights": weights, "efficient": efficient}
    recipe = with_embedding(recipe, dim, "matryoshka", unit=searched)
    return recipe.replace(criterion=Part(_FACTORY, options, "matryoshka"))
