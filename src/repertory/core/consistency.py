"""Base of methods that learn unlabelled examples from two views of each, in the forward pass of the labelled ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from repertory.core.method import Inner, Method
from repertory.core.state import Run, State
from repertory.errors import ConflictError, check_number


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or as they are where they are wider, so that half precision loses no confidence."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class WeakStrong(Method, ABC):
    """Base of methods that compare a weakly and a strongly changed view of each unlabelled example.

    Labelled examples and both views go through the network together, in one forward pass: layers that normalise by the
    batch see all of them, and several processes stay in step. `state.output`, and whatever other methods wrap around
    the loss, is of the labelled examples. Weak outputs come without gradient.

    Subclasses set `slug` and override `unlabelled_loss`.

    Args:
        weight: factor on the unlabelled loss; 0 leaves the views out of the network altogether.
        ratio: unlabelled examples a labelled one in a batch; loaders of your own have the size that you give them.

    Raises:
        OptionError: if an option is outside its range.
    """

    needs = frozenset({"stream:unlabelled", "views:weak-strong", "classes"})
    owns = frozenset({"forward"})

    def __init__(self, weight: float, ratio: int) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("ratio", ratio, minimum=1, integer=True)
        self.weight = weight
        self.stream_sizes = {"unlabelled": ratio}

    @abstractmethod
    def unlabelled_loss(self, state: State, weak: Tensor, strong: Tensor) -> Tensor:
        """Return the mean loss of the unlabelled examples, 0-d.

        Args:
            state: this evaluation of the loss.
            weak: logits of the weak views `(batch, classes)`, detached.
            strong: logits of the strong views `(batch, classes)`.
        """

    def uses_views(self) -> bool:
        """Whether this step has a use for the unlabelled examples; else they do not go through the network."""
        return True

    def setup(self, run: Run) -> None:
        """Take over the evaluation of the network."""
        if self.weight > 0:
            run.forward = self._evaluate

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the unlabelled loss to the loss of every labelled example."""
        values = inner(state)
        outputs = state.memo.pop(self.slug, None)
        return values if outputs is None else values + self.weight * self.unlabelled_loss(state, *outputs)

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        run, inputs, target = state.run, state.batch["input"], state.batch.get("target")
        if not self.uses_views():
            state.output = run.model(inputs)
            return criterion(state.output, target)
        weak, strong = state.batch["unlabelled"]["views"]
        if weak.shape[1:] != inputs.shape[1:] or strong.shape != weak.shape:
            raise ConflictError(
                f"{self.slug} passes labelled inputs and both views together, but they are {tuple(inputs.shape)}, "
                f"{tuple(weak.shape)} and {tuple(strong.shape)}; give all of them one shape"
            )
        outputs = run.model(torch.cat([inputs, weak, strong]))
        state.output, weak_outputs, strong_outputs = outputs.split([len(inputs), len(weak), len(strong)])
        state.memo[self.slug] = (weak_outputs.detach(), strong_outputs)
        # The labelled examples are counted by the step.
        run.counts.forward += 2 * len(weak)
        if torch.is_grad_enabled():
            run.counts.backward += 2 * len(weak)
        return criterion(state.output, target)
