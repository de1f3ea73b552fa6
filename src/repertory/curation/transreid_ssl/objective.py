"""The self-supervised objective of the scoring runs: two views of an example are each other's positive in the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of, features_and_output
from repertory.core.method import Inner, Method
from repertory.core.randomness import seeded
from repertory.core.state import Run, State, batch_size
from repertory.errors import check_number
from repertory.losses.contrastive import ContrastiveLoss


class TwoViews(Method):
    """Contrastive training on two views, without labels, in place of the criterion (SimCLR).

    What enters the network's last linear layer goes through a small projection, which is thrown away afterwards; the
    last layer itself, and the criterion, are frozen and left as they are. A second `Step` goes on with the same
    projection.

    Args:
        temperature: divides the cosines.
        dim: size of the projection.

    Raises:
        OptionError: if an option is out of range.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> method = TwoViews()
    >>> step = Step(model, torch.optim.SGD(model[0].parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[method])
    >>> inputs = torch.randn(6, 4)
    >>> loss = step({"input": inputs, "views": [inputs + 0.1, inputs - 0.1]})
    >>> step.run.counts.passes
    36.0

    Reference: Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations,
    https://arxiv.org/abs/2002.05709.
    """

    slug = "two-views"
    needs = frozenset({"views"})
    owns = frozenset({"target", "forward"})

    def __init__(self, temperature: float = 0.2, dim: int = 64) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        self.dim = dim
        self.criterion = ContrastiveLoss(temperature, reduction="none")
        self.projection: nn.Module | None = None

    def setup(self, run: Run) -> None:
        """Make the projection, and freeze what the objective does not reach."""
        classifier = classifier_of(run.model)[1]
        if self.projection is None:
            width = classifier.in_features
            with seeded(run.seed, self.slug):
                made = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.dim))
            self.projection = made.to(run.device)
        classifier.requires_grad_(False)
        if isinstance(run.criterion, nn.Module):
            run.criterion.requires_grad_(False)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return how well each example's views are told from all others', in place of the criterion's value."""
        assert self.projection is not None
        views, size = state.batch["views"], batch_size(state.batch)
        features, state.output = features_and_output(state.run.model, torch.cat(list(views)))
        # The step counts one view.
        state.run.counts.forward += size
        state.run.counts.backward += size
        index = torch.arange(size, device=features.device)
        values: Tensor = self.criterion(self.projection(features), torch.cat([index] * len(views)))
        return values.view(len(views), size).mean(0)
