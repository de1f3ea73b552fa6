"""A network together with its criterion: what training changes, and what predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of, features_and_output
from repertory.core.features import takes_embeddings


class Learner(nn.Module):
    """A network and the loss it is trained with, as one module that predicts.

    Most criteria have no part in prediction. One that does, since it holds the classes' centres say, offers
    `logits(output)`. Regression outputs are put back on the target's own scale.

    Args:
        network: the network.
        criterion: the loss.
        offset: added to the output (mean of the training targets; 0 for classification).
        scale: the output is multiplied by it first (their standard deviation; 1 for classification).
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, criterion: nn.Module | Callable[..., Any], offset: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.register_buffer("offset", torch.tensor(offset))
        self.register_buffer("scale", torch.tensor(scale))

    def get_classifier(self) -> nn.Module:
        """Return the network's last linear layer; one inside the criterion is none."""
        return classifier_of(self.network)[1]

    def embed(self, inputs: Tensor) -> Tensor:
        """Return what inputs are searched by, `(batch, dim)`.

        That is what the network's `encode(inputs)` gives where it has one; else its output, where the criterion takes
        embeddings (it has `logits`, or says `embeds = True`); else what enters its last linear layer.
        """
        encode = getattr(self.network, "encode", None)
        if callable(encode):
            found: Tensor = encode(inputs)
            return found
        if takes_embeddings(self.criterion):
            return self.network(inputs)
        return features_and_output(self.network, inputs)[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `(batch, classes)`, or values `(batch, 1)`."""
        output = self.network(inputs)
        logits = getattr(self.criterion, "logits", None)
        output = logits(output) if callable(logits) else output
        return output * self.scale + self.offset
