"""Clusters of equal size by spherical 2-means that halves again and again, all clusters of a level at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, OptionError, check_number
from repertory.layers.embedding import unit_rows


@torch.no_grad()
def balanced_clusters(
    embeddings: Tensor, size: int, generator: torch.Generator | None = None, *, tolerance: float = 1e-4
) -> Tensor:
    """Return the cluster of each row, for clusters of at most `size` similar rows whose sizes differ by at most one.

    The rows are halved, then each half, and so on, until no part is larger than `size`: there are as many clusters as
    the smallest power of two that allows that, so they have more than `size / 2 - 1` rows each. A part is halved by
    2-means on the sphere from two of its rows, drawn at random: the half of it that is nearer to the first centre (by
    the difference of the cosines) goes to the first, the rest to the second.

    Args:
        embeddings: `(n, dim)` of any length; a zero vector is as near to everything.
        size: most rows of a cluster.
        generator: CPU generator of the starts; None takes a fresh one with seed 0.
        tolerance: a part is done when the mean cosine of its rows with their centre rises by less.

    Returns:
        `(n,)` int64, clusters counted from 0; neighbouring numbers are neighbouring clusters.

    Raises:
        OptionError: if `size` or `tolerance` is out of range.
        DataError: if there are no rows, or they are not finite.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    >>> found = balanced_clusters(rows, size=2)
    >>> bool(found[0] == found[2]), bool(found[1] == found[3]), sorted(found.tolist())
    (True, True, [0, 0, 1, 1])
    """
    check_number("size", size, minimum=1, integer=True)
    check_number("tolerance", tolerance, above=0)
    if embeddings.ndim != 2 or not len(embeddings):
        raise DataError(f"embeddings {tuple(embeddings.shape)} must be (n, dim) with at least one row")
    if not bool(embeddings.isfinite().all()):
        raise DataError("embeddings must be finite to be clustered, but some are NaN or infinite")
    if size == 1:
        return torch.arange(len(embeddings), device=embeddings.device)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    rows = unit_rows(embeddings)
    members = torch.arange(len(rows), device=rows.device)[None]
    counts = torch.tensor([len(rows)], device=rows.device)
    while members.shape[1] > size:
        parts = rows[members.clamp(min=0)]
        order = _halves(parts, counts, _starts(counts, generator), tolerance)
        members, counts = _cut(members.gather(1, order), counts)
    clusters = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    there = members >= 0
    clusters[members[there]] = torch.arange(len(members), device=rows.device)[:, None].expand_as(members)[there]
    return clusters


@torch.no_grad()
def halve(rows: Tensor, starts: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Return which rows of each part go to its first half, by balanced spherical 2-means.

    Args:
        rows: `(parts, size, dim)` of any length; all parts are worked on together.
        starts: two different positions in each part, where its centres start, `(parts, 2)` int64.
        tolerance: a part is done when the mean cosine of its rows with their centre rises by less.

    Returns:
        `(parts, size)` bool; of an odd size the first half has the row more.

    Raises:
        OptionError: if a start is beyond the part, or both are the same.

    >>> halve(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]]), torch.tensor([[0, 1]]))
    tensor([[ True, False,  True]])
    """
    parts, size, _ = rows.shape
    if starts.shape != (parts, 2) or bool((starts[:, 0] == starts[:, 1]).any()) or bool((starts >= size).any()):
        raise OptionError(f"starts must be two different positions below {size} in each of {parts} parts")
    counts = torch.full((parts,), size, device=rows.device)
    order = _halves(unit_rows(rows), counts, starts, tolerance)
    ranks = torch.arange(size, device=rows.device).expand(parts, -1)
    return torch.zeros(parts, size, dtype=torch.bool, device=rows.device).scatter_(1, order, ranks < (size + 1) // 2)


def _starts(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Two different positions of each part, drawn evenly."""
    draws = torch.rand(len(counts), 2, generator=generator, dtype=torch.float64).to(counts.device)
    first = (draws[:, 0] * counts).long()
    second = (first + 1 + (draws[:, 1] * (counts - 1)).long()) % counts
    return torch.stack([first, second], 1)


def _halves(rows: Tensor, counts: Tensor, starts: Tensor, tolerance: float) -> Tensor:
    """Return each part's positions, those of the first half first, and the empty places last.

    Args:
        rows: unit vectors `(parts, widest, dim)`; a part has its rows in its first `counts` places.
        counts: rows of each part, `(parts,)`.
        starts: where the centres start, `(parts, 2)`.
        tolerance: of the mean cosine.
    """
    widest = rows.shape[1]
    places = torch.arange(widest, device=rows.device)
    final = places.repeat(len(rows), 1)
    active = torch.arange(len(rows), device=rows.device)
    there = (places < counts[:, None]).to(rows.dtype)
    total = torch.bmm(there[:, None], rows)[:, 0]
    first, second = rows[active, starts[:, 0]], rows[active, starts[:, 1]]
    halves = (counts + 1) // 2
    before = torch.full_like(first[:, 0], -2.0)
    finished = torch.zeros_like(active, dtype=torch.bool)
    while not bool(finished.all()):
        nearer = torch.bmm(rows, (first - second)[:, :, None])[..., 0].masked_fill_(there == 0, -torch.inf)
        order = nearer.argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(nearer).scatter_(1, order, (places < halves[:, None]).to(rows.dtype))
        sums = torch.bmm(chosen[:, None], rows)[:, 0]
        rest = total - sums
        first, second = functional.normalize(sums, dim=1), functional.normalize(rest, dim=1)
        # The cosines of rows with their normalised mean add up to the length of their sum.
        now = (sums.norm(dim=1) + rest.norm(dim=1)) / counts
        done = (now - before < tolerance) & ~finished
        final[active[done]] = order[done]
        before, finished = now, finished | done
        # Copying what is left pays only when much of it is done.
        if 4 * int(finished.sum()) > len(finished):
            left = ~finished
            active, rows, there, total, first, second, halves, counts, before, finished = (
                value[left] for value in (active, rows, there, total, first, second, halves, counts, before, finished)
            )
    return final


def _cut(members: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each part, whose rows stand in order with -1 in empty places, into two."""
    halves = (counts + 1) // 2
    width = (members.shape[1] + 1) // 2
    places = torch.arange(width, device=members.device)
    shifted = (halves[:, None] + places).clamp(max=members.shape[1] - 1)
    both = torch.stack([members[:, :width], members.gather(1, shifted)], 1)
    sizes = torch.stack([halves, counts - halves], 1)
    return both.masked_fill(places >= sizes[..., None], -1).flatten(0, 1), sizes.flatten()
