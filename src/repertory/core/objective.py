"""Base of methods that learn without labels, from changed versions of the inputs, in place of the criterion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repertory.core.features import NetworkFeatures
from repertory.core.method import Inner, Method
from repertory.core.randomness import seeded
from repertory.core.state import Run, State


class Objective(Method, ABC):
    """Base of self-supervised methods: what a recipe's slot `objective` holds, and a `Step` takes like any method.

    The features are what enters the network's last linear layer. That layer and the criterion have no part in it: both
    are frozen and left as they are, for whoever trains a classifier on the features afterwards. Labels are not read.

    Subclasses set `slug`, and override `heads` and `loss`. A second `Step` goes on with the heads of the first. The
    views are `batch["views"]`, a list of tensors `(batch, ...)`; a method that needs to know how a view was made takes
    further entries of the batch, one row an example, and names them in its `needs`.
    """

    needs = frozenset({"views"})
    owns = frozenset({"target", "forward"})

    def __init__(self) -> None:
        super().__init__()
        self._features: NetworkFeatures | None = None
        self._made = False

    def heads(self, width: int, run: Run) -> None:
        """Make what the features `(batch, width)` go through: modules, parameters and tables of this method.

        Called once, with the global generator seeded from the run's seed and the slug.
        """

    def setup(self, run: Run) -> None:
        """Find the features, freeze what the objective does not reach, and make the heads."""
        self._features = NetworkFeatures(run.model, run.criterion, "penultimate")
        self._features.layer.requires_grad_(False)
        if isinstance(run.criterion, nn.Module):
            run.criterion.requires_grad_(False)
        if not self._made:
            with seeded(run.seed, self.slug):
                self.heads(self._features.dim, run)
            self.to(run.device)
            self._made = True

    @abstractmethod
    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return the loss, `(batch,)` where it has a value an example, else 0-d, in place of the criterion's."""

    def encode(self, state: State, inputs: Sequence[Tensor]) -> Tensor:
        """Pass several versions of the batch through the network together, count them, and return their features.

        Args:
            state: this evaluation; its output becomes the network's for the first version.
            inputs: versions `(batch, ...)` each.

        Returns:
            `(versions, batch, width)`.
        """
        return self.evaluate(state, inputs)[0]

    def evaluate(self, state: State, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Do as `encode`, and return the network's outputs too.

        Returns:
            features `(versions, batch, width)` and outputs `(versions, batch, ...)`.
        """
        if self._features is None:
            raise RuntimeError(f"{type(self).__name__} has no network yet; give it to a Step, or call setup(run)")
        with self._features.recorded() as seen:
            output = state.run.model(torch.cat(list(inputs)))
        size = len(inputs[0])
        state.output = output[:size]
        # The step counts one version.
        state.run.counts.forward += (len(inputs) - 1) * size
        if torch.is_grad_enabled():
            state.run.counts.backward += (len(inputs) - 1) * size
        shape = (len(inputs), size)
        return seen[-1].unflatten(0, shape), output.unflatten(0, shape)


def projection(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Return a perceptron of one hidden layer for the features to be compared behind.

    Args:
        width: size of the features.
        hidden: units of the hidden layer.
        dim: size of the result.

    >>> projection(8, 8, 4)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))
