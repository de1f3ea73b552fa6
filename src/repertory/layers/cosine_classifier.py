"""A linear classifier on directions alone: the cosine of the features with one vector a class, times a scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_number
from repertory.layers.embedding import unit_rows


class CosineClassifier(nn.Linear):
    r"""Logits $s \cos(x, w_c)$, so that neither long features nor long weights make a class likely.

    On a long tail the weights of frequent classes grow longer than those of rare ones; here only their direction
    counts. Computed in float32 or wider, also under autocast. A feature of zeros gives logits of zero.

    Args:
        in_features: size of the features.
        out_features: number of classes.
        scale: multiplies the cosines.

    Raises:
        OptionError: if an option is outside its range; in use, if features are not of size `in_features`.

    >>> layer = CosineClassifier(2, 2, scale=10.0)
    >>> _ = layer.weight.data.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1]]))
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[6., 8.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        check_number("in_features", in_features, minimum=1, integer=True)
        check_number("out_features", out_features, minimum=1, integer=True)
        check_number("scale", scale, above=0)
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def reset_parameters(self) -> None:
        """Draw directions evenly, as unit vectors: how far a step turns one depends on its length."""
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.copy_(unit_rows(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        """Return logits `(..., out_features)`, float32 or wider, for features `(..., in_features)`."""
        if input.shape[-1] != self.in_features:
            raise OptionError(
                f"in_features={self.in_features} does not fit features of shape {tuple(input.shape)}; they must be "
                f"(..., {self.in_features})"
            )
        with torch.autocast(input.device.type, enabled=False):
            unit = unit_rows(input)
            return (unit @ unit_rows(self.weight).to(unit.dtype).T) * self.scale

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}"
