"""Relative representations, in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number
from repertory.estimators.relative_representations.anchors import CHOICES, choose_anchors
from repertory.estimators.relative_representations.projection import check_similarity, relative_projection
from repertory.estimators.rows import give_back, read_rows


class RelativeProjection(TransformerMixin, BaseEstimator):
    """Latents described by their similarity to anchors: the same for encoders that differ by rotation and scale.

    To bring the latents of two encoders together, fit one projection for each, on the same examples in the same order
    and with the same anchors.

    Args:
        anchors: how many; or the rows of `fit`'s examples that serve as anchors; or None, where these are the anchors
            and nothing else (translations of each other, say).
        similarity: "cosine", "angular", "euclidean", "l1", "basis", or a list of these; see `relative_projection`.
        choice: how they are chosen where only their number is given: "random", "stratified" (by the labels), "farthest"
            or "kmeans".
        center: subtract the mean of the anchors first.
        random_state: of the choice.

    Attributes:
        anchor_rows_: rows of the anchors in `fit`, an array `(anchors,)`.
        anchors_: their latents, a tensor `(anchors, width)`.
        n_features_in_: width of the latents.

    >>> draw = np.random.default_rng(0)
    >>> latents, turn = draw.normal(size=(20, 3)), np.linalg.qr(draw.normal(size=(3, 3)))[0]
    >>> other = 5 * latents @ turn
    >>> one = RelativeProjection(anchors=4).fit(latents)
    >>> two = RelativeProjection(anchors=one.anchor_rows_.tolist()).fit(other)
    >>> bool(np.allclose(one.transform(latents), two.transform(other)))
    True

    Notes:
        Options are checked in `fit`, as everywhere in scikit-learn. The authors' clustering of similarities is left
        out: in their release it gives rows of another width.

    Reference: Moschella, Maiorca, Fumero, Norelli, Locatello, Rodola, https://arxiv.org/abs/2209.15430.
    """

    def __init__(
        self,
        anchors: int | Sequence[int] | None = 500,
        similarity: str | Sequence[str] = "cosine",
        choice: str = "random",
        center: bool = False,
        random_state: int = 0,
    ) -> None:
        self.anchors = anchors
        self.similarity = similarity
        self.choice = choice
        self.center = center
        self.random_state = random_state

    def check_options(self) -> None:
        """Check the options.

        Raises:
            OptionError: naming the one that is not allowed.
        """
        check_similarity(self.similarity)
        check_choice("choice", self.choice, CHOICES)
        check_choice("center", self.center, (True, False))
        check_number("random_state", self.random_state, minimum=0, integer=True)
        if isinstance(self.anchors, (int, float, str)):
            check_number("anchors", self.anchors, minimum=1, integer=True)

    def fit(self, X: Any, y: Any = None) -> RelativeProjection:
        """Choose the anchors, and keep their latents.

        Args:
            X: latents `(rows, width)`, an array or a tensor.
            y: labels `(rows,)`; only `choice="stratified"` looks at them.

        Raises:
            OptionError: if an option is not allowed, or there are fewer rows than anchors.
            DataError: if labels are missing.
        """
        self.check_options()
        return self._fit(read_rows(self, X, reset=True), y, self.anchors, self.random_state)

    def transform(self, X: Any) -> Any:
        """Return the similarities of latents `(rows, width)` to the anchors, `(rows, anchors)` a similarity."""
        check_is_fitted(self)
        rows = read_rows(self, X)
        anchors = self.anchors_.to(rows.device)
        return give_back(relative_projection(rows, anchors, self.similarity, center=self.center), X)

    def apply(self, model: nn.Module, bench: Any) -> nn.Module:
        """Take the anchors from the training embeddings of `bench`, all of them if there are too few.

        Returns:
            The model as it was.
        """
        embeddings, targets = bench.embed(model, "train")
        count = min(self.anchors, len(embeddings)) if isinstance(self.anchors, int) else self.anchors
        seed = int(torch.randint(2**31, (), generator=bench.generator("relative-representations")))
        self._fit(read_rows(self, embeddings, reset=True), targets, count, seed)
        return model

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        """Return the similarities of searched embeddings to the anchors.

        Args:
            embeddings: all that are searched `(rows, dim)`.
            labels: ignored.
            groups: ignored.
        """
        described: Tensor = self.transform(embeddings)
        return described

    def refinement(self) -> dict[str, Tensor]:
        """Return the anchors, as tensors to save."""
        check_is_fitted(self)
        return {"anchors": self.anchors_, "anchor_rows": torch.from_numpy(self.anchor_rows_)}

    def load_refinement(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the anchors from what `refinement` returned."""
        self.anchors_ = tensors["anchors"]
        self.anchor_rows_ = tensors["anchor_rows"].numpy()
        self.n_features_in_ = self.anchors_.shape[1]

    def _fit(self, rows: Tensor, labels: Any, anchors: int | Sequence[int] | None, seed: int) -> RelativeProjection:
        if isinstance(anchors, int):
            codes = None
            if self.choice == "stratified" and labels is not None:
                labels = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
                codes = torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(-1))
            chosen = choose_anchors(rows, anchors, self.choice, labels=codes, seed=seed)
        else:
            chosen = torch.arange(len(rows)) if anchors is None else _given(anchors, len(rows))
        self.anchor_rows_ = chosen.cpu().numpy()
        self.anchors_ = rows[chosen.to(rows.device)]
        return self


def _given(anchors: Sequence[int], rows: int) -> Tensor:
    chosen = np.asarray(anchors)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not len(chosen):
        raise OptionError(f"anchors={anchors!r} is not allowed: anchors must be a number, a list of rows, or None")
    if chosen.min() < 0 or chosen.max() >= rows:
        raise OptionError(
            f"anchors names row {chosen.min() if chosen.min() < 0 else chosen.max()}, "
            f"but X has rows 0 to {rows - 1}; give rows of X"
        )
    return torch.from_numpy(chosen.astype(np.int64))
