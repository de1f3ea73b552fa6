"""The layer in a training step, and in a network whose evaluation uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.core.state import Run
from repertory.errors import OptionError
from repertory.layers.doubled import DoubledBatch
from repertory.layers.relationship_batch.rbi import RBI, check_options


class RelatedNetwork(nn.Module):
    """A network whose evaluation mixes its features over the batch: what `inference` other than "drop" needs.

    Args:
        network: ends in a linear layer.
        layer: stands before its last linear layer, in evaluation.
    """

    def __init__(self, network: nn.Module, layer: RBI) -> None:
        super().__init__()
        # The layer comes first, so that the last linear layer is the network's.
        self.layer = layer
        self.network = network

    def get_classifier(self) -> nn.Module:
        """Return the network's last linear layer."""
        return classifier_of(self.network)[1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's output; in training that of the features as they are."""
        if self.training:
            return self.network(inputs)
        layer = self.get_classifier()
        handle = layer.register_forward_pre_hook(lambda _, args: (self.layer(args[0], inputs), *args[1:]))
        try:
            return self.network(inputs)
        finally:
            handle.remove()


def relate(
    model: nn.Module,
    outputs: int,
    heads: int = 4,
    rpe: str | None = "qr",
    combine: str = "sum",
    train: str = "dual",
    inference: str = "batch",
    image_size: int = 32,
) -> RelatedNetwork:
    """Put the layer into a network whose evaluation is to use it; `RBITraining` then trains this layer.

    Args:
        model: the network; ends in a linear layer.
        outputs: number of classes, on which the layer does not depend.
        heads: as in `RBI`, like all that follow.
        rpe: how the code of a pair enters.
        combine: how feature and attention are put together.
        train: what is classified in training.
        inference: what is classified in evaluation.
        image_size: images with a longer side are brought down to it.

    Raises:
        OptionError: if an option is outside its range.
        UserError: if the network has no linear layer.
    """
    width = classifier_of(model)[1].in_features
    return RelatedNetwork(model, RBI(width, heads, rpe, combine, train, inference, image_size))


class RBITraining(DoubledBatch):
    """RBI in a `Step`: trains the network with the layer before its last linear one.

    Args:
        heads: as in `RBI`, like all that follow.
        rpe: how the code of a pair enters.
        combine: how feature and attention are put together.
        train: what is classified in training.
        inference: what is classified in evaluation; other than "drop" it needs a network from `relate`.
        image_size: images with a longer side are brought down to it.
        lr_scale: factor on the learning rate of the layer, where the optimizer is made by `Step`; a layer that is part
            of the network has the network's.

    Raises:
        OptionError: if an option is outside its range, or the network does not fit `inference`.

    >>> import functools
    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> sgd = functools.partial(torch.optim.SGD, lr=0.1)
    >>> step = Step(model, sgd, nn.CrossEntropyLoss(), methods=[RBITraining()])
    >>> step((torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))).shape
    torch.Size([])

    Reference: Le, Bui, Tran, Tran, Pham, https://arxiv.org/abs/2412.19606.
    """

    slug = "relationship-batch"

    def __init__(
        self,
        heads: int = 4,
        rpe: str | None = "qr",
        combine: str = "sum",
        train: str = "dual",
        inference: str = "drop",
        image_size: int = 32,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(lr_scale)
        check_options(heads, rpe, combine, train, inference, image_size)
        self.options = (heads, rpe, combine, train, inference, image_size)
        self.copies = 2 if train == "dual" else 1

    def make(self, run: Run, width: int, seed: int) -> nn.Module:
        """Return the layer for features of this width, which is the network's own where it has one."""
        found = next((m for m in run.model.modules() if isinstance(m, RelatedNetwork)), None)
        inference = self.options[4]
        if found is None and inference != "drop":
            raise OptionError(
                f"inference={inference!r} needs the layer inside of the network: "
                f"model = repertory.layers.relationship_batch.relate(model, outputs, inference={inference!r})"
            )
        return RBI(width, *self.options) if found is None else found.layer

    def enlarge(self, features: Tensor, inputs: Any) -> Tensor:
        """Return what enters the last linear layer: features and mixed ones, or the mixed ones alone."""
        assert isinstance(self.layer, RBI)
        mixed = self.layer.mixed(features, inputs)
        return torch.cat([features, mixed]) if self.copies == 2 else mixed
