"""Keys to compare with: features of a copy of the network that follows it slowly, and a queue of earlier ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.features import NetworkFeatures
from repertory.core.frozen import FrozenCopy
from repertory.core.queues import FeatureQueue
from repertory.core.state import Run, batch_size
from repertory.errors import DataError, check_number


class MomentumKeys(nn.Module):
    """A momentum encoder and its queue of keys, as in MoCo.

    A queue that is longer than the training set would hold several keys of one example, so it is cut to the number of
    examples where the run knows it. Over several processes each pushes its keys to all queues.

    Args:
        run: its network is copied.
        where: which features are keys, one of `repertory.core.features.FEATURES`.
        size: keys in the queue.
        momentum: share of the copy that each update keeps, in [0, 1].

    Raises:
        OptionError: if an option is outside its range.

    >>> from repertory.core.state import Run
    >>> keys = MomentumKeys(Run(nn.Linear(2, 3), nn.MSELoss(), examples=100), "output", size=512, momentum=0.99)
    >>> keys(torch.ones(4, 2)).shape, len(keys.queue.features)
    (torch.Size([4, 3]), 100)

    Reference: He, Fan, Wu, Xie, Girshick, Momentum Contrast for Unsupervised Visual Representation Learning,
    https://arxiv.org/abs/1911.05722.
    """

    def __init__(self, run: Run, where: str, size: int, momentum: float) -> None:
        super().__init__()
        check_number("size", size, minimum=1, integer=True)
        check_number("momentum", momentum, minimum=0, maximum=1)
        self.momentum = momentum
        self.encoder = FrozenCopy(run.model)
        self._features = NetworkFeatures(self.encoder.model, run.criterion, where)
        self.queue = FeatureQueue(min(size, run.examples or size), self._features.dim)
        self.to(run.device)
        self._run = run

    def follow(self) -> None:
        """Move the copy towards the network by what `momentum` does not keep."""
        self.encoder.follow(self._run.model, 1 - self.momentum)

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        """Return the keys of the inputs: unit vectors `(batch, dim)` in float32 or wider. The pass is counted.

        Raises:
            DataError: if the network's features are not of the size that its last linear layer tells.
        """
        with self._features.recorded() as seen:
            self.encoder(inputs)
        self._run.counts.forward += batch_size({"input": inputs})
        keys, dim = seen[-1], self.queue.features.shape[1]
        if keys.shape[1] != dim:
            raise DataError(
                f"the network's features are {tuple(keys.shape)}, but its last linear layer tells {dim} numbers an "
                "example; name another place with features"
            )
        return nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=1)
