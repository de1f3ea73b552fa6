"""A network with a head before its last linear layer, which can be asked for what enters the head."""

from __future__ import annotations

from torch import Tensor, nn

from repertory.core.classifier import classifier_of, replace_classifier
from repertory.errors import UserError, check_choice
from repertory.layers.projection_head.heads import KINDS, ProjectionHead


class ProjectedNetwork(nn.Module):
    """A network that has a `ProjectionHead` somewhere inside.

    Args:
        network: has the head, and gives what is trained.

    Raises:
        UserError: if there is no head in it.

    >>> import torch
    >>> model = ProjectedNetwork(nn.Sequential(nn.Linear(2, 4), ProjectionHead(4), nn.Linear(4, 3)))
    >>> model(torch.ones(5, 2)).shape, model.encode(torch.ones(5, 2)).shape
    (torch.Size([5, 3]), torch.Size([5, 4]))
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not any(isinstance(module, ProjectionHead) for module in network.modules()):
            raise UserError(
                f"{type(network).__name__} has no ProjectionHead; add_projection_head(model, outputs) puts one in"
            )
        self.network = network

    @property
    def head(self) -> ProjectionHead:
        """The head."""
        return next(module for module in self.network.modules() if isinstance(module, ProjectionHead))

    def get_classifier(self) -> nn.Module:
        """Return the network's last linear layer."""
        return classifier_of(self.network)[1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's output, behind the head."""
        output: Tensor = self.network(inputs)
        return output

    def encode(self, inputs: Tensor) -> Tensor:
        """Return what enters the head `(batch, width)`: what to search and to transfer by."""
        return self.both(inputs)[0]

    def both(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what enters the head and what leaves it, from one pass through the network."""
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self.head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        try:
            self.network(inputs)
        finally:
            handle.remove()
        return seen[-1]


def add_projection_head(
    model: nn.Module, outputs: int, kind: str = "mlp", hidden: int | None = None, kappa: float = 1.05
) -> nn.Module:
    """Put a head of the features' width before the network's last linear layer, which stays as it is.

    Args:
        model: the network; changed in place.
        outputs: number of classes, on which the head does not depend.
        kind: as in `ProjectionHead`; "identity" gives the network back as it was.
        hidden: width of the MLP's hidden layer; None is that of the features.
        kappa: of the fixed head.

    Returns:
        A `ProjectedNetwork`, or the network itself for "identity".

    Raises:
        OptionError: if an option is outside its range.
        UserError: if the network has no linear layer.
    """
    check_choice("kind", kind, KINDS)
    if kind == "identity":
        return model
    _, last = classifier_of(model)
    return ProjectedNetwork(
        replace_classifier(model, lambda width: nn.Sequential(ProjectionHead(width, kind, hidden, None, kappa), last))
    )
