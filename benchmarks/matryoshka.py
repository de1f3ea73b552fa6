"""What classifiers on every prefix of an embedding cost, against one classifier: forward and backward of the head."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from timing import print_table, ratios
from torch import nn

from repertory.losses import MRLHead
from repertory.losses.matryoshka.sizes import halved


def head_call(head: nn.Module, batch: int, dim: int) -> Callable[[], object]:
    """Return a call that takes random embeddings forward, and random gradients of all logits back."""
    embedding = torch.randn(batch, dim, requires_grad=True)
    with torch.no_grad():
        toward = [torch.randn_like(logits) for logits in _all(head(embedding))]
    leaves = [embedding, *head.parameters()]
    return lambda: torch.autograd.grad(_all(head(embedding)), leaves, toward)


class Separately(nn.Module):
    """One classifier for all sizes, with a product a size."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.whole, self.sizes = nn.Linear(dim, classes), halved(dim)

    def forward(self, embedding: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits of each size."""
        weight, bias = self.whole.weight, self.whole.bias
        return tuple(nn.functional.linear(embedding[:, :size], weight[:, :size], bias) for size in self.sizes)


def _all(logits: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (logits,) if isinstance(logits, torch.Tensor) else logits


def main() -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    for batch, dim, classes in ((512, 128, 1000), (256, 2048, 1000)):
        table = {
            "one classifier": head_call(nn.Linear(dim, classes), batch, dim),
            "MRL-E": head_call(MRLHead(classes, halved(dim), efficient=True), batch, dim),
            "MRL-E, a product a size": head_call(Separately(dim, classes), batch, dim),
            "MRL": head_call(MRLHead(classes, halved(dim)), batch, dim),
        }
        title = f"Head on {len(halved(dim))} sizes of {dim} dimensions, {classes} classes, batch {batch}"
        print_table(title, ratios(table, "one classifier", rounds=rounds))


if __name__ == "__main__":
    main()
