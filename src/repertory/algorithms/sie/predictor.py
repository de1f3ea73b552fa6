"""Predictors of what a known change does to an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import DataError, check_choice, check_number

PREDICTORS = ("linear", "deep", "mlp")
"""How the predictor depends on the change: a matrix that is linear in it; a matrix made by a small network; or one
network that takes both, which may ignore the change."""


class HyperPredictor(nn.Module):
    r"""A matrix made from the change, times the embedding: $A(z)\, a$.

    With `deep=False`, $A(z) = \sum_k z_k A_k$; else the coefficients of the matrices come from two hidden layers of
    the width of the change. No matrix an example is ever made: the products $A_k a$ are weighted by the coefficients.

    Args:
        dim: size of the embedding.
        parameters: numbers that say what was changed.
        deep: make the coefficients from two hidden layers.

    Attributes:
        matrices: `(parameters, dim, dim)`, the $A_k$.

    Raises:
        OptionError: if an option is out of range.
        DataError: in use, if there are not `parameters` numbers for each example.

    >>> predictor = HyperPredictor(dim=2, parameters=1)
    >>> _ = predictor.matrices.data.copy_(torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
    >>> predictor(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])).detach()
    tensor([[-6.,  3.]])
    """

    def __init__(self, dim: int, parameters: int, deep: bool = False) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        check_number("parameters", parameters, minimum=1, integer=True)
        self.parameters_of_change = parameters
        self.coefficients: nn.Module = nn.Identity()
        if deep:
            # Without biases, as in the authors' code: no change at all has no effect that depends on nothing.
            layers = [nn.Linear(parameters, parameters, bias=False) for _ in range(2)]
            self.coefficients = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())
        bound = parameters**-0.5
        self.matrices = nn.Parameter(torch.empty(parameters, dim, dim).uniform_(-bound, bound))

    def forward(self, embedding: Tensor, change: Tensor) -> Tensor:
        """Return the predicted embedding of the changed input.

        Args:
            embedding: of the input before `(batch, dim)`.
            change: what was done to it `(batch, parameters)`.
        """
        check_change(embedding, change, self.parameters_of_change)
        weights = self.coefficients(change.to(embedding))
        moved = torch.einsum("bj,kij->bki", embedding, self.matrices)
        return (weights[:, :, None] * moved).sum(1)


class MLPPredictor(nn.Module):
    """A perceptron of one hidden layer on change and embedding together, for comparison.

    Args:
        dim: size of the embedding and of the hidden layer.
        parameters: numbers that say what was changed.
    """

    def __init__(self, dim: int, parameters: int) -> None:
        super().__init__()
        self.parameters_of_change = parameters
        self.layers = nn.Sequential(nn.Linear(dim + parameters, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, embedding: Tensor, change: Tensor) -> Tensor:
        """Return the predicted embedding `(batch, dim)`."""
        check_change(embedding, change, self.parameters_of_change)
        predicted: Tensor = self.layers(torch.cat([change.to(embedding), embedding], 1))
        return predicted


def build_predictor(kind: str, dim: int, parameters: int) -> nn.Module:
    """Return a predictor, one of `PREDICTORS`."""
    check_choice("predictor", kind, PREDICTORS)
    return MLPPredictor(dim, parameters) if kind == "mlp" else HyperPredictor(dim, parameters, kind == "deep")


def check_change(embedding: Tensor, change: Tensor, parameters: int | None = None) -> None:
    """See that there are as many numbers of change as there should be, for each example.

    Raises:
        DataError: if there are not.
    """
    wanted = (len(embedding), "any" if parameters is None else parameters)
    if change.ndim != 2 or len(change) != len(embedding) or parameters not in (None, change.shape[1]):
        raise DataError(
            f"batch['change'] has the shape {tuple(change.shape)}, but it must be {wanted}: for each example the "
            "numbers that say how its second version comes from its first, as many as in the first batch"
        )
