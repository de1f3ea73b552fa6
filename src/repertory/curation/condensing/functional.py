"""Networks as functions of their parameters, as the inner loops of condensers need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

Logits = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From parameters by name and inputs `(batch, ...)` to logits `(batch, classes)`."""


def frozen_network(network: nn.Module, inputs: Tensor) -> tuple[Logits, dict[str, Tensor]]:
    """Return a network as a function of its parameters, and copies of these; statistics of norm layers stay fixed.

    A few made examples give poor statistics of a batch. So layers that keep running ones take those of real inputs,
    as in Zhao et al. (2021), and from then on behave as in evaluation; so does dropout.

    Args:
        network: left in evaluation mode, with the new statistics.
        inputs: real ones of all classes `(n, ...)`; not looked at where no layer keeps statistics.

    Returns:
        The function, and the parameters that want gradients, by name, as leaves.

    >>> logits, parameters = frozen_network(nn.Linear(2, 3), torch.zeros(1, 2))
    >>> logits(parameters, torch.zeros(4, 2)).shape
    torch.Size([4, 3])
    """
    network.eval()
    keeping = [m for m in network.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    momenta = [module.momentum for module in keeping]
    for module in keeping:
        module.train()
        module.momentum = 1.0
    if keeping:
        with torch.no_grad():
            network(inputs)
    for module, momentum in zip(keeping, momenta):
        module.eval()
        module.momentum = momentum
    buffers = {name: value.detach().clone() for name, value in network.named_buffers()}
    fixed = {name: value.detach() for name, value in network.named_parameters() if not value.requires_grad}
    parameters = {
        name: value.detach().clone().requires_grad_()
        for name, value in network.named_parameters()
        if value.requires_grad
    }

    def logits(at: Mapping[str, Tensor], given: Tensor) -> Tensor:
        return functional_call(network, {**buffers, **fixed, **at}, (given,))

    return logits, parameters


def sgd_passes(
    logits: Logits,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    passes: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train a copy of the parameters by plain gradient descent on cross-entropy; nothing is differentiated through.

    Args:
        logits: the network.
        parameters: where it starts; not changed.
        inputs: `(n, ...)`.
        targets: classes `(n,)`, or probabilities `(n, classes)`.
        passes: over all examples.
        lr: learning rate.
        batch_size: examples a step; the order is drawn anew in each pass.
        generator: CPU generator of the order.
        augment: applied to the inputs of each batch.

    Returns:
        The trained parameters, as leaves.
    """
    now: dict[str, Tensor] = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    inputs = inputs.detach()
    for _ in range(passes):
        order = torch.randperm(len(inputs), generator=generator)
        for rows in [torch.arange(len(inputs))] if batch_size >= len(inputs) else order.split(batch_size):
            rows = rows.to(inputs.device)
            batch = inputs[rows] if augment is None else augment(inputs[rows])
            loss = F.cross_entropy(logits(now, batch), targets[rows])
            found: Any = torch.autograd.grad(loss, list(now.values()))
            with torch.no_grad():
                torch._foreach_add_(list(now.values()), list(found), alpha=-lr)
    return now
