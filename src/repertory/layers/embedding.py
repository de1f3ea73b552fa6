"""A head that embeds instead of classifying: a linear map onto the unit sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repertory.core.classifier import replace_classifier
from repertory.errors import check_number
from repertory.recipe import Part, Recipe

_SHORTEST = 1e-12
"""Vectors up to this length count as zero."""
_HEADS = {True: "repertory.layers.embedding:embedding_head", False: "repertory.layers.embedding:linear_embedding_head"}
"""By whether the embedding is scaled to length 1. Two factories, so that it is no option of a method on top of them."""


def unit_rows(vectors: Tensor) -> Tensor:
    """Return the vectors at length 1, in float32 or wider; a zero vector stays zero, and no gradient flows to it.

    Args:
        vectors: `(..., dim)`.

    >>> unit_rows(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    # Division by a floor, as is usual, would blow the gradient of a zero vector up by its inverse.
    return wide / torch.where(length > _SHORTEST, length, math.inf)


class UnitRows(nn.Module):
    """Scale each row to length 1, in float32 or wider."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return `(..., dim)` vectors of length 1."""
        return unit_rows(vectors)


def embedding_head(model: nn.Module, outputs: int, dim: int = 64) -> nn.Module:
    """Replace the network's classifier in place by a linear map to `dim` numbers, scaled to length 1.

    Args:
        model: the network; its last linear layer is replaced.
        outputs: number of classes, on which an embedding does not depend.
        dim: size of the embedding.

    Returns:
        The network.

    Raises:
        OptionError: if `dim` is not a positive whole number.
        UserError: if the network has no linear layer.

    >>> model = embedding_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), outputs=3, dim=2)
    >>> model(torch.ones(5, 4)).shape
    torch.Size([5, 2])
    """
    check_number("dim", dim, minimum=1, integer=True)
    return replace_classifier(model, lambda features: nn.Sequential(nn.Linear(features, dim), UnitRows()))


def linear_embedding_head(model: nn.Module, outputs: int, dim: int = 64) -> nn.Module:
    """Replace the network's classifier in place by a linear map to `dim` numbers, of any length.

    Args, result and errors are those of `embedding_head`.
    """
    check_number("dim", dim, minimum=1, integer=True)
    return replace_classifier(model, lambda features: nn.Linear(features, dim))


def with_embedding(recipe: Recipe, dim: int, slug: str | None, unit: bool = True) -> Recipe:
    """Return the recipe with a network that ends in an embedding, whether it ended in one before or not.

    Args:
        recipe: the baseline.
        dim: size of the embedding.
        slug: the method that asks for it.
        unit: scale to length 1; False leaves the numbers as they are.

    >>> recipe = Recipe(*(Part("torch.nn:Identity") for _ in range(3)))
    >>> [part.options for part in with_embedding(with_embedding(recipe, 64, None), 8, "mine").surgery]
    [{'dim': 8}]
    """
    others = tuple(part for part in recipe.surgery if part.factory not in _HEADS.values())
    return recipe.replace(surgery=(*others, Part(_HEADS[unit], {"dim": dim}, slug)))
