"""Estimators: scikit-learn's `fit` and `predict` on arrays or tensors."""

from repertory.estimators.gda_clip import GDAClassifier

__all__ = ["GDAClassifier"]
