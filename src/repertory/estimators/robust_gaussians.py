"""One Gaussian a class from features whose labels are partly wrong, and where some classes have few: RCAL's estimate.

It belongs to the method `rcal`, whose card says when to use it.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.neighbors import LocalOutlierFactor
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, from_numpy

from repertory.errors import DataError, check_number
from repertory.estimators.frozen_head import as_array
from repertory.estimators.rows import give_back

Array = NDArray[np.float64]

_FEWEST = 6
"""Among fewer rows than this no outlier is looked for: a density cannot be told from them."""


class ClassGaussians(NamedTuple):
    """A Gaussian for each class.

    Args:
        means: `(classes, width)`.
        covariances: `(classes, width, width)`.
    """

    means: Array
    covariances: Array


def inliers(rows: Array, neighbors: int = 20) -> NDArray[np.bool_]:
    """Return which rows of one class are not isolated from the others, by their local outlier factor `(rows,)`.

    Args:
        rows: features `(rows, width)`.
        neighbors: rows that a density is estimated from; at most all others. Fewer than 6 rows are all kept.

    >>> inliers(np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [9.0]]), neighbors=3)
    array([ True,  True,  True,  True,  True,  True, False])
    """
    if len(rows) < _FEWEST:
        return np.ones(len(rows), dtype=bool)
    with warnings.catch_warnings():
        # Equal rows are neighbours at distance 0, which it warns of and copes with.
        warnings.filterwarnings("ignore", message="Duplicate values", category=UserWarning)
        found = LocalOutlierFactor(n_neighbors=min(neighbors, len(rows) - 1)).fit_predict(rows)
    kept: NDArray[np.bool_] = found > 0
    return kept if kept.any() else np.ones(len(rows), dtype=bool)


def class_moments(rows: Array, labels: NDArray[np.int_], classes: int) -> ClassGaussians:
    """Return each class's mean and unbiased covariance; that of a class of one row is 0.

    Args:
        rows: `(rows, width)`.
        labels: classes `(rows,)` from 0 to `classes - 1`, each at least once.
        classes: number of classes.
    """
    counts = np.bincount(labels, minlength=classes)
    means = np.zeros((classes, rows.shape[1]))
    np.add.at(means, labels, rows)
    means /= counts[:, None]
    covariances = np.empty((classes, rows.shape[1], rows.shape[1]))
    for label in range(classes):
        centred = rows[labels == label] - means[label]
        covariances[label] = centred.T @ centred / max(len(centred) - 1, 1)
    return ClassGaussians(means, covariances)


def borrow_from_heads(
    gaussians: ClassGaussians,
    counts: NDArray[np.int_],
    head: NDArray[np.bool_],
    *,
    nearest: int = 3,
    gamma_mean: float = 0.9,
    gamma_covariance: float = 0.5,
    alpha: float = 0.01,
) -> ClassGaussians:
    r"""Return the Gaussians with those of tail classes mixed with the ones of their nearest head classes.

    $$ \mu'_k = \gamma \mu_k + (1 - \gamma) \sum_c w_c \mu_c, \qquad
       \Sigma'_k = \gamma \Sigma_k + (1 - \gamma) \sum_c w_c \Sigma_c + \alpha I, \qquad w_c \propto n_c . $$

    Args:
        gaussians: of all classes, as estimated.
        counts: examples of each class `(classes,)`.
        head: which classes have enough examples to lend, and stay as they are `(classes,)`.
        nearest: head classes that a tail class borrows from, those with the nearest means.
        gamma_mean: share that a tail class keeps of its own mean.
        gamma_covariance: share that it keeps of its own covariance.
        alpha: added to the diagonal of its covariance.

    >>> own = ClassGaussians(np.array([[0.0], [3.0], [9.0]]), np.array([[[1.0]], [[4.0]], [[0.0]]]))
    >>> counts, head = np.array([100, 50, 2]), np.array([True, True, False])
    >>> borrow_from_heads(own, counts, head, gamma_mean=0.0, gamma_covariance=0.0, alpha=0.0).means.ravel()
    array([0., 3., 1.])
    """
    heads, tails = np.flatnonzero(head), np.flatnonzero(~head)
    if not len(heads) or not len(tails):
        return gaussians
    means, covariances = gaussians.means.copy(), gaussians.covariances.copy()
    gaps = np.linalg.norm(means[tails, None] - means[None, heads], axis=2)
    chosen = heads[np.argsort(gaps, axis=1, kind="stable")[:, :nearest]]
    weights = counts[chosen] / counts[chosen].sum(1, keepdims=True)
    lent_means = np.einsum("tq,tqd->td", weights, gaussians.means[chosen])
    lent = np.einsum("tq,tqde->tde", weights, gaussians.covariances[chosen])
    means[tails] = gamma_mean * means[tails] + (1 - gamma_mean) * lent_means
    covariances[tails] = gamma_covariance * covariances[tails] + (1 - gamma_covariance) * lent
    covariances[tails] += alpha * np.eye(means.shape[1])
    return ClassGaussians(means, covariances)


def draw(
    gaussians: ClassGaussians, sizes: NDArray[np.int_], random: np.random.RandomState
) -> tuple[Array, NDArray[np.int_]]:
    """Draw `sizes[k]` rows from each class's Gaussian; a covariance may be singular.

    Args:
        gaussians: to draw from.
        sizes: how many of each `(classes,)`.
        random: source of the draws.

    Returns:
        Rows `(sizes.sum(), width)`, class after class, and their classes.
    """
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = random.standard_normal((len(labels), gaussians.means.shape[1]))
    for label in np.flatnonzero(sizes):
        values, vectors = np.linalg.eigh(gaussians.covariances[label])
        root = vectors * np.sqrt(values.clip(min=0.0))
        rows[labels == label] = rows[labels == label] @ root.T + gaussians.means[label]
    return rows, labels


class RobustGaussianCalibrator(BaseEstimator):
    """A Gaussian for each class of features, of which labels are partly wrong and some classes have few examples.

    Within each class, rows that lie apart from the others are left out; the larger half of the classes lends to the
    smaller ones. New rows drawn from the Gaussians fill the classes up to equal size, for any classifier:
    `fit_resample` is the protocol of imbalanced-learn.

    Args:
        neighbors: rows that the local outlier factor takes a density from; 0 keeps all rows.
        nearest: head classes that a tail class borrows from.
        gamma_mean: share that a tail class keeps of its own mean, in [0, 1]; 1 borrows nothing.
        gamma_covariance: the same of its covariance.
        alpha: added to the diagonal of a tail class's covariance.
        multiple: size that classes are filled up to, as a multiple of the largest one.
        random_state: of the draws, as everywhere in scikit-learn.

    Attributes:
        classes_: labels in sorted order `(classes,)`.
        counts_: rows of each class, outliers included `(classes,)`.
        head_: which classes lend: the upper half by count, of equal ones the first `(classes,)`.
        inliers_: which rows took part `(rows,)`.
        means_: `(classes, width)`.
        covariances_: `(classes, width, width)`.
        n_features_in_: width of the features.

    >>> rows = np.vstack([np.random.RandomState(0).normal(size=(40, 2)), [[5.0, 5.0], [5.2, 4.9], [4.8, 5.1]]])
    >>> calibrator = RobustGaussianCalibrator(random_state=0)
    >>> filled, labels = calibrator.fit_resample(rows, ["many"] * 40 + ["few"] * 3)
    >>> [int((labels == name).sum()) for name in ("many", "few")]
    [40, 40]

    Notes:
        Options are checked in `fit`, as everywhere in scikit-learn. Tensors are taken too, and given back where rows
        are. Weights of the lending classes, and all default values but the number of neighbours, are our reading: the
        paper's formulas were at hand in a summary only.

    Reference: Zhang, Zhao, Yao, Yuan, Huang, https://arxiv.org/abs/2211.10955.
    """

    def __init__(
        self,
        neighbors: int = 20,
        nearest: int = 3,
        gamma_mean: float = 0.9,
        gamma_covariance: float = 0.5,
        alpha: float = 0.01,
        multiple: float = 1.0,
        random_state: Any = None,
    ) -> None:
        self.neighbors = neighbors
        self.nearest = nearest
        self.gamma_mean = gamma_mean
        self.gamma_covariance = gamma_covariance
        self.alpha = alpha
        self.multiple = multiple
        self.random_state = random_state

    def check_options(self) -> None:
        """Check the options.

        Raises:
            OptionError: if one is outside its range.
        """
        check_number("neighbors", self.neighbors, minimum=0, integer=True)
        check_number("nearest", self.nearest, minimum=1, integer=True)
        check_number("gamma_mean", self.gamma_mean, minimum=0, maximum=1)
        check_number("gamma_covariance", self.gamma_covariance, minimum=0, maximum=1)
        check_number("alpha", self.alpha, minimum=0)
        check_number("multiple", self.multiple, minimum=0)

    def fit(self, X: Any, y: Any) -> RobustGaussianCalibrator:
        """Estimate the Gaussians.

        Args:
            X: features `(rows, width)`.
            y: labels `(rows,)`.

        Raises:
            OptionError: if an option is outside its range.
        """
        self.check_options()
        rows, targets = validate_data(self, as_array(X), as_array(y), dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        classes = len(self.classes_)
        self.counts_ = np.bincount(labels, minlength=classes)
        self.inliers_ = np.ones(len(rows), dtype=bool)
        if self.neighbors:
            for label in range(classes):
                own = np.flatnonzero(labels == label)
                self.inliers_[own] = inliers(rows[own], self.neighbors)
        self.head_ = np.zeros(classes, dtype=bool)
        self.head_[np.argsort(-self.counts_, kind="stable")[: (classes + 1) // 2]] = True
        own_moments = class_moments(rows[self.inliers_], labels[self.inliers_], classes)
        self.means_, self.covariances_ = borrow_from_heads(
            own_moments,
            self.counts_,
            self.head_,
            nearest=self.nearest,
            gamma_mean=self.gamma_mean,
            gamma_covariance=self.gamma_covariance,
            alpha=self.alpha,
        )
        return self

    def lacking(self) -> NDArray[np.int_]:
        """Return how many rows each class lacks to `multiple` times the largest one `(classes,)`."""
        check_is_fitted(self)
        wanted = round(self.multiple * int(self.counts_.max()))
        missing: NDArray[np.int_] = (wanted - self.counts_).clip(min=0)
        return missing

    def sample(self, sizes: Any = None) -> tuple[Array, NDArray[Any]]:
        """Draw rows from the Gaussians.

        Args:
            sizes: how many of each class, in the order of `classes_`; None for what each class lacks.

        Returns:
            Rows `(n, width)` in float64, class after class, and their labels `(n,)`.

        Raises:
            DataError: if there is not a whole number from 0 on for each class.
        """
        check_is_fitted(self)
        chosen = self.lacking() if sizes is None else np.asarray(as_array(sizes))
        if chosen.shape != self.classes_.shape or not np.issubdtype(chosen.dtype, np.integer) or (chosen < 0).any():
            raise DataError(
                f"sizes={sizes!r} is not allowed: give a whole number from 0 on for each of the {len(self.classes_)} "
                "classes"
            )
        gaussians = ClassGaussians(self.means_, self.covariances_)
        rows, labels = draw(gaussians, chosen, check_random_state(self.random_state))
        return rows, self.classes_[labels]

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Estimate the Gaussians, and return the rows with what each class lacks behind them, and all labels.

        Args:
            X: features `(rows, width)`.
            y: labels `(rows,)`; where `X` is a tensor and labels are numbers, labels come back as a tensor.
        """
        rows, labels = self.fit(X, y).sample()
        filled = np.concatenate([np.asarray(as_array(X), dtype=np.float64), rows])
        given = np.concatenate([np.asarray(as_array(y)), labels])
        if not isinstance(X, Tensor):
            return filled, given
        return give_back(from_numpy(filled), X), from_numpy(given).to(X.device) if given.dtype.kind in "iu" else given
