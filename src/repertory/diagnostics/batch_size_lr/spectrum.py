"""Spectra by stochastic Lanczos quadrature: densities and moments from Ritz values of several random starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.core.curvature import Product, Ritz, lanczos
from repertory.errors import OptionError, check_number


def quadrature(
    product: Product,
    size: int,
    *,
    steps: int = 20,
    starts: int = 4,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> list[Ritz]:
    """Run Lanczos from several random starts, for a density that one start alone gives with chance weights.

    Args:
        product: symmetric linear map of `(size,)`.
        size: its dimension.
        steps: products a start.
        starts: number of random starts.
        generator: a CPU generator for the starts; None starts from seed 0.
        like: a tensor of the vectors' type and device.

    Returns:
        What each start found.

    >>> found = quadrature(lambda vector: 2.0 * vector, 5, starts=3)
    >>> len(found), found[0].values.tolist()
    (3, [2.0])
    """
    check_number("starts", starts, minimum=1, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    return [lanczos(product, size, steps=steps, generator=generator, like=like) for _ in range(starts)]


def spectral_density(found: Sequence[Ritz], *, width: float | None = None, points: int = 400) -> tuple[Tensor, Tensor]:
    """Return the mean density over starts, each Ritz value widened to a Gaussian.

    Args:
        found: what Lanczos found from each start.
        width: standard deviation of the Gaussians; None takes 1 % of the range of the Ritz values.
        points: number of places at which the density is given.

    Returns:
        Places `(points,)`, which reach five widths beyond the Ritz values, and the density there `(points,)`; its
        integral is 1.

    Raises:
        OptionError: if nothing was found, or an option is outside its range.

    >>> matrix = torch.diag(torch.tensor([0.0, 1.0]))
    >>> at, density = spectral_density(quadrature(lambda vector: matrix @ vector, 2))
    >>> round(float(torch.trapezoid(density, at)), 3)
    1.0
    """
    check_number("points", points, minimum=2, integer=True)
    if not found:
        raise OptionError("found is empty: give what Lanczos found from at least one start")
    values = torch.cat([ritz.values for ritz in found])
    weights = torch.cat([ritz.weights for ritz in found]) / len(found)
    low, high = float(values.min()), float(values.max())
    if width is None:
        width = 0.01 * (high - low) or 0.01 * abs(high) or 0.01
    check_number("width", width, above=0)
    at = torch.linspace(low - 5 * width, high + 5 * width, points, dtype=torch.float64)
    kernels = torch.exp(-((at[:, None] - values) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    return at, kernels @ weights


def density_moments(found: Sequence[Ritz], count: int = 2) -> Tensor:
    r"""Return the first moments of the spectral density, $\mathrm{tr}(H^k) / P$ for $k = 1, \dots$ in expectation.

    From one start they are those of its vector, $v^\top H^k v$, exactly up to `k = 2 steps - 1`.

    Args:
        found: what Lanczos found from each start.
        count: number of moments.

    Returns:
        `(count,)`, float64.

    >>> [round(moment, 4) for moment in density_moments(quadrature(lambda vector: 2.0 * vector, 5)).tolist()]
    [2.0, 4.0]
    """
    check_number("count", count, minimum=1, integer=True)
    powers = torch.arange(1, count + 1)
    each = [(ritz.weights * ritz.values[None] ** powers[:, None]).sum(1) for ritz in found]
    return torch.stack(each).mean(0)
