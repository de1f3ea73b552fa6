"""Checks of the protocol of scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from repertory.testing.assembly import difference
from repertory.testing.check import NotApplicable, check, require
from repertory.testing.subject import Subject
from repertory.testing.tiny import EXAMPLES
from repertory.testing.use import answers, applied, arrays, refined


@check("estimator")
def sklearn_clone(subject: Subject) -> None:
    """`clone`, `get_params` and `set_params` give an equal estimator that fits to the same answers."""
    from sklearn.base import clone

    first = subject.make()
    second = clone(first)
    require(second.get_params() == first.get_params(), "the clone has other parameters")
    third = subject.make().set_params(**first.get_params())
    inputs, targets = arrays(subject)
    require(first.fit(inputs, targets) is first, "fit does not return the estimator")
    expected = answers(first, inputs)
    for other in (second, third):
        found = answers(other.fit(inputs, targets), inputs)
        require(np.array_equal(found, expected), "the clone answers something else")


@check("estimator")
def sklearn_check_estimator(subject: Subject) -> None:
    """scikit-learn's own checks of an estimator pass."""
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(subject.make(), on_fail=None, on_skip=None)
    failed = [f"{result['check_name']} ({result['exception']})" for result in results if result["status"] == "failed"]
    require(not failed, f"{len(failed)} of {len(results)} fail: {'; '.join(failed)}")


@check("estimator")
def refined_embeddings(subject: Subject) -> None:
    """`refine` gives a finite row an example, in whatever order they come, with groups and without."""
    changes, model, bench = applied(subject)
    if not any(hasattr(change, "refine") for change in changes):
        raise NotApplicable("it refines no embeddings")
    embeddings = bench.embeddings(model, "train")
    kept, order = embeddings.clone(), torch.arange(EXAMPLES).flip(0)
    for groups in (None, torch.arange(EXAMPLES) % 2):
        found = refined(changes, embeddings, groups)
        turned = refined(changes, embeddings[order], None if groups is None else groups[order])
        require(found.ndim == 2 and len(found) == EXAMPLES, f"the refined embeddings have shape {tuple(found.shape)}")
        require(found.isfinite().all(), "a refined embedding is not finite")
        where = difference(turned, found[order], rtol=1e-4, atol=1e-5, name="the result")
        require(not where, f"in another order of the rows {where}")
    require(torch.equal(embeddings, kept), "refine changed the embeddings that it was given")
