"""B-attention on the embeddings of a trained network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.state import Counts
from repertory.errors import ConflictError, check_number
from repertory.estimators.b_attention.transformer import BAttentionFeatures


class BAttentionSearch:
    """Train B-attention on a network's training embeddings, and refine what is searched with it; for `after`.

    A row of a context counts for nothing, a context for one example: its forward and backward pass cost three.

    Args:
        share: of the whole budget that its training may spend.
        **options: of `BAttentionFeatures`, but for `steps`, which the budget decides.

    Raises:
        OptionError: if an option is not allowed.
    """

    def __init__(self, share: float = 0.3, **options: Any) -> None:
        check_number("share", share, above=0, below=1)
        self.share = share
        self.features = BAttentionFeatures(**options)
        self.features.check_options()

    def apply(self, model: nn.Module, bench: Any) -> nn.Module:
        """Train on the training embeddings of `bench`.

        Returns:
            The model as it was.

        Raises:
            ConflictError: if the targets are not classes.
        """
        embeddings, targets = bench.embed(model, "train")
        if targets.is_floating_point():
            raise ConflictError("b-attention needs classes, but the targets are numbers; leave it out of a regression")
        batch = min(self.features.batch, len(embeddings))
        # What was left to ordinary training is (1 - share) of what this method found.
        budget = bench.budget.part(bench.recipe.train_share * self.share / (1 - self.share))
        start = time.perf_counter()

        def progress(made: int) -> float:
            counts = Counts(forward=len(embeddings) + made * batch, backward=made * batch, steps=made)
            return float(budget.share(counts, time.perf_counter() - start))

        seed = int(torch.randint(2**31, (), generator=bench.generator("b-attention")))
        made = len(self.features.train_on(embeddings.to(bench.device), targets, progress, seed).losses_)
        bench.count(forward=made * batch, backward=made * batch, steps=made)
        return model

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        """Return features of searched embeddings by their nearest neighbours among each other.

        Args:
            embeddings: all that are searched `(rows, dim)`.
            labels: ignored.
            groups: ignored.
        """
        return self.features.refine(embeddings)

    def refinement(self) -> dict[str, Tensor]:
        """Return the trained weights, as tensors to save."""
        return self.features.weights()

    def load_refinement(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights from what `refinement` returned."""
        self.features.load_weights(tensors)
