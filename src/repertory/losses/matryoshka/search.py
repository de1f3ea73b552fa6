"""Search by short prefixes first, and rank what they found by longer ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, OptionError, check_number
from repertory.losses.matryoshka.loss import truncate
from repertory.losses.matryoshka.sizes import check_sizes

_HELD = 2**24
"""Numbers of gathered candidates that are held at once: 64 MiB of float32."""


class AdaptiveRetrieval:
    """Nearest neighbours by cosine, found with few dimensions and ranked with more.

    The gallery is searched by the first size. The `shortlist` nearest are ranked anew by the second size and halved,
    the rest by the third, and so on; the last size decides the order of the `k` that are left. Two sizes are the
    paper's adaptive retrieval, a list of doubling sizes its funnel, one size the exact search.

    Args:
        sizes: growing numbers of leading dimensions.
        shortlist: neighbours that the first size finds; at least `k` are always kept, never more than there are.

    Raises:
        OptionError: if an option is not allowed.

    >>> rows = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> search = AdaptiveRetrieval(sizes=[2, 8], shortlist=20).fit(rows)
    >>> search.search(rows[:3], k=1)[1].tolist()
    [[0], [1], [2]]

    Reference: Kusupati et al., Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147.
    """

    def __init__(self, sizes: Sequence[int], shortlist: int = 200) -> None:
        self.sizes = check_sizes(sizes, increasing=True)
        check_number("shortlist", shortlist, minimum=1, integer=True)
        self.shortlist = shortlist

    def fit(self, embeddings: Tensor) -> Self:
        """Take over what is searched.

        Args:
            embeddings: `(gallery, dim)`, of any length; dim at least the largest size, what lies beyond is left out.

        Raises:
            DataError: if they are too short, or not finite.
        """
        self._check(embeddings, "embeddings")
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        self.gallery = embeddings[:, : self.sizes[-1]].to(wide)
        self._first = truncate(self.gallery, self.sizes[0])
        # A prefix of zeros has cosine 0 with everything, as elsewhere.
        lengths = [self.gallery[:, :size].norm(dim=1).clamp(min=torch.finfo(wide).tiny) for size in self.sizes[1:]]
        self._lengths = lengths
        return self

    def search(self, queries: Tensor, k: int = 10, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the `k` nearest of each query, nearest first by the largest size.

        Args:
            queries: `(queries, dim)`.
            k: how many.
            own: for each query the position in the gallery that is left out, `(queries,)` int64: its own.

        Returns:
            Cosines by the largest size `(queries, k)`, and positions in the gallery `(queries, k)`, int64.

        Raises:
            OptionError: if `k` is larger than the gallery (without the query itself).
            DataError: if queries are too short, not finite, or nothing was fitted.
        """
        if not hasattr(self, "gallery"):
            raise DataError("there is nothing to search yet; call fit(embeddings) first")
        self._check(queries, "queries")
        check_number("k", k, minimum=1, integer=True)
        there = len(self.gallery) - (own is not None)
        if k > there:
            raise OptionError(f"k={k} is more than the {there} rows that there are to find; lower k")
        kept = self._kept(k, there)
        near, places = nearest_neighbours(truncate(queries, self.sizes[0]), self._first, kept[0], metric="dot", own=own)
        for stage, count in enumerate(kept[1:]):
            near, places = self._ranked(queries, places, stage, count)
        return near, places

    def products(self, k: int = 10) -> int:
        """Return the multiplications of numbers that one query takes; an exact search takes `gallery * dim`."""
        there = len(self.gallery)
        candidates = (there, *self._kept(k, there)[:-1])
        return sum(count * size for count, size in zip(candidates, self.sizes))

    def _kept(self, k: int, there: int) -> list[int]:
        """How many neighbours are left after each size."""
        halves = [max(k, self.shortlist >> stage) for stage in range(len(self.sizes) - 1)]
        return [min(there, count) for count in (*halves, k)]

    def _ranked(self, queries: Tensor, places: Tensor, stage: int, count: int) -> tuple[Tensor, Tensor]:
        size = self.sizes[stage + 1]
        found = []
        rows = max(1, _HELD // (places.shape[1] * size))
        for part, candidates in zip(truncate(queries, size).split(rows), places.split(rows)):
            gathered = self.gallery[candidates, :size]
            cosines = (gathered @ part[:, :, None].to(gathered.dtype))[..., 0] / self._lengths[stage][candidates]
            near, order = cosines.topk(count, dim=1)
            found.append((near, candidates.gather(1, order)))
        return torch.cat([near for near, _ in found]), torch.cat([chosen for _, chosen in found])

    def _check(self, embeddings: Tensor, name: str) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] < self.sizes[-1]:
            raise DataError(
                f"{name} have shape {tuple(embeddings.shape)}; sizes={list(self.sizes)} need (n, {self.sizes[-1]}) or "
                "wider"
            )
        if not bool(embeddings.isfinite().all()):
            raise DataError(
                f"{name}: row {int((~embeddings.isfinite()).any(1).nonzero()[0])} is not finite; leave it out"
            )
