"""Graph convolution for re-ranking, in scikit-learn's manner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import normalize

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError
from repertory.estimators.graph_reranking.graph import (
    check_options,
    follow,
    graphs_of,
    group_codes,
    run_rounds,
)
from repertory.estimators.rows import give_back, read_groups, read_rows


class GCR(TransformerMixin, BaseEstimator):
    r"""Features that have been propagated over a similarity graph, to be searched by cosine or distance as before.

    `fit_transform` and `rerank` refine rows together: each sees all others. `transform` refines queries that come one
    by one, over a gallery that was fitted; they change nothing for each other or for the gallery.

    Args:
        k1: links of a row, the one to itself among them, in the graph of all rows.
        k2: links of a row, the one to itself among them, in the graph between different groups (cameras).
        beta1: temperature of the weights $e^{s / \beta}$ in the first graph.
        beta2: temperature of the weights in the second graph.
        scale: share of the second graph; without groups there is only the first.
        rounds: how often features are propagated, the graphs built anew each time; 0 leaves rows as they are.
        mode: "nonsym" as in the equations; "sym" makes the weights symmetric first; "no-norm" weighs by
            $e^{-\lVert x - x' \rVert^2 / \beta}$ and leaves lengths as they come; "fixA" keeps the first round's graph;
            "localk" normalises within each row's own small graph, of neighbours with positive similarity, and
            "localk-inplace" so that a row reads new features of the rows before it.

    Attributes:
        embedding_: the refined rows of `fit`, a tensor.
        n_features_in_: width of the features.

    >>> features = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> queries, gallery = GCR(k1=2, rounds=1).rerank(features[:1], features[1:])
    >>> queries.round(3)
    array([[0.992, 0.124]])

    Notes:
        A query of `transform` takes the sum of its column, which new rows do not have, from its row. One that is equal
        to a fitted row, and of the same group, gets what `fit` made of that row. Links to the own group have weight 0,
        where the authors give them $e^{-2 / \beta}$ if there are too few others. In their code "fixA" builds its graph
        anew all the same, and "localk" is what is "localk-inplace" here; their article describes rounds that all rows
        take at once.

    Reference: Zhang, Qian, Liu, Chen, Wang, Li, Jin, https://arxiv.org/abs/2107.02220; Zhang, Qian, Wang, Liu, Chen,
    Wang, https://arxiv.org/abs/2306.08792.
    """

    def __init__(
        self,
        k1: int = 15,
        k2: int = 3,
        beta1: float = 0.2,
        beta2: float = 0.2,
        scale: float = 0.3,
        rounds: int = 3,
        mode: str = "nonsym",
    ) -> None:
        self.k1 = k1
        self.k2 = k2
        self.beta1 = beta1
        self.beta2 = beta2
        self.scale = scale
        self.rounds = rounds
        self.mode = mode

    def check_options(self) -> None:
        """Check the options.

        Raises:
            OptionError: naming the one that is not allowed.
        """
        check_options(**self.get_params())

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> GCR:
        """Refine a gallery, and keep what later queries need: its features before each round.

        Args:
            X: features `(rows, width)`, an array or a tensor.
            y: ignored.
            groups: the camera (domain) of each row `(rows,)`, or None.

        Raises:
            OptionError: if an option is not allowed, or a row cannot have as many links.
            DataError: if a number is not finite, or there is not one group a row.
        """
        self.check_options()
        rows = read_rows(self, X, reset=True)
        self.groups_ = None if groups is None else read_groups(groups, len(rows))
        self._graphs = self._graphs_for(len(rows))
        codes = None if groups is None else group_codes(groups, len(rows)).to(rows.device)
        with torch.no_grad():
            unit = normalize(rows, dim=1)
            self.embedding_, self._stages = run_rounds(unit, codes, self._graphs, self.rounds, self.mode)
        self._rows = rows
        if self.rounds == 0:
            self.embedding_ = rows
        return self

    def fit_transform(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        """Refine rows together, and return them `(rows, width)` as array or tensor, whatever `X` is."""
        return give_back(self.fit(X, groups=groups).embedding_, X)

    def transform(self, X: Any, groups: Any = None) -> Any:
        """Refine queries one by one over the fitted gallery.

        Args:
            X: features `(rows, width)`.
            groups: the camera of each row, given if and only if `fit` had them.

        Raises:
            DataError: if there are groups in one place and none in the other.
        """
        check_is_fitted(self)
        rows = read_rows(self, X).to(self.embedding_)
        if (groups is None) != (self.groups_ is None):
            raise DataError("groups must be given to fit and to transform, or to neither")
        if self.rounds == 0:
            return give_back(rows, X)
        unit = normalize(rows, dim=1)
        gallery = self._stages[0].features
        codes = None
        if groups is not None:
            both = group_codes(np.concatenate([read_groups(groups, len(rows)), self.groups_]), len(rows) + len(gallery))
            codes = both[: len(rows)].to(rows.device), both[len(rows) :].to(rows.device)
        with torch.no_grad():
            known, places = self._fitted(rows, unit, codes)
            found = follow(unit, codes, self._stages, self._graphs, self.mode)
            found[known] = self.embedding_[places]
        return give_back(found, X)

    def rerank(
        self, queries: Any, gallery: Any, query_groups: Any = None, gallery_groups: Any = None
    ) -> tuple[Any, Any]:
        """Refine queries and gallery together, and return both; then search the gallery with the queries.

        Args:
            queries: features `(queries, width)`, an array or a tensor.
            gallery: features `(gallery, width)`.
            query_groups: the camera of each query, or None.
            gallery_groups: the camera of each row of the gallery, or None.

        Raises:
            DataError: if there are groups on one side only.
        """
        if (query_groups is None) != (gallery_groups is None):
            raise DataError("query_groups and gallery_groups must both be given, or neither")
        together = torch.cat if isinstance(queries, Tensor) else np.concatenate
        groups = None
        if query_groups is not None:
            groups = np.concatenate(
                [read_groups(query_groups, len(queries)), read_groups(gallery_groups, len(gallery))]
            )
        found = self.fit_transform(together([queries, gallery]), groups=groups)
        return found[: len(queries)], found[len(queries) :]

    def refine(self, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        """Return all searched embeddings, refined together.

        Args:
            embeddings: all that are searched `(rows, dim)`.
            labels: ignored.
            groups: the camera of each row, or None.
        """
        refined: Tensor = self.fit_transform(embeddings, groups=groups)
        return refined

    def _graphs_for(self, rows: int) -> list[Any]:
        sizes = {name: value for name, value in self.get_params().items() if name not in ("rounds", "mode")}
        return graphs_of(**sizes, rows=rows, grouped=self.groups_ is not None)

    def _fitted(self, rows: Tensor, unit: Tensor, codes: Any) -> tuple[Tensor, Tensor]:
        """Which rows are equal to fitted ones, and to which."""
        gallery = self._stages[0].features
        places = nearest_neighbours(unit, gallery, min(self.k1, len(gallery)), metric="dot")[1]
        same = (self._rows[places] == rows[:, None]).all(2)
        if codes is not None:
            same &= codes[1][places] == codes[0][:, None]
        known = same.any(1)
        return known, places.gather(1, same.int().argmax(1, keepdim=True))[known, 0]
