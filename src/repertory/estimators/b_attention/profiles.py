"""Similarities of whole similarity profiles, without training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, OptionError, check_choice, check_number

MODES = ("S", "Q", "B")
_HELD = 2**24
"""Numbers that are held at once."""


def profile_similarity(features: Tensor, mode: str = "Q") -> Tensor:
    r"""Return how alike rows are by their similarities to all rows, every one of which is a test.

    Args:
        features: `(rows, dim)`; only directions count.
        mode: "S", the cosines themselves; "Q", the cosines between rows of S; "B", the mean of both after each was
            brought to mean 0 and standard deviation 1 over all pairs.

    Returns:
        `(rows, rows)`, symmetric, in float32 or wider.

    Raises:
        OptionError: if there is no such mode.
        DataError: if features are not `(rows, dim)`.

    >>> profile_similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))[0]
    tensor([1.0000, 0.3333, 0.8165])
    """
    check_choice("mode", mode, MODES)
    cosines = _unit(features) @ _unit(features).T
    if mode == "S":
        return cosines
    profiles = normalize(cosines, dim=1)
    agreement = profiles @ profiles.T
    return agreement if mode == "Q" else (_standard(cosines) + _standard(agreement)) / 2


def profile_graph(features: Tensor, k: int, mode: str = "Q") -> tuple[Tensor, Tensor]:
    """Return the links of each row to its nearest neighbours, weighed by `profile_similarity` of sparse profiles.

    The profile of a row are its similarities to itself and to its `k` nearest rows; others count as 0. With as many
    neighbours as there are other rows this is `profile_similarity` itself.

    Args:
        features: `(rows, dim)`; only directions count.
        k: neighbours a row.
        mode: as in `profile_similarity`; "B" takes means over the links.

    Returns:
        Weights `(rows, k)`, and the rows that the links lead to `(rows, k)` int64, nearest by cosine first. Memory is
        for `rows * k` links.

    Raises:
        OptionError: if there is no such mode, or there are fewer rows than neighbours.
        DataError: if features are not `(rows, dim)`.
    """
    check_choice("mode", mode, MODES)
    check_number("k", k, minimum=1, integer=True)
    unit = _unit(features)
    if k >= len(unit):
        raise OptionError(f"k={k} is more than the {len(unit) - 1} other rows that there are; lower k")
    own = torch.arange(len(unit), device=unit.device)
    cosines, places = nearest_neighbours(unit, unit, k, metric="dot", own=own)
    if mode == "S":
        return cosines, places
    columns = torch.cat([own[:, None], places], 1)
    profiles = normalize(torch.cat([unit.square().sum(1, keepdim=True), cosines], 1), dim=1)
    found = []
    for rows in own.split(max(1, _HELD // max(len(unit), k * (k + 1)))):
        dense = unit.new_zeros(len(rows), len(unit)).scatter_(1, columns[rows], profiles[rows])
        neighbours = places[rows]
        read = dense.gather(1, columns[neighbours].flatten(1)).view(len(rows), k, k + 1)
        found.append((read * profiles[neighbours]).sum(2))
    agreement = torch.cat(found)
    return (agreement if mode == "Q" else (_standard(cosines) + _standard(agreement)) / 2), places


def _unit(features: Tensor) -> Tensor:
    if features.ndim != 2 or not features.numel():
        raise DataError(f"features have shape {tuple(features.shape)}; they must be (rows, dim)")
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std(correction=0).clamp(min=torch.finfo(values.dtype).tiny)
