"""A head that embeds instead of classifying: a linear map onto the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.core.classifier import replace_classifier
from repertory.errors import check_number


def unit_rows(vectors: Tensor) -> Tensor:
    """Return the vectors at length 1, in float32 or wider; a zero vector stays zero.

    Args:
        vectors: `(..., dim)`.

    >>> unit_rows(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    return nn.functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


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
