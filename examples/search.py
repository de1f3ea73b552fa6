"""Learn an embedding in a loop of your own, index it, and search: no trainer, no recipe."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from repertory import Step
from repertory.layers.embedding import embedding_head
from repertory.losses import SoftTripleLoss
from repertory.retrieval import Index, retrieval_metrics
from repertory.training import BatchLoader


def main() -> None:
    """Train on the digits 0 to 4, and search among 5 to 9, which were never seen."""
    torch.manual_seed(0)
    inputs, targets = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    inputs, seen = inputs.float() / 16, targets < 5

    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5))
    model = embedding_head(network, outputs=5, dim=32)
    criterion = SoftTripleLoss(outputs=5, dim=32, centers=4, lr_scale=10.0)
    step = Step(model, lambda groups: torch.optim.AdamW(groups, lr=1e-3), criterion)
    loader = BatchLoader(inputs[seen], targets[seen], batch_size=64)
    for _ in range(5):
        for batch in loader:
            step(batch)
        step.end_epoch()

    with torch.no_grad():
        vectors = model.eval()(inputs[~seen])
    found = retrieval_metrics(vectors, targets[~seen])
    print(f"unseen digits: MAP@R {found['map_at_r']:.3f}, recall@1 {found['recall_at_1']:.3f}")

    index = Index(dim=32)
    index.add(vectors)
    _, numbers = index.search(vectors[:1], k=6)
    print(f"a {int(targets[~seen][0])} finds {targets[~seen][numbers[0]].tolist()}")


if __name__ == "__main__":
    main()
