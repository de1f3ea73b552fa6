"""Pooling by the generalised mean: from the average to the maximum by one exponent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, UserError, check_choice, check_number


class GeM(nn.Module):
    r"""Pool each channel of a feature map to $\big( \frac1N \sum_n \max(x_n, \epsilon)^p \big)^{1/p}$.

    In place of `nn.AdaptiveAvgPool2d(1)`. Computed in float32 or wider, also under autocast.

    Args:
        p: exponent; 1 is the average, a large one comes near the maximum.
        eps: smallest value, in whose place negative ones come.
        learn: learn the exponent.

    Raises:
        OptionError: if an option is outside its range; in use, if the input is no map.

    >>> GeM(p=1.0)(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[2.]]]])

    Reference: Radenović, Tolias, Chum, Fine-tuning CNN Image Retrieval with No Human Annotation,
    https://arxiv.org/abs/1711.02512.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, learn: bool = False) -> None:
        super().__init__()
        check_number("p", p, above=0)
        check_number("eps", eps, above=0)
        check_choice("learn", learn, (True, False))
        self.eps = eps
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn)

    def forward(self, maps: Tensor) -> Tensor:
        """Return `(batch, channels, 1, ...)` of maps `(batch, channels, ...)`."""
        if maps.ndim < 3:
            raise OptionError(
                f"GeM pools maps (batch, channels, height, width), but got {tuple(maps.shape)}"
                "; put it before flattening"
            )
        with torch.autocast(maps.device.type, enabled=False):
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp(min=self.eps)
            powers = wide.pow(self.p.to(wide.dtype)).mean(tuple(range(2, maps.ndim)), keepdim=True)
            return powers.pow(1 / self.p.to(wide.dtype)).to(maps.dtype)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"p={float(self.p):g}, learn={self.p.requires_grad}"


def replace_pooling(model: nn.Module, outputs: int, p: float = 3.0) -> nn.Module:
    """Replace the network's last average pooling to one position in place by `GeM`.

    Args:
        model: the network.
        outputs: number of classes, on which pooling does not depend.
        p: exponent.

    Returns:
        The network.

    Raises:
        UserError: if it has no such pooling.

    >>> replace_pooling(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), outputs=10)[1]
    GeM(p=3, learn=False)
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no nn.AdaptiveAvgPool2d(1) for GeM to take the place of; leave gem out, "
            "or take a convolutional network"
        )
    parent, _, attribute = found[-1].rpartition(".")
    setattr(model.get_submodule(parent), attribute, GeM(p))
    return model
