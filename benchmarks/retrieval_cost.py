"""What losses on embeddings, nested heads, searches and clustered batches cost, each as a ratio in one run."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from timing import print_table, ratios
from torch import Tensor, nn

from repertory.losses import (
    ContrastiveLoss,
    MadaCos,
    MRLHead,
    NormalisedSoftmaxLoss,
    SoftTripleLoss,
)
from repertory.retrieval import Index

BATCH, DIM, CLASSES = 512, 128, 1000


def examples(per_class: int = 4) -> tuple[Tensor, Tensor]:
    """Return embeddings `(512, 128)` and their classes, several of each."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randperm(CLASSES, generator=generator)[: BATCH // per_class].repeat_interleave(per_class)
    return torch.randn(BATCH, DIM, generator=generator), classes


def evaluation(loss: nn.Module, embedding: Tensor, target: Tensor) -> Callable[[], object]:
    """Return a call that evaluates the loss with all its gradients."""
    leaf = embedding.clone().requires_grad_()

    def call() -> None:
        leaf.grad = None
        loss.zero_grad(set_to_none=True)
        loss(leaf, target).backward()

    return call


def losses(rounds: int) -> None:
    """Print each loss against the same loss of pytorch-metric-learning, or against a softmax classifier."""
    from pytorch_metric_learning import losses as there

    embedding, target = examples()
    pairs = {
        "normalised softmax": (NormalisedSoftmaxLoss(CLASSES, DIM), there.NormalizedSoftmaxLoss(CLASSES, DIM)),
        "SoftTriple": (SoftTripleLoss(CLASSES, DIM), there.SoftTripleLoss(CLASSES, DIM)),
        "contrastive (SupCon)": (ContrastiveLoss(), there.SupConLoss()),
        "MadaCos, against a softmax classifier": (MadaCos(CLASSES, DIM), Softmax()),
    }
    for name, (ours, theirs) in pairs.items():
        table = {"there": evaluation(theirs, embedding, target), name: evaluation(ours, embedding, target)}
        print_table(f"Loss and gradients: {name}", ratios(table, "there", rounds=rounds, calls=3))


class Softmax(nn.Module):
    """A linear classifier with cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, CLASSES)

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        return nn.functional.cross_entropy(self.linear(embedding), target)


def heads(rounds: int) -> None:
    """Print classifiers of five nested sizes against one of the largest."""
    embedding, target = examples()

    class Nested(nn.Module):
        def __init__(self, efficient: bool) -> None:
            super().__init__()
            self.head = MRLHead(CLASSES, (8, 16, 32, 64, 128), efficient=efficient)

        def forward(self, features: Tensor, target: Tensor) -> Tensor:
            return torch.stack([nn.functional.cross_entropy(each, target) for each in self.head(features)]).sum()

    table = {
        "one head": evaluation(Softmax(), embedding, target),
        "MRL, five sizes": evaluation(Nested(False), embedding, target),
        "MRL-E, five sizes": evaluation(Nested(True), embedding, target),
    }
    print_table("Nested heads: loss and gradients of the head", ratios(table, "one head", rounds=rounds, calls=3))


def searches(rounds: int) -> None:
    """Print the exact search against faiss called directly, on the same vectors."""
    import faiss

    faiss.omp_set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(count, DIM, generator=generator) for count in (20000, 512))
    gallery, queries = nn.functional.normalize(gallery), nn.functional.normalize(queries)
    index = Index(DIM, metric="dot")
    index.add(gallery)
    raw = faiss.IndexFlatIP(DIM)
    raw.add(gallery.numpy())
    table = {"faiss": lambda: raw.search(queries.numpy(), 10), "Index": lambda: index.search(queries, 10)}
    print_table("Exact search: 512 queries in 20,000 vectors", ratios(table, "faiss", rounds=rounds, calls=1))


def million() -> None:
    """Print time and peak memory of indexing and searching a million vectors of 128 numbers."""
    vectors = torch.empty(10**6, DIM)
    for part in vectors.split(65536):
        part.normal_(generator=torch.Generator().manual_seed(len(part)))
    for kind in ("exact", "ivf"):
        start = time.perf_counter()
        index = Index(DIM, kind=kind)
        index.add(vectors)
        added = time.perf_counter() - start
        index.search(vectors[:256], 10)
        searched = time.perf_counter() - start - added
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{kind}: added in {added:.1f} s, 256 queries in {searched:.2f} s, peak {peak:.2f} GiB of the process")


def clusters() -> None:
    """Print the time of clustering 100,000 points for batches."""
    from repertory.algorithms.ngame import balanced_clusters

    points = torch.randn(100_000, DIM, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    balanced_clusters(points, 2**12, torch.Generator().manual_seed(0))
    print(f"100,000 points to 4,096 balanced clusters: {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    losses(given.rounds)
    heads(given.rounds)
    searches(given.rounds)
    clusters()
    million()


if __name__ == "__main__":
    main()
