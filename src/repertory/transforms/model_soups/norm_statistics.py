"""Running statistics of batch norm, estimated anew for weights that no training step has made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.modes import evaluating


@torch.no_grad()
def refresh_norm_statistics(model: nn.Module, batches: Iterable[Any]) -> int:
    """Estimate the running statistics of all batch-norm layers anew: the mean over batches, one vote each.

    An average of weights does not have the average of the statistics. Everything but batch norm stays in
    evaluation mode, so dropout does not disturb them.

    Args:
        model: the network, changed in place; its modes are put back.
        batches: training data: tensors, mappings with "input", or sequences that begin with the inputs.
            Batches of one example have no variance and are left out.

    Returns:
        The number of examples that went through the network; 0 if it has no running statistics.
    """
    layers = norm_layers(model)
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    examples = 0
    with evaluating(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for batch in batches:
            inputs = batch if isinstance(batch, Tensor) else _inputs(batch)
            if len(inputs) > 1:
                model(inputs)
                examples += len(inputs)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    return examples


def norm_layers(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch-norm layers that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


def _inputs(batch: Any) -> Tensor:
    return batch["input"] if isinstance(batch, Mapping) else batch[0]
