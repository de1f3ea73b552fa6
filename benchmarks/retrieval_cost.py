"""What losses on embeddings, searches and clustered batches cost, as ratios in one run."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from timing import print_table, ratios
from torch import Tensor, nn

from repertory.algorithms.look import look_loss
from repertory.losses import (
    ContrastiveLoss,
    DEXMLLoss,
    MadaCos,
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
    """Print each loss against the same, or the most alike, loss of pytorch-metric-learning."""
    from pytorch_metric_learning import losses as there

    embedding, target = examples()
    pairs = {
        "normalised softmax": (NormalisedSoftmaxLoss(CLASSES, DIM), there.NormalizedSoftmaxLoss(CLASSES, DIM)),
        "SoftTriple": (SoftTripleLoss(CLASSES, DIM), there.SoftTripleLoss(CLASSES, DIM)),
        "contrastive (SupCon)": (ContrastiveLoss(), there.SupConLoss()),
        "MadaCos, against CosFace": (MadaCos(CLASSES, DIM), there.CosFaceLoss(CLASSES, DIM)),
        "DEXML, against SupCon": (DEXMLLoss(), there.SupConLoss()),
        "LOOK in the batch, against NCA": (InBatchLOOK(), there.NCALoss()),
    }
    for name, (ours, theirs) in pairs.items():
        table = {"there": evaluation(theirs, embedding, target), name: evaluation(ours, embedding, target)}
        print_table(f"Loss and gradients: {name}", ratios(table, "there", rounds=rounds, calls=3))


class InBatchLOOK(nn.Module):
    """The vote of all other examples of the batch."""

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss."""
        index = torch.arange(len(embedding))
        return look_loss(embedding, target, embedding, target, index=index, memory_index=index).mean()


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
    """Print the time of clustering 100,000 points to clusters of 16."""
    from repertory.algorithms.ngame import balanced_clusters

    points = torch.randn(100_000, DIM, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    balanced_clusters(points, 16, torch.Generator().manual_seed(0))
    print(f"100,000 points in clusters of at most 16: {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    losses(given.rounds)
    searches(given.rounds)
    clusters()
    million()


if __name__ == "__main__":
    main()
