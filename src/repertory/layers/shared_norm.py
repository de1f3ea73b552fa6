"""Batch normalisation by the batch of all processes together, on any device."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.core.distributed import gather_with_gradient, own_rows, world_size


class SharedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation that sees the rows of all processes, so that two of them make the update of one.

    As `torch.nn.SyncBatchNorm`, but on CPUs too, and for rows `(batch, width)` only: it gathers them, which is cheap
    for the small heads of a method and dear for the feature maps of a network. In one process it is `nn.BatchNorm1d`.

    >>> import torch
    >>> SharedBatchNorm(2)(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).detach()
    tensor([[-1.0000,  0.0000],
            [ 1.0000,  0.0000]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised rows `(batch, width)` of this process."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        normalised: Tensor = super().forward(gather_with_gradient(input))
        return normalised[own_rows(len(input), input.device)]
