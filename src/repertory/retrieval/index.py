"""An index of vectors: exact, or approximate for many of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError, OptionError, UserError, check_choice, check_number

KINDS = ("exact", "ivf")
METRICS = ("cosine", "dot", "euclidean")
_CHUNK = 65536
_A_CELL = 256
"""Vectors a cell that k-means looks at: as many as faiss would draw itself."""
_VECTORS, _ABOUT = "vectors.faiss", "index.json"


class Index:
    """Vectors with numbers of their own, searched by faiss.

    "exact" compares each query with every vector. "ivf" sorts the vectors into cells by k-means and compares each query
    with those of the nearest cells only; it learns the cells from the first vectors that are added.

    Args:
        dim: size of a vector.
        kind: "exact" or "ivf".
        metric: "cosine" (vectors are stored at length 1), "dot" or "euclidean".
        cells: of "ivf", None for the square root of the number of vectors first added.
        probes: cells that "ivf" looks into.

    Raises:
        OptionError: if an option is not allowed.
        UserError: if faiss is not installed.

    >>> index = Index(dim=2)
    >>> index.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 9]))
    >>> scores, numbers = index.search(torch.tensor([[3.0, 4.0]]), k=2)
    >>> numbers.tolist()
    [[9, 7]]
    """

    def __init__(
        self, dim: int, kind: str = "exact", metric: str = "cosine", cells: int | None = None, probes: int = 8
    ) -> None:
        check_number("dim", dim, minimum=1, integer=True)
        check_choice("kind", kind, KINDS)
        check_choice("metric", metric, METRICS)
        if cells is not None:
            check_number("cells", cells, minimum=1, integer=True)
        check_number("probes", probes, minimum=1, integer=True)
        self._faiss = _faiss()
        self.dim, self.kind, self.metric, self.cells, self.probes = dim, kind, metric, cells, probes
        self._index: Any = self._made(None) if kind == "exact" else None

    def __len__(self) -> int:
        """Number of vectors."""
        return 0 if self._index is None else int(self._index.ntotal)

    def add(self, vectors: Tensor, numbers: Tensor | None = None) -> None:
        """Add vectors.

        Args:
            vectors: `(n, dim)`.
            numbers: what each is found as `(n,)` int64; they count on from the number of vectors when not given.

        Raises:
            DataError: if vectors have another size, are not finite, or are not as many as numbers.
        """
        self._check(vectors, "vectors")
        if numbers is None:
            numbers = torch.arange(len(self), len(self) + len(vectors))
        if numbers.shape != (len(vectors),):
            raise DataError(
                f"{len(vectors)} vectors do not match numbers of shape {tuple(numbers.shape)}; give one each"
            )
        if self._index is None:
            self._index = self._made(vectors)
        for part, own in zip(vectors.split(_CHUNK), numbers.split(_CHUNK)):
            self._index.add_with_ids(self._rows(part), own.cpu().numpy().astype(np.int64))

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the `k` nearest vectors of each query, nearest first.

        Args:
            queries: `(queries, dim)`.
            k: how many.

        Returns:
            Scores `(queries, k)` (larger is nearer; distances are negated), and numbers `(queries, k)`, -1 where "ivf"
            found fewer than k in the cells that it looked into.

        Raises:
            OptionError: if `k` is more than there are vectors.
            DataError: if queries have another size, or are not finite.
        """
        check_number("k", k, minimum=1, integer=True)
        if k > len(self):
            raise OptionError(f"k={k} is more than the {len(self)} vectors of the index; lower k, or add vectors first")
        self._check(queries, "queries")
        found = [self._index.search(self._rows(part), k) for part in queries.split(_CHUNK)]
        if not found:
            return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        scores = torch.from_numpy(np.concatenate([values for values, _ in found]))
        numbers = torch.from_numpy(np.concatenate([own for _, own in found]))
        return -scores.clamp(min=0).sqrt() if self.metric == "euclidean" else scores, numbers

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._index is None:
            raise DataError("the index is empty; add vectors before saving it")
        self._faiss.write_index(self._index, str(folder / _VECTORS))
        names = ("dim", "kind", "metric", "cells", "probes")
        about = {name: getattr(self, name) for name in names}
        (folder / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, dim: int | None = None) -> Index:
        """Read an index that `save` wrote.

        Args:
            folder: where it is.
            dim: the size that its vectors must have, None for any.

        Raises:
            UserError: if it is not such a folder, a file is damaged, or the vectors have another size.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            made = cls(**about)
            made._index = made._faiss.read_index(str(folder / _VECTORS))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{folder} holds no index that can be read ({type(error).__name__}); save it again"
            ) from None
        if made._index.d != made.dim or dim not in (None, made.dim):
            raise UserError(
                f"the index in {folder} has vectors of {made._index.d} numbers, not {dim or made.dim}; build it anew"
            )
        made._set_probes()
        return made

    def _made(self, vectors: Tensor | None) -> Any:
        faiss = self._faiss
        distance = faiss.METRIC_L2 if self.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        flat = faiss.IndexFlat(self.dim, distance)
        if vectors is None:
            return faiss.IndexIDMap2(flat)
        cells = self.cells or max(1, round(len(vectors) ** 0.5))
        if cells > len(vectors):
            raise OptionError(
                f"cells={cells} is more than the {len(vectors)} vectors first added; add more, or lower it"
            )
        index = faiss.IndexIVFFlat(flat, self.dim, cells, distance)
        index.own_fields = True
        flat.this.disown()
        # Its warnings about few vectors a cell go to the terminal; the search is right all the same.
        index.cp.min_points_per_centroid = 1
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
        index.train(self._rows(vectors[order[: _A_CELL * cells]]))
        index.nprobe = self.probes
        return index

    def _set_probes(self) -> None:
        if self.kind == "ivf":
            self._index.nprobe = self.probes

    def _rows(self, vectors: Tensor) -> Any:
        rows = vectors.detach().to("cpu", torch.float32)
        if self.metric == "cosine":
            rows = torch.nn.functional.normalize(rows, dim=1)
        return np.ascontiguousarray(rows.numpy())

    def _check(self, vectors: Tensor, name: str) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(f"{name} have shape {tuple(vectors.shape)}; the index takes (n, {self.dim})")
        if not bool(vectors.isfinite().all()):
            raise DataError(f"{name}: row {int((~vectors.isfinite()).any(1).nonzero()[0])} is not finite; leave it out")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError('an index needs faiss; install it with: pip install "repertory[retrieval]"') from None
    return faiss
