"""Gaussians with one shared covariance: estimated from labels, from a text alone, or from a mixture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse, special
from sklearn.covariance import ledoit_wolf, oas

from repertory.errors import DataError, check_choice, check_number

Array = NDArray[np.float64]

PRECISIONS = ("ks", "pinv", "class-pinv", "ledoit-wolf", "oas")
"""Estimators of the shared precision matrix."""

PRIORS = ("uniform", "empirical")
"""Class priors: the same for all, or the classes' shares of the examples."""

ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""The authors' grid for the weight of the Gaussian logits."""

_NOISE = 1e-10
"""Directions with less than this share of the largest variance are rounding, far above float64's own."""


class Gaussians(NamedTuple):
    """One Gaussian a class, with a covariance that all share.

    Args:
        means: `(classes, width)`.
        precision: inverse covariance `(width, width)`.
        prior: probability of each class `(classes,)`.
    """

    means: Array
    precision: Array
    prior: Array


def estimate(
    features: Array, labels: NDArray[np.int_], classes: int, *, precision: str = "ks", prior: str = "uniform"
) -> Gaussians:
    """Estimate class means and the shared precision from labelled features.

    Without any spread inside the classes (one example each) the precision is the identity, which makes the
    rule that of the nearest mean.

    Args:
        features: `(examples, width)`, used as they are.
        labels: classes `(examples,)` from 0 to `classes - 1`.
        classes: number of classes.
        precision: one of `PRECISIONS`; "class-pinv" inverts the mean of the classes' own covariances.
        prior: one of `PRIORS`.

    Raises:
        DataError: if a class has no example.
        OptionError: if `precision` or `prior` is not known.

    >>> features = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]])
    >>> estimate(features, np.array([0, 0, 1, 1]), 2).precision
    array([[6. , 0. ],
           [0. , 1.5]])
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("prior", prior, PRIORS)
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise DataError(
            f"class {int(counts.argmin())} has no example; give at least one of each of the {classes} classes"
        )
    examples = len(labels)
    member = sparse.csr_array((np.ones(examples), (labels, np.arange(examples))), shape=(classes, examples))
    means = (member @ features) / counts[:, None]
    centred = features - means[labels]
    if precision == "class-pinv":
        centred = centred / np.sqrt(classes * np.maximum(counts - 1, 1))[labels, None]
    shares = counts / examples if prior == "empirical" else np.full(classes, 1 / classes)
    return Gaussians(means, _precision(centred, precision), shares)


def linear_rule(
    gaussians: Gaussians, text_weights: Array | None = None, *, text_scale: float = 100.0, alpha: float = 1.0
) -> tuple[Array, Array]:
    """Return the linear classifier of Bayes' rule, with the zero-shot classifier folded in.

    Args:
        gaussians: the classes.
        text_weights: unit rows `(classes, width)` of the zero-shot classifier, or None for Bayes' rule alone.
        text_scale: factor on the zero-shot cosines.
        alpha: weight of the Gaussian logits beside the zero-shot ones.

    Returns:
        `coef` `(classes, width)` and `intercept` `(classes,)`: the logits are `features @ coef.T +
        intercept`.
    """
    coef = gaussians.means @ gaussians.precision
    intercept = np.log(gaussians.prior) - 0.5 * (coef * gaussians.means).sum(1)
    if text_weights is None:
        return coef, intercept
    return text_scale * text_weights + alpha * coef, alpha * intercept


def tune_alpha(zero_shot: Array, gaussian: Array, labels: NDArray[np.int_]) -> float:
    """Return the weight in `ALPHAS` with the best validation accuracy, the smallest among equals.

    Args:
        zero_shot: validation logits `(examples, classes)` that are kept as they are.
        gaussian: validation logits `(examples, classes)` to be weighted.
        labels: classes `(examples,)`.
    """
    hits = [np.mean((zero_shot + alpha * gaussian).argmax(1) == labels) for alpha in ALPHAS]
    return ALPHAS[int(np.argmax(hits))]


def synthesise_new_classes(
    features: Array, text_weights: Array, *, neighbours: int = 64, text_copies: int = 16
) -> Gaussians:
    """Make Gaussians for classes without examples, from their texts and features of other classes.

    A class's mean is that of the features most similar to its text, with the text counted `text_copies`
    times; their spread around the text gives a precision, and the classes' precisions are averaged. Use the
    weight `alpha` that was tuned on the classes with examples, which the authors fitted with
    `precision="class-pinv"`.

    Args:
        features: features of the classes with examples `(examples, width)`, unit rows.
        text_weights: texts of the new classes `(new, width)`, unit rows.
        neighbours: features that stand in for the examples of a class.
        text_copies: how often the text itself enters the mean.

    Raises:
        OptionError: if an option is out of range; `neighbours` can be at most the number of features.
    """
    check_number("neighbours", neighbours, minimum=2, maximum=len(features), integer=True)
    check_number("text_copies", text_copies, minimum=0, integer=True)
    nearest = np.argpartition(-(text_weights @ features.T), neighbours - 1, axis=1)[:, :neighbours]
    means = (features[nearest].sum(1) + text_copies * text_weights) / (neighbours + text_copies)
    precision = np.zeros((features.shape[1], features.shape[1]))
    for text, rows in zip(text_weights, nearest):
        precision += _precision(features[rows] - text, "ks") / len(text_weights)
    return Gaussians(means, precision, np.full(len(text_weights), 1 / len(text_weights)))


def fit_unlabelled(
    features: Array, text_weights: Array, *, iterations: int = 10, text_scale: float = 100.0
) -> Gaussians:
    r"""Fit a mixture of Gaussians to unlabelled features by EM, started by the zero-shot classifier.

    The first responsibilities are the zero-shot probabilities; each iteration then updates means, covariance
    and priors, and takes responsibilities from Bayes' rule. Ensemble the result with the zero-shot classifier
    by `linear_rule(gaussians, text_weights)`.

    Args:
        features: `(examples, width)`, unit rows.
        text_weights: one text a class `(classes, width)`, unit rows.
        iterations: updates of the mixture.
        text_scale: factor on the zero-shot cosines.

    Notes:
        The precision is $(S + \operatorname{tr}(S) I / (N-1))^{-1}$: the estimator "ks" without its factor
        $D / (N - 1)$. That factor does not change which class is most likely, but with many examples it would
        flatten the responsibilities until all classes share every example.

    Raises:
        OptionError: if `iterations` is not a whole number from 1 on.
    """
    check_number("iterations", iterations, minimum=1, integer=True)
    examples, width = features.shape
    tiny = np.finfo(np.float64).tiny
    moments = features.T @ features
    logits = text_scale * features @ text_weights.T
    for _ in range(iterations):
        shares = special.softmax(logits, axis=1)
        counts = shares.sum(0) + tiny
        # The text takes the place of the mean of a class that no example belongs to.
        means = (shares.T @ features + tiny * text_weights) / counts[:, None]
        scatter = moments - (means.T * counts) @ means
        precision = _shrunk_inverse(scatter, examples) * ((examples - 1) / width)
        gaussians = Gaussians(means, precision, counts / examples)
        coef, intercept = linear_rule(gaussians)
        logits = features @ coef.T + intercept
    return gaussians


def _precision(centred: Array, kind: str) -> Array:
    examples, width = centred.shape
    scatter = centred.T @ centred
    if not scatter.trace() > 0:
        return np.eye(width)
    if kind == "ks":
        return _shrunk_inverse(scatter, examples)
    if kind in ("ledoit-wolf", "oas"):
        return _inverse((ledoit_wolf if kind == "ledoit-wolf" else oas)(centred, assume_centered=True)[0])
    return _inverse(scatter if kind == "class-pinv" else scatter / (examples - 1))


def _shrunk_inverse(scatter: Array, examples: int) -> Array:
    """Kubokawa and Srivastava: width * (scatter + tr(S) I)^-1, where S is the scatter over examples - 1."""
    width = len(scatter)
    return width * _inverse(scatter + scatter.trace() / max(examples - 1, 1) * np.eye(width))


def _inverse(matrix: Array) -> Array:
    try:
        factor = linalg.cholesky(matrix, lower=True)
    except linalg.LinAlgError:
        return linalg.pinvh(matrix, rtol=_NOISE)
    pivots = np.diag(factor) ** 2
    if pivots.min() <= _NOISE * pivots.max():
        return linalg.pinvh(matrix, rtol=_NOISE)
    return linalg.cho_solve((factor, True), np.eye(len(matrix)))
