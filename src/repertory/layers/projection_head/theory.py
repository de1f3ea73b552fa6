r"""What a linear network learns from the spectral contrastive loss, in closed form.

Inputs have independent coordinates, the features: $x_i$ with second moment $a_i = E[x_i^2]$, and $b_i = E[x_i x_i^+]$
across a positive pair. For $z = W x$ the loss
$$ L(W) = -2 E[z^\top z^+] + E[(z^\top z')^2] = -2 \, \mathrm{tr}(A D_b) + \mathrm{tr}(A D_a A D_a) $$
depends on $A = W^\top W$ alone, and is least for the diagonal one with $A_{ii} = \max(b_i, 0) / a_i^2$.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, check_number


def feature_moments(strength: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the moments of features that augmentation disturbs: $a = \phi^2 + \sigma^2$ and $b = \phi^2$.

    Args:
        strength: standard deviation $\phi$ of each feature over the examples `(features,)`.
        noise: standard deviation $\sigma$ of what augmentation adds to it, anew in each view `(features,)`.
    """
    return strength.square() + noise.square(), strength.square()


def optimal_gains(second: Tensor, cross: Tensor, width: int | None = None) -> Tensor:
    r"""Return by how much each feature is scaled where the loss is least: $\sqrt{b_i} / a_i$.

    A network narrower than the features keeps those with the largest $b_i / a_i$, which lower the loss most.

    Args:
        second: $a$, positive `(features,)`.
        cross: $b$, at most $a$ in absolute value `(features,)`.
        width: of the narrowest layer; None is no limit.

    Raises:
        DataError: if the moments cannot be.
        OptionError: if `width` is not a positive whole number.

    >>> optimal_gains(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.25, -0.1, 1.0]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    _check_moments(second, cross)
    gains = cross.clamp(min=0).sqrt() / second
    if width is None:
        return gains
    check_number("width", width, minimum=1, integer=True)
    kept = (cross / second).topk(min(width, len(cross))).indices
    return torch.zeros_like(gains).index_copy(0, kept, gains[kept])


def layer_gains(gains: Tensor, layer: int, layers: int) -> Tensor:
    r"""Return the gains behind one of the balanced layers of a linear network: $s^{l/L}$.

    Gradient descent from small weights, or a little weight decay, leaves the layers balanced.

    Args:
        gains: $s$, of the whole network `(features,)`.
        layer: $l$, from 0 (the input) to `layers`.
        layers: $L$; encoder and head are 2, and what enters the head is behind layer 1.

    >>> layer_gains(torch.tensor([0.25, 4.0]), 1, 2)
    tensor([0.5000, 2.0000])
    """
    check_number("layers", layers, minimum=1, integer=True)
    check_number("layer", layer, minimum=0, maximum=layers, integer=True)
    return gains ** (layer / layers) * (gains > 0)


def feature_gains(weight: Tensor) -> Tensor:
    """Return by how much a linear map scales each feature: the lengths of its columns.

    Args:
        weight: `(outputs, features)`, the product of all layers so far.
    """
    return weight.norm(dim=0)


def spectral_loss(weight: Tensor, second: Tensor, cross: Tensor) -> Tensor:
    """Return the spectral contrastive loss of a linear map on the whole distribution, 0-d.

    Args:
        weight: `(outputs, features)`.
        second: moments `(features,)`.
        cross: moments across a positive pair `(features,)`.

    Raises:
        DataError: if the moments cannot be.
        OptionError: if `weight` does not fit them.

    Reference: HaoChen, Wei, Gaidon, Ma, https://arxiv.org/abs/2106.04156.
    """
    _check_moments(second, cross)
    if weight.ndim != 2 or weight.shape[1] != len(second):
        raise OptionError(
            f"weight of shape {tuple(weight.shape)} does not fit {len(second)} features; it must be (outputs, features)"
        )
    return (weight * second @ weight.T).square().sum() - 2 * (weight.square() * cross).sum()


def _check_moments(second: Tensor, cross: Tensor) -> None:
    if second.ndim != 1 or second.shape != cross.shape or not bool((second > 0).all() & (cross.abs() <= second).all()):
        raise DataError(
            f"moments {second.tolist()} and {cross.tolist()} cannot be those of features; the first must be positive, "
            "and the second as many and no larger in absolute value"
        )
