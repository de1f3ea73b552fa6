"""A network as a function of one vector of all its parameters, so that whole trainings can be differentiated."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repertory.errors import DataError, UserError

_KERNEL_AXES = 3
"""Parameters with at least this many axes are kernels of convolutions: (out, in, length), (out, in, height, width)."""


class FlatNetwork:
    """A network whose trainable parameters are given with each call, as one vector.

    Running statistics of batch norm are no parameters: every call works on a copy of them, so a network in training
    mode normalises by its batch and keeps its statistics as they were.

    Args:
        module: the network; it stays as it is, and its own parameters are not used by calls.

    Raises:
        UserError: if it has no trainable parameter.

    >>> network = FlatNetwork(nn.Linear(2, 1))
    >>> network(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[10.0, 100.0]])).item()
    213.0
    """

    def __init__(self, module: nn.Module) -> None:
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not trained:
            raise UserError(f"{type(module).__name__} has no trainable parameter; trajectories are those of parameters")
        self.module = module
        self.shapes = {name: value.shape for name, value in trained.items()}
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """Number of trainable parameters."""
        return sum(self._sizes)

    def vector(self) -> Tensor:
        """Return the module's own parameters as a vector `(parameters,)`: a copy without graph."""
        values = dict(self.module.named_parameters())
        return torch.cat([values[name].detach().flatten() for name in self.shapes])

    def pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector into views with the shapes of the parameters, by name.

        Raises:
            DataError: if it has another length.
        """
        if vector.shape != (self.size,):
            raise DataError(
                f"a vector of shape {tuple(vector.shape)} does not fit a network of {self.size} trainable parameters; "
                "take snapshots of the network that is matched"
            )
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(self.shapes.items(), vector.split(self._sizes), strict=True)
        }

    def load(self, vector: Tensor) -> None:
        """Copy the vector `(parameters,)` into the module's own parameters."""
        own = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, piece in self.pieces(vector).items():
                own[name].copy_(piece)

    def perturbed(self, vector: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        r"""Return the vector with noise on the kernels of convolutions, in proportion to each weight.

        $$ w \leftarrow w + \alpha \frac{d}{\lVert d \rVert_F} \odot w, \qquad d \sim \mathcal N(0, I) $$
        for each kernel as a whole; biases, gains and matrices of linear layers stay.

        Args:
            vector: parameters `(parameters,)`.
            scale: $\alpha$; 0 gives the vector itself.
            generator: CPU generator of the draws.
        """
        if scale == 0:
            return vector
        pieces = []
        for piece in self.pieces(vector).values():
            if piece.ndim >= _KERNEL_AXES:
                noise = torch.randn(piece.shape, generator=generator).to(piece)
                piece = piece + scale * noise / torch.linalg.vector_norm(noise) * piece
            pieces.append(piece.flatten())
        return torch.cat(pieces)

    def __call__(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs `(batch, outputs)` at the parameters `vector` `(parameters,)`; differentiable in both."""
        buffers = {name: value.clone() for name, value in self.module.named_buffers()}
        outputs: Tensor = functional_call(self.module, {**self.pieces(vector), **buffers}, (inputs,))
        return outputs
