"""How far a student that learns from few synthetic examples stays behind an expert, as a function of these examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from repertory.curation.trajectories.network import FlatNetwork
from repertory.errors import DataError, OptionError, check_choice, check_number

INTERMEDIATE = ("none", "equal", "rising")
"""Weights of the expert's snapshots between start and target: 0, 1, or i/M for the i-th of M."""

_BASE, _OFFSET = 5, 8
"""Of the logarithm that balances the inner loss, as in the authors' code."""


def balance(start: int, starts: int) -> float:
    r"""Return the factor on the student's loss that evens out early and late starts.

    $$ \log_5(s - h + 8) \text{ for } s \ge h, \qquad 1 / \log_5(h - s + 8) \text{ before}, \qquad
       h = \lfloor s_{\max} / 2 \rfloor $$

    Args:
        start: epoch of the expert that the student starts from, in [0, starts).
        starts: $s_{\max}$, number of epochs that starts are drawn from.

    Raises:
        OptionError: if the start is none of them.

    >>> [round(balance(start, 20), 4) for start in (0, 9, 10, 19)]
    [0.5568, 0.7325, 1.292, 1.7604]
    """
    check_number("starts", starts, minimum=1, integer=True)
    check_number("start", start, minimum=0, below=starts, integer=True)
    late = start - starts // 2
    return math.log(late + _OFFSET, _BASE) if late >= 0 else 1 / math.log(_OFFSET - late, _BASE)


def unrolled(
    network: FlatNetwork,
    start: Tensor,
    inputs: Tensor,
    targets: Tensor,
    learning_rate: Tensor,
    *,
    steps: int,
    momentum: float = 0.0,
    factor: float = 1.0,
    batch_size: int | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    r"""Return the parameters of a student before and after each step of gradient descent, differentiable.

    $$ m_n = \beta m_{n-1} + c\, \nabla_\theta \ell(\theta_n), \qquad \theta_{n+1} = \theta_n - \eta\, m_n $$
    with the mean cross-entropy $\ell$ on the next batch of a random order of the examples.

    Args:
        network: the student.
        start: its parameters at first `(parameters,)`; nothing flows back into them.
        inputs: examples `(examples, ...)`, which the result is differentiable in.
        targets: their classes `(examples,)`, or probabilities `(examples, classes)`.
        learning_rate: $\eta$, 0-d, which the result is differentiable in.
        steps: number of steps.
        momentum: $\beta$, of heavy-ball momentum without dampening.
        factor: $c$, on the loss.
        batch_size: examples a step; None takes all of them.
        augment: applied to every batch of inputs; differentiable.
        generator: CPU generator of the orders; needed for a batch size below the number of examples.

    Returns:
        `steps + 1` vectors `(parameters,)`, the first of them the start.

    Raises:
        DataError: if inputs and targets do not have the same length.
        OptionError: if a batch size comes without a generator.

    >>> network = FlatNetwork(torch.nn.Linear(1, 2, bias=False))
    >>> data = torch.tensor([[1.0]]), torch.tensor([0])
    >>> [each.tolist() for each in unrolled(network, torch.zeros(2), *data, torch.tensor(1.0), steps=1)]
    [[0.0, 0.0], [0.5, -0.5]]
    """
    if len(inputs) != len(targets):
        raise DataError(f"{len(inputs)} inputs and {len(targets)} targets must be equally many")
    if generator is None and batch_size is not None and batch_size < len(inputs):
        raise OptionError(f"batch_size={batch_size} of {len(inputs)} examples needs a generator for their order")
    vector = start.detach().requires_grad_()
    vectors, velocity = [vector], torch.zeros_like(start)
    batches = _batches(len(inputs), batch_size, generator)
    for _ in range(steps):
        rows = next(batches)
        x, y = (inputs, targets) if rows is None else (inputs[rows], targets[rows])
        loss = factor * functional.cross_entropy(network(vector, x if augment is None else augment(x)), y)
        (slope,) = torch.autograd.grad(loss, vector, create_graph=True)
        velocity = momentum * velocity + slope if momentum else slope
        vector = vector - learning_rate * velocity
        vectors.append(vector)
    return vectors


def matching_loss(vectors: list[Tensor], snapshots: Tensor, intermediate: str = "none") -> Tensor:
    r"""Return how far the student ends from where the expert is, in units of the expert's own way.

    $$ \frac{\lVert \theta_N - \theta^*_M \rVert^2}{\lVert \theta_0 - \theta^*_M \rVert^2} + \sum_{i=1}^{M-1} b_i
       \frac{\lVert \theta_{i \lfloor N/M \rfloor} - \theta^*_i \rVert^2}{\lVert \theta_0 - \theta^*_i \rVert^2} $$

    Args:
        vectors: the student's parameters before and after each of N steps, each `(parameters,)`.
        snapshots: the expert's after 1 to M epochs `(epochs, parameters)`; constants.
        intermediate: $b_i$: "none" (0), "equal" (1) or "rising" (i/M).

    Returns:
        0-d; 0 where the student ends on the expert, 1 where it stayed (with "none").

    Raises:
        OptionError: if there is no such weighting, or the student makes fewer steps than there are epochs to match.
        DataError: if an expert has not moved from the start.
    """
    check_choice("intermediate", intermediate, INTERMEDIATE)
    steps, epochs = len(vectors) - 1, len(snapshots)
    start, snapshots = vectors[0].detach(), snapshots.detach()
    places, weights = [steps], [1.0]
    if intermediate != "none" and epochs > 1:
        if steps < epochs:
            raise OptionError(f"steps={steps} cannot meet an expert in each of {epochs} epochs; make as many at least")
        places = [number * (steps // epochs) for number in range(1, epochs)] + places
        weights = [number / epochs if intermediate == "rising" else 1.0 for number in range(1, epochs)] + weights
    snapshots = snapshots[-len(places) :]
    ways = (start - snapshots).square().sum(1)
    if not bool((ways > 0).all()):
        raise DataError(
            "an expert is where the student starts, so there is no way to measure by; draw starts from earlier epochs, "
            "or train experts with a higher learning rate"
        )
    left = (torch.stack([vectors[place] for place in places]) - snapshots).square().sum(1)
    return (left / ways) @ torch.tensor(weights, dtype=ways.dtype, device=ways.device)


def _batches(examples: int, size: int | None, generator: torch.Generator | None) -> Iterator[Tensor | None]:
    """Rows of one batch after the other without end; None for all of them, whose order does not matter."""
    while True:
        if size is None or size >= examples:
            yield None
        else:
            yield from torch.randperm(examples, generator=generator).split(size)
