"""Search by embeddings: an index, and how good what it finds is."""

from repertory.retrieval.metrics import clustering_agreement, retrieval_metrics

__all__ = ["clustering_agreement", "retrieval_metrics"]
