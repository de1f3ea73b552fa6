"""The protocol of a training algorithm: a module that wraps one or more of the three calls of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from repertory.core.state import Run, State

Inner = Callable[[State], Tensor]
"""The call that a method wraps: takes a state, returns a loss."""


class Method(nn.Module):
    """A training algorithm as a part of a `Step`.

    Subclasses set `slug` and override what they need. Buffers, parameters and submodules are saved with the step and
    moved with it. Random draws come from `state.run.generator(self.slug)`, never from the global generator.

    Attributes:
        slug: the name under which the method's state is saved; one method of a slug a step.
        needs: what it asks for: "index" (positions in the training set, in every batch), "group" (the bag of each),
            "epochs" (how many passes are planned), "classes", "per_example_loss", "views" (two changed versions of the
            inputs), "strong" (a strongly changed version of them), "stream:NAME", "views:weak-strong" (in each
            unlabelled batch, a weakly and a strongly changed version of its inputs), "class_counts", "teacher" (a
            trained network, `run.teacher`), "training" (the whole training set without augmentation,
            `run.training_batches()`).
        owns: slots of which one step has only one: "target", "update", "batch_size", "sampler", "forward", "ascent".
        takes: what it expects of the batch as it reaches the method, such as `{"target": "hard"}`.
        gives: what the batch is after it.
        stream_sizes: examples of a stream, by its name, for each example of the main batch, where not one.
    """

    slug: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    owns: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[Mapping[str, str]] = {}
    gives: ClassVar[Mapping[str, str]] = {}
    stream_sizes: Mapping[str, int] = {}

    def setup(self, run: Run) -> None:
        """Prepare once, before the optimizer exists: change `run.model`, make own parameters or copies."""

    def step(self, state: State, inner: Inner) -> Tensor:
        """Make one update of the weights; may call `inner` any number of times."""
        return inner(state)

    def gradient(self, state: State, inner: Inner) -> Tensor:
        """Leave fresh, unscaled gradients in `.grad` of the parameters; may call `inner` again at other weights.

        Returns:
            The batch's mean loss, 0-d, detached.
        """
        return inner(state)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Evaluate the loss once.

        A method that hands `inner` a changed copy of the state takes the output back: `state.output = copy.output`.

        Returns:
            `(batch,)` where the criterion gives a value an example, else 0-d; with gradient.
        """
        return inner(state)

    def epoch_end(self, run: Run) -> None:
        """Called when a pass over the training set is complete; `run.epoch` still counts the passes before it."""

    def task_end(self, run: Run) -> None:
        """Called at the end of each task, in scenarios with a sequence of tasks."""

    def wraps(self, call: str) -> bool:
        """Whether this class overrides `step`, `gradient` or `loss`."""
        return getattr(type(self), call) is not getattr(Method, call)
