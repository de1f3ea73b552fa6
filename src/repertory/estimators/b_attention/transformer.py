"""Features from B-attention over neighbourhoods, in scikit-learn's manner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor
from torch.nn.functional import normalize

from repertory.core.neighbours import nearest_neighbours
from repertory.core.randomness import generator_for, seeded
from repertory.errors import DataError, DivergedError, check_choice, check_number
from repertory.estimators.b_attention.attention import (
    BAttentionEncoder,
    check_attention,
    check_encoder,
    contexts_of,
)
from repertory.estimators.b_attention.loss import PAIRS, cluster_loss
from repertory.estimators.rows import give_back, read_rows

_POOL = 256
"""A batch is drawn from so many nearest neighbours of one row, as the authors do."""
_HELD = 2**24
"""Numbers of contexts that are held at once."""
_SHAPE = ("layers", "outputs", "heads", "hidden", "dropout", "temperature", "version", "scores")


class BAttentionFeatures(TransformerMixin, BaseEstimator):
    r"""Features that are learnt from a row and its nearest neighbours, for classes that were not seen in training.

    `fit` trains a `BAttentionEncoder` on labelled rows; `transform` gives features of rows by their neighbours in a
    gallery, and `refine` of rows by each other.

    Args:
        k: rows of a context, the row itself among them; galleries with fewer rows fill it with zeros.
        layers: of attention.
        outputs: size of what the head gives.
        heads: of each layer.
        hidden: units within a "transformer" layer.
        dropout: share of numbers that are dropped in training.
        temperature: divides the attention's scores.
        version: "gcn" or "transformer"; see `BAttention`.
        scores: "B", or "S" for self-attention and "Q" for profiles alone.
        feature: "head", what the loss is taken on, or "node", what enters the head, as wide as the input.
        pairs: of the loss; see `cluster_loss`.
        margin: of pairs of different classes.
        positive_margin: of pairs of one class.
        positive_weight: of pairs of one class.
        steps: updates in `fit`.
        batch: rows an update, drawn from the 256 nearest of one random row.
        lr: learning rate of SGD; it rises over the first hundredth of the steps, falls along a cosine to a twentieth by
            their half, and stays.
        momentum: of SGD.
        weight_decay: of SGD.
        random_state: of the initial weights and of the batches.

    Attributes:
        network_: the trained `BAttentionEncoder`.
        gallery_: rows of `fit` at length 1, a tensor.
        losses_: the loss of each update.
        n_features_in_: width of the features.

    >>> draw = np.random.default_rng(0)
    >>> labels = np.arange(40) % 4
    >>> X = draw.normal(size=(4, 8))[labels] + draw.normal(size=(40, 8))
    >>> features = BAttentionFeatures(k=6, outputs=16, steps=20, batch=16).fit(X, labels)
    >>> features.transform(X).shape
    (40, 16)

    Notes:
        The authors train 100000 updates on 8573 classes of faces; the default here is 1000. Neighbours are sorted,
        nearest first: their order has a meaning for the layer, and in the authors' code it is that of an adjacency
        matrix. A row that is in the gallery itself is not its own neighbour.

    Reference: Wang, Zhang, Lin, Wang, Sun, Jin, https://arxiv.org/abs/2210.03956.
    """

    def __init__(
        self,
        k: int = 120,
        layers: int = 3,
        outputs: int = 2048,
        heads: int = 1,
        hidden: int = 2048,
        dropout: float = 0.0,
        temperature: float = 1.0,
        version: str = "gcn",
        scores: str = "B",
        feature: str = "head",
        pairs: str = "allmax",
        margin: float = 1.0,
        positive_margin: float = 0.95,
        positive_weight: float = 10.0,
        steps: int = 1000,
        batch: int = 128,
        lr: float = 0.008,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.layers = layers
        self.outputs = outputs
        self.heads = heads
        self.hidden = hidden
        self.dropout = dropout
        self.temperature = temperature
        self.version = version
        self.scores = scores
        self.feature = feature
        self.pairs = pairs
        self.margin = margin
        self.positive_margin = positive_margin
        self.positive_weight = positive_weight
        self.steps = steps
        self.batch = batch
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.random_state = random_state

    def check_options(self) -> None:
        """Check the options, but for heads that do not divide the width of features, which `fit` sees.

        Raises:
            OptionError: naming the one that is not allowed.
        """
        check_attention(self.k, self.heads, self.temperature, self.version, self.scores)
        check_encoder(self.layers, self.outputs, self.hidden, self.dropout)
        check_choice("feature", self.feature, ("head", "node"))
        check_choice("pairs", self.pairs, PAIRS)
        for name in ("margin", "positive_margin", "positive_weight", "momentum", "weight_decay"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("lr", self.lr, above=0)
        for name in ("steps", "batch"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("random_state", self.random_state, minimum=0, integer=True)

    def fit(self, X: Any, y: Any) -> BAttentionFeatures:
        """Train on labelled rows.

        Args:
            X: features `(rows, width)`, an array or a tensor; only directions count.
            y: labels `(rows,)`.

        Raises:
            OptionError: if an option is not allowed.
            DataError: if labels are missing, not one a row, or of one class.
            DivergedError: if the loss stops being finite.
        """
        self.check_options()
        rows = read_rows(self, X, reset=True)
        return self.train_on(rows, self._labels(y, len(rows)), lambda made: made / self.steps, self.random_state)

    def train_on(self, rows: Tensor, labels: Tensor, progress: Callable[[int], float], seed: int) -> BAttentionFeatures:
        """Train until there is no progress left to make; what `fit` does in `steps` updates.

        Args:
            rows: features `(rows, width)`.
            labels: `(rows,)`, int64.
            progress: called with the number of updates made, returns the share of all of them; the last is at 1.
            seed: of the initial weights and of the batches.

        Raises:
            DataError: if the labels are of one class.
            DivergedError: if the loss stops being finite.
        """
        if len(labels.unique()) < 2:
            raise DataError(f"y has 1 class in {len(labels)} rows (n_samples={len(labels)}); give rows of at least 2")
        self.n_features_in_ = rows.shape[1]
        self.gallery_ = normalize(rows.detach(), dim=1)
        with seeded(seed, "b-attention"):
            self.network_ = self._network(rows.shape[1]).to(rows)
            with torch.enable_grad():
                self.losses_ = self._updates(labels.to(rows.device), progress, seed)
        self.network_.eval()
        return self

    def transform(self, X: Any, gallery: Any = None) -> Any:
        """Return features by the nearest neighbours in a gallery.

        Args:
            X: features `(rows, width)`.
            gallery: `(gallery, width)`; None takes the rows of `fit`.

        Returns:
            `(rows, outputs)`, or `(rows, width)` with `feature="node"`, of length 1.
        """
        check_is_fitted(self)
        rows = self._unit(read_rows(self, X))
        known = self.gallery_ if gallery is None else self._unit(read_rows(self, gallery, name="gallery"))
        places = nearest_neighbours(rows, known, min(self.k, len(known)), metric="dot")[1]
        # A row that is in the gallery is no neighbour of its own, and moves behind the others.
        itself = (known[places] == rows[:, None]).all(2)
        itself &= itself.cumsum(1) == 1
        order = itself.int().argsort(dim=1, stable=True)[:, : self.k - 1]
        return give_back(self._features(rows, known, places.gather(1, order), ~itself.gather(1, order)), X)

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        """Return features of searched embeddings by their nearest neighbours among each other.

        Args:
            embeddings: all that are searched `(rows, dim)`.
            labels: ignored.
            groups: ignored.
        """
        check_is_fitted(self)
        rows = self._unit(read_rows(self, embeddings))
        found: Tensor = give_back(self._features(rows, rows, self._neighbours(rows)), embeddings)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights, without the rows of `fit`."""
        check_is_fitted(self)
        return {**self.network_.state_dict(), "width": torch.tensor(self.n_features_in_)}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take trained weights from what `weights` returned; features are then by neighbours in a given gallery."""
        held = dict(tensors)
        self.n_features_in_ = int(held.pop("width"))
        self.network_ = self._network(self.n_features_in_)
        self.network_.load_state_dict(held)
        self.network_.eval()
        self.gallery_ = next(self.network_.parameters()).new_empty(0, self.n_features_in_)

    def _network(self, width: int) -> BAttentionEncoder:
        return BAttentionEncoder(width, self.k, **{name: getattr(self, name) for name in _SHAPE})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _labels(self, y: Any, count: int) -> Tensor:
        if y is None:
            raise DataError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        values = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
        check_classification_targets(values)
        if len(values) != count:
            raise DataError(f"y has {len(values)} labels for {count} rows of X; give one a row")
        return torch.from_numpy(np.unique(values, return_inverse=True)[1].reshape(-1))

    def _unit(self, rows: Tensor) -> Tensor:
        return normalize(rows.to(self.gallery_), dim=1)

    def _neighbours(self, rows: Tensor) -> Tensor:
        own = torch.arange(len(rows), device=rows.device)
        count = min(self.k, len(rows)) - 1
        return nearest_neighbours(rows, rows, count, metric="dot", own=own)[1] if count else own.new_zeros(len(rows), 0)

    @torch.no_grad()
    def _features(self, rows: Tensor, gallery: Tensor, places: Tensor, known: Tensor | None = None) -> Tensor:
        call = self.network_ if self.feature == "head" else self.network_.encode
        found = []
        for part in torch.arange(len(rows), device=rows.device).split(
            max(1, _HELD // (self.k * max(self.k, rows.shape[1])))
        ):
            counted = None if known is None else known[part]
            found.append(call(*contexts_of(rows[part], gallery, places[part], self.k, counted)))
        return torch.cat(found)

    def _updates(self, labels: Tensor, progress: Callable[[int], float], seed: int) -> list[float]:
        rows, network = self.gallery_, self.network_.train()
        neighbours = self._neighbours(rows)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        generator = generator_for(seed, "b-attention/batches")
        losses: list[Tensor] = []
        while (spent := progress(len(losses))) < 1:
            optimizer.param_groups[0]["lr"] = self.lr * learning_rate_factor(spent)
            centre = int(torch.randint(len(rows), (), generator=generator))
            pool = nearest_neighbours(rows[centre, None], rows, min(_POOL, len(rows)), metric="dot")[1][0]
            chosen = pool[torch.randperm(len(pool), generator=generator)[: self.batch].to(pool.device)]
            output = network(*contexts_of(rows[chosen], rows, neighbours[chosen], self.k))
            loss = cluster_loss(
                output, labels[chosen], self.pairs, self.margin, self.positive_margin, self.positive_weight
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values = torch.stack(losses).tolist() if losses else []
        if not all(map(math.isfinite, values)):
            raise DivergedError(f"the loss stopped being finite; lower lr={self.lr}")
        return values


def learning_rate_factor(progress: float) -> float:
    """Return the factor on the learning rate: up to 1.05 in the first hundredth, down to 0.05 at the half, and on.

    >>> [round(learning_rate_factor(progress), 3) for progress in (0.0, 0.01, 0.255, 0.5, 1.0)]
    [0.05, 1.05, 0.55, 0.05, 0.05]
    """
    if progress < 0.01:
        return progress / 0.01 + 0.05
    if progress < 0.5:
        return (1 + math.cos(math.pi * (progress - 0.01) / 0.49)) / 2 + 0.05
    return 0.05
