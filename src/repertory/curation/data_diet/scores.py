"""Scores of examples: how wrong a network is on each, and how far each would move it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.classifier import classifier_of, features_and_output
from repertory.core.gradient_norms import example_gradient_norms
from repertory.core.modes import evaluating
from repertory.errors import check_choice, check_number

_HELD = 2**28
"""Numbers that the gradients of a chunk may hold together: 1 GiB of float32."""


def el2n(logits: Tensor, targets: Tensor, order: float = 2) -> Tensor:
    """Return the length of each example's error vector: predicted probabilities less the one-hot label.

    Args:
        logits: `(examples, classes)`.
        targets: classes `(examples,)`, int64.
        order: of the norm; 2 is EL2N, 1 the sum of the absolute errors.

    Returns:
        `(examples,)`, for order 2 from 0 to the square root of 2.

    >>> el2n(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0]))
    tensor([0.3742])
    """
    errors = logits.softmax(1) - functional.one_hot(targets, logits.shape[1])
    return torch.linalg.vector_norm(errors, ord=order, dim=1)


def margin(logits: Tensor, targets: Tensor, kind: str = "max") -> Tensor:
    """Return how far the other classes' probabilities exceed the label's.

    Args:
        logits: `(examples, classes)`.
        targets: classes `(examples,)`, int64.
        kind: "max" for the largest difference, in (-1, 1), "sum" for the sum of all of them.
    """
    check_choice("kind", kind, ("max", "sum"))
    own = functional.one_hot(targets, logits.shape[1]).bool()
    probabilities = logits.softmax(1)
    excess = probabilities - probabilities[own][:, None]
    return excess.sum(1) if kind == "sum" else excess.masked_fill(own, -torch.inf).amax(1)


def last_layer_norm(features: Tensor, logits: Tensor, targets: Tensor, bias: bool = True) -> Tensor:
    """Return the norm of each example's cross-entropy gradient in the weights of the last linear layer.

    Args:
        features: what enters the layer `(examples, width)`.
        logits: what leaves it `(examples, classes)`.
        targets: classes `(examples,)`, int64.
        bias: whether the layer has one.
    """
    return el2n(logits, targets) * (features.square().sum(1) + bias).sqrt()


def grand(model: nn.Module, inputs: Tensor, targets: Tensor, *, chunk: int | None = None, mode: str = "full") -> Tensor:
    """Return the norm of each example's cross-entropy gradient, in evaluation mode.

    Args:
        model: the network; its trainable parameters count, and it is left as it was.
        inputs: `(examples, ...)`.
        targets: classes `(examples,)`, int64.
        chunk: examples that are worked on at a time; each takes as much memory as the network's parameters.
            None takes as many as fit in 1 GiB, at most 256.
        mode: "full" for all trainable parameters, "last_layer" for those of the last linear layer, in closed
            form.

    Returns:
        `(examples,)`, without gradient.

    Raises:
        OptionError: if `chunk` is not a whole number from 1 on, or `mode` is not known.

    >>> model = nn.Linear(2, 2)
    >>> inputs, targets = torch.ones(3, 2), torch.tensor([0, 1, 1])
    >>> torch.allclose(grand(model, inputs, targets), el2n(model(inputs), targets) * 3**0.5)
    True
    """
    check_choice("mode", mode, ("full", "last_layer"))
    if chunk is None:
        chunk = max(1, min(256, _HELD // sum(p.numel() for p in model.parameters())))
    check_number("chunk", chunk, minimum=1, integer=True)
    with evaluating(model):
        if mode == "full":
            return example_gradient_norms(model, inputs, targets, _summed, chunk)
        bias = classifier_of(model)[1].bias is not None
        with torch.no_grad():
            parts = zip(inputs.split(chunk), targets.split(chunk))
            return torch.cat([last_layer_norm(*features_and_output(model, x), y, bias) for x, y in parts])


class ForgettingCounter(nn.Module):
    """Count how often each example goes from right to wrong between two presentations in training.

    Args:
        examples: size of the training set.

    >>> counter = ForgettingCounter(2)
    >>> for correct in ([1, 0], [0, 0], [1, 0], [0, 0]):
    ...     counter.update(torch.tensor([0, 1]), torch.tensor(correct))
    >>> counter.scores()
    tensor([2., inf])
    """

    correct: Tensor
    learnt: Tensor
    forgotten: Tensor

    def __init__(self, examples: int) -> None:
        super().__init__()
        check_number("examples", examples, minimum=1, integer=True)
        self.register_buffer("correct", torch.zeros(examples, dtype=torch.bool))
        self.register_buffer("learnt", torch.zeros(examples, dtype=torch.bool))
        self.register_buffer("forgotten", torch.zeros(examples))

    def update(self, index: Tensor, correct: Tensor) -> None:
        """Note a presentation.

        Args:
            index: positions of the batch in the training set `(batch,)`, each at most once.
            correct: whether the network was right on each `(batch,)`, before the update of its weights.
        """
        index, correct = index.to(self.correct.device), correct.to(self.correct.device, torch.bool)
        self.forgotten[index] += self.correct[index] & ~correct
        self.correct[index] = correct
        self.learnt[index] |= correct

    def scores(self) -> Tensor:
        """Return the counts `(examples,)`, infinity for examples that were never right."""
        return self.forgotten.masked_fill(~self.learnt, torch.inf)


def _summed(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="sum")
