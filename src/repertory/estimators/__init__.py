"""Estimators: scikit-learn's `fit` with `predict` or `transform`, on arrays or tensors."""

from repertory.estimators.b_attention import BAttention, BAttentionFeatures
from repertory.estimators.gda_clip import GDAClassifier
from repertory.estimators.graph_reranking import GCR, ProfileVector
from repertory.estimators.relative_representations import RelativeLayer, RelativeProjection
from repertory.estimators.robust_gaussians import RobustGaussianCalibrator
from repertory.estimators.wide_deep_optimality import WideDeepClassifier

__all__ = [
    "GCR",
    "BAttention",
    "BAttentionFeatures",
    "GDAClassifier",
    "ProfileVector",
    "RelativeLayer",
    "RelativeProjection",
    "RobustGaussianCalibrator",
    "WideDeepClassifier",
]
