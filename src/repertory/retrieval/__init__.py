"""Search by embeddings: an index, and how good what it finds is."""

from repertory.retrieval.compatibility import (
    average_compatibility,
    average_multi_model_accuracy,
    cross_version_matrix,
    identification,
)
from repertory.retrieval.index import Index
from repertory.retrieval.metrics import clustering_agreement, retrieval_metrics

__all__ = [
    "Index",
    "average_compatibility",
    "average_multi_model_accuracy",
    "clustering_agreement",
    "cross_version_matrix",
    "identification",
    "retrieval_metrics",
]
