"""Heads between an encoder and what it is trained with: learned ones, and a fixed one that reweights coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number

KINDS = ("mlp", "linear", "identity", "fixed")


class FixedReweightingHead(nn.Module):
    r"""Multiply coordinate i, counted from 1, by $\kappa^{-(i-1)}$: a head without parameters.

    The encoder learns to put what the objective needs most into the first coordinates. A loss that scales its inputs to
    length 1 does so behind the head.

    Args:
        dim: number of features.
        kappa: ratio of the weights of neighbouring coordinates, at least 1; 1 is the identity.

    Raises:
        OptionError: if an option is outside its range, or the last weights vanish in float32; in use, if features are
            not of size `dim`.

    >>> FixedReweightingHead(3, kappa=2.0)(torch.tensor([8.0, 8.0, 8.0]))
    tensor([8., 4., 2.])

    Reference: Xue, Gan, Ni, Joshi, Mirzasoleiman, https://arxiv.org/abs/2403.11391.
    """

    weight: Tensor

    def __init__(self, dim: int, kappa: float = 1.05) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        check_number("kappa", kappa, minimum=1)
        weight = torch.tensor(float(kappa), dtype=torch.float64) ** -torch.arange(dim, dtype=torch.float64)
        smallest = torch.finfo(torch.float32).tiny
        if weight[-1] < smallest:
            raise OptionError(
                f"kappa={kappa} is not allowed: it weighs the last of {dim} features by {float(weight[-1]):.0e}, which "
                f"is 0 in float32; at most {smallest ** (-1 / (dim - 1)) - 5e-5:.4f} is possible for them"
            )
        self.kappa = kappa
        self.register_buffer("weight", weight.float())

    def forward(self, features: Tensor) -> Tensor:
        """Return the features `(..., dim)`, reweighted."""
        _fits(features, len(self.weight))
        return features * self.weight.to(features.dtype)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"dim={len(self.weight)}, kappa={self.kappa}"


class ProjectionHead(nn.Module):
    """A head behind an encoder, to train through and to leave out afterwards.

    Args:
        dim: number of features.
        kind: "mlp" is two linear layers with a ReLU between them, "linear" one; "fixed" is a `FixedReweightingHead`,
            "identity" nothing.
        hidden: width of the MLP's hidden layer; None is `dim`.
        output: numbers that leave the head; None is `dim`, which "fixed" and "identity" cannot change.
        kappa: of the fixed head.

    Raises:
        OptionError: if an option is outside its range; in use, if features are not of size `dim`.

    >>> ProjectionHead(8, output=4)(torch.ones(2, 8)).shape
    torch.Size([2, 4])

    Notes:
        In self-supervised training 128 outputs are usual. Batch normalisation, which many heads have, is left out, as
        it undoes part of the unequal weights that the head is there for.

    Reference: Xue, Gan, Ni, Joshi, Mirzasoleiman, https://arxiv.org/abs/2403.11391.
    """

    def __init__(
        self,
        dim: int,
        kind: str = "mlp",
        hidden: int | None = None,
        output: int | None = None,
        kappa: float = 1.05,
    ) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        check_choice("kind", kind, KINDS)
        check_number("kappa", kappa, minimum=1)
        for name, value in {"hidden": hidden, "output": output}.items():
            if value is not None:
                check_number(name, value, minimum=1, integer=True)
        hidden, output = hidden or dim, output or dim
        if kind in ("identity", "fixed") and output != dim:
            raise OptionError(
                f"output={output} is not allowed: a head of kind {kind!r} keeps the size dim={dim}; leave it out"
            )
        self.dim = dim
        self.kind = kind
        self.out_features = output
        layers: dict[str, list[nn.Module]] = {"identity": [], "mlp": [], "linear": [], "fixed": []}
        if kind == "mlp":
            layers["mlp"] = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, output)]
        elif kind == "linear":
            layers["linear"] = [nn.Linear(dim, output)]
        elif kind == "fixed":
            layers["fixed"] = [FixedReweightingHead(dim, kappa)]
        self.layers = nn.Sequential(*layers[kind])

    def forward(self, features: Tensor) -> Tensor:
        """Return what leaves the head, `(..., output)`, for features `(..., dim)`."""
        _fits(features, self.dim)
        projected: Tensor = self.layers(features)
        return projected

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"dim={self.dim}, kind={self.kind!r}"


def _fits(features: Tensor, dim: int) -> None:
    if features.ndim == 0 or features.shape[-1] != dim:
        raise OptionError(
            f"dim={dim} does not fit features of shape {tuple(features.shape)}; they must be (batch, {dim})"
        )
