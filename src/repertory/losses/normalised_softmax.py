"""A softmax classifier on unit vectors: one direction a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows


class NormalisedSoftmaxLoss(nn.Module):
    r"""Cross-entropy on cosines with one learnt direction a class, over a temperature.

    $-\log \mathrm{softmax}_y(\cos(x, w_c) / \tau)$. The baseline of a comparison in the scenario retrieval. Computed in
    float32 or wider, also under autocast.

    Args:
        outputs: number of classes.
        dim: size of the embeddings.
        temperature: divides the cosines.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range; in use, if embeddings are not of size `dim`.

    >>> NormalisedSoftmaxLoss(outputs=3, dim=4)(torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([])

    Reference: Zhai, Wu, Classification is a Strong Baseline for Deep Metric Learning, https://arxiv.org/abs/1811.12649
    (without its layer norm and class-balanced batches).
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}

    def __init__(self, outputs: int, dim: int = 64, temperature: float = 0.05, reduction: str = "mean") -> None:
        super().__init__()
        check_number("outputs", outputs, minimum=2, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        check_number("temperature", temperature, above=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature = temperature
        self.reduction = reduction
        self.weight_of_classes = nn.Parameter(torch.randn(outputs, dim) / dim**0.5)

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            embedding: `(batch, dim)`, of any length.
            target: classes `(batch,)`, int64.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            return nn.functional.cross_entropy(self.logits(embedding), target, reduction=self.reduction)

    def logits(self, embedding: Tensor) -> Tensor:
        """Return the cosine with each class over the temperature, `(batch, classes)`."""
        dim = self.weight_of_classes.shape[1]
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise OptionError(
                f"dim={dim} does not fit embeddings of shape {tuple(embedding.shape)}; they must be (batch, {dim})"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            unit = unit_rows(embedding)
            return unit @ unit_rows(self.weight_of_classes).to(unit.dtype).T / self.temperature

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        outputs, dim = self.weight_of_classes.shape
        return f"outputs={outputs}, dim={dim}, temperature={self.temperature}, reduction={self.reduction!r}"
