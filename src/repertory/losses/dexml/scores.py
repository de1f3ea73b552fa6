"""What losses on a table of scores share: temperature, a draw of right labels, reduction."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from repertory.errors import check_choice, check_number
from repertory.losses.dexml.positives import Positives, positives


class LossOnScores(nn.Module, ABC):
    """A loss on the scores of all labels for each query; what it is of one table is left to `per_query`.

    Args:
        temperature: divides the scores.
        weighted: multiply the loss of each right label by its relevance.
        sample: right labels to draw a query, in proportion to relevance; None takes all.
        seed: of the draws.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, temperature: float, weighted: bool, sample: int | None, seed: int, reduction: str) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_choice("weighted", weighted, (True, False))
        if sample is not None:
            check_number("sample", sample, minimum=1, integer=True)
        check_number("seed", seed, minimum=0, integer=True)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature = temperature
        self.weighted = weighted
        self.sample = sample
        self.seed = seed
        self.reduction = reduction
        self.draws = 0

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            scores: similarity of each query to each label, `(batch, labels)`; cosines, where the temperature is small.
            target: relevances `(batch, labels)`, right where above 0; or, as whole numbers, the one right label
                `(batch,)`, or lists of right labels `(batch, most)` filled up with -1.
        """
        with torch.autocast(scores.device.type, enabled=False):
            wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
            found = positives(wide, target)
            if self.sample is not None:
                found = found.drawn(self.sample, self.seed, self.draws)
                self.draws += 1
            values = self.per_query(wide, found)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    @abstractmethod
    def per_query(self, scores: Tensor, found: Positives) -> Tensor:
        """Return each query's loss `(batch,)`.

        Args:
            scores: over the temperature, `(batch, labels)`, float32 or wider.
            found: the right labels.
        """

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of draws made so far, for the state dict."""
        return {"draws": self.draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from a saved number of draws."""
        self.draws = state["draws"]

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"temperature={self.temperature}, sample={self.sample}, reduction={self.reduction!r}"
