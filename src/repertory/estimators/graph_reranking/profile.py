"""Profile vectors: features centred and whitened by camera, of single images or of whole tracks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from repertory.errors import DataError, check_choice, check_number
from repertory.estimators.rows import give_back, read_groups, read_rows

OPERATIONS = ("P_neg", "neg", "P", "none")
STATISTICS = ("intra_camera", "all")


class ProfileVector(TransformerMixin, BaseEstimator):
    r"""What is particular to a row, beside what all rows of its camera share.

    $f = P_c (x - \mu_c)$ at length 1, with the mean $\mu_c$ and $P_c = (X_c^\top X_c + n_c \lambda I)^{-1}$ of the
    gallery's rows from camera $c$. Of a track, $x$ is the mean of its rows.

    Args:
        la: $\lambda$, the ridge; towards infinity what is left is $x - \mu_c$.
        operation: "P_neg" centres and whitens, "neg" only centres, "P" only whitens, "none" leaves rows as they are
            (at length 1).
        statistics: "intra_camera", or "all" for one mean and one $P$ over all cameras.

    Attributes:
        cameras_: cameras seen in `fit`, sorted; None where all rows are taken for one.
        means_: $\mu_c$ of each `(cameras, width)`, a tensor.
        whitening_: $P_c$ of each `(cameras, width, width)`, a tensor.
        n_features_in_: width of the features.

    >>> gallery = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
    >>> profile = ProfileVector().fit(gallery, groups=["door", "door", "yard", "yard"])
    >>> profile.transform([[0.8, 0.4], [0.2, 0.9]], groups=["door", "yard"]).round(2)
    array([[-0.41,  0.91],
           [ 0.91, -0.41]])

    Notes:
        $X_c^\top X_c$ is not centred, as in the authors' code. A row that is the mean itself becomes zero there.

    Reference: Zhang, Qian, Liu, Chen, Wang, Li, Jin, https://arxiv.org/abs/2107.02220.
    """

    def __init__(self, la: float = 10.0, operation: str = "P_neg", statistics: str = "intra_camera") -> None:
        self.la = la
        self.operation = operation
        self.statistics = statistics

    def check_options(self) -> None:
        """Check the options.

        Raises:
            OptionError: naming the one that is not allowed.
        """
        check_number("la", self.la, above=0)
        check_choice("operation", self.operation, OPERATIONS)
        check_choice("statistics", self.statistics, STATISTICS)

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> ProfileVector:
        """Take the statistics of each camera.

        Args:
            X: the gallery's features `(rows, width)`, an array or a tensor.
            y: ignored.
            groups: the camera of each row `(rows,)`; None takes all for one.

        Raises:
            OptionError: if an option is not allowed.
            DataError: if a camera has one row only, which is its own mean.
        """
        self.check_options()
        rows = read_rows(self, X, reset=True)
        self.cameras_ = None
        codes, counts = np.zeros(len(rows), int), np.array([len(rows)])
        if groups is not None and self.statistics == "intra_camera":
            ids = read_groups(groups, len(rows))
            self.cameras_, codes, counts = np.unique(ids, return_inverse=True, return_counts=True)
        if self.operation in ("P_neg", "neg") and counts.min() < 2:
            lone = "the gallery" if self.cameras_ is None else f"camera {self.cameras_[counts.argmin()]!r}"
            raise DataError(
                f"{lone} has 1 sample, which is its own mean; give more, or take operation='P' or statistics='all'"
            )
        parts = [rows[torch.from_numpy(codes == code).to(rows.device)] for code in range(len(counts))]
        self.means_ = torch.stack([part.mean(0) for part in parts])
        eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        grams = torch.stack([part.T @ part + len(part) * self.la * eye for part in parts])
        self.whitening_ = torch.cholesky_inverse(torch.linalg.cholesky(grams))
        return self

    def transform(self, X: Any, groups: Any = None, tracks: Any = None) -> Any:
        """Return profile vectors `(rows, width)`, of length 1.

        Args:
            X: features `(rows, width)` of the gallery or of queries.
            groups: the camera of each row `(rows,)`, as in `fit`.
            tracks: the track of each row `(rows,)`; then there is one vector a track, in sorted order of the tracks,
                whose camera is that of its first row.

        Raises:
            DataError: if a camera was not in `fit`, or there are groups in one place and none in the other.
        """
        check_is_fitted(self)
        rows = read_rows(self, X)
        codes = self._cameras(groups, len(rows))
        if tracks is not None:
            _, first, places = np.unique(
                read_groups(tracks, len(rows), "tracks"), return_index=True, return_inverse=True
            )
            inverse = torch.from_numpy(places.reshape(-1)).to(rows.device)
            sums = rows.new_zeros(len(first), rows.shape[1]).index_add(0, inverse, rows)
            rows, codes = sums / torch.bincount(inverse)[:, None], codes[torch.from_numpy(first)]
        found = torch.empty_like(rows)
        for code in codes.unique().tolist():
            chosen = (codes == code).to(rows.device)
            part = rows[chosen]
            if self.operation in ("P_neg", "neg"):
                part = part - self.means_[code].to(rows)
            if self.operation in ("P_neg", "P"):
                part = part @ self.whitening_[code].to(rows)
            found[chosen] = part
        lengths = found.norm(dim=1, keepdim=True)
        return give_back(found / torch.where(lengths == 0, 1, lengths), X)

    def fit_transform(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        """Return the profile vectors of the gallery itself."""
        return self.fit(X, groups=groups).transform(X, groups=groups)

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        """Return the profile vectors of searched embeddings; without cameras, the embeddings as they are.

        Args:
            embeddings: all that are searched `(rows, dim)`.
            labels: ignored.
            groups: the camera of each row, or None.
        """
        return embeddings if groups is None else self.fit_transform(embeddings, groups=groups)

    def _cameras(self, groups: Any, count: int) -> Tensor:
        if self.cameras_ is None:
            if groups is not None and self.statistics == "intra_camera":
                raise DataError("groups are given, but fit had none; give fit the camera of each row too")
            return torch.zeros(count, dtype=torch.int64)
        if groups is None:
            raise DataError("groups is not given, but fit had cameras; give the camera of each row")
        ids = read_groups(groups, count)
        places = np.searchsorted(self.cameras_, ids).clip(max=len(self.cameras_) - 1)
        new = self.cameras_[places] != ids
        if new.any():
            raise DataError(
                f"camera {ids[new][0]!r} is not one of those in fit: {self.cameras_.tolist()}; fit on its images too"
            )
        return torch.from_numpy(places)
