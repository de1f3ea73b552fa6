"""Checks of the protocol of scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np

from repertory.testing.check import check, require
from repertory.testing.subject import Subject
from repertory.testing.use import arrays


@check("estimator")
def sklearn_clone(subject: Subject) -> None:
    """`clone`, `get_params` and `set_params` give an equal estimator that fits to the same predictions."""
    from sklearn.base import clone

    first = subject.make()
    second = clone(first)
    require(second.get_params() == first.get_params(), "the clone has other parameters")
    third = subject.make().set_params(**first.get_params())
    inputs, targets = arrays(subject)
    require(first.fit(inputs, targets) is first, "fit does not return the estimator")
    expected = first.predict(inputs)
    for other in (second, third):
        require(
            np.array_equal(other.fit(inputs, targets).predict(inputs), expected),
            "the clone predicts something else",
        )


@check("estimator")
def sklearn_check_estimator(subject: Subject) -> None:
    """scikit-learn's own checks of an estimator pass."""
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(subject.make(), on_fail=None, on_skip=None)
    failed = [f"{result['check_name']} ({result['exception']})" for result in results if result["status"] == "failed"]
    require(not failed, f"{len(failed)} of {len(results)} fail: {'; '.join(failed)}")
