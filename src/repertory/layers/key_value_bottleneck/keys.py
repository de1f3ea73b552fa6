"""Placing the keys where embeddings lie, by moving averages over batches."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, check_number
from repertory.layers.key_value_bottleneck.bottleneck import KeyValueBottleneck, nearest_keys

_EPSILON = 1e-5
"""Of the authors' smoothed counts."""


def moved_keys(
    heads: Tensor, keys: Tensor, counts: Tensor, sums: Tensor, decay: float = 0.95, epsilon: float = _EPSILON
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, counts and sums after one batch: each key moves to the moving mean of the heads nearest to it.

    A key that no head ever chose stays where it is.

    Args:
        heads: of the batch `(codebooks, n, dim_key)`.
        keys: `(codebooks, pairs, dim_key)`.
        counts: moving average of the number of heads a key `(codebooks, pairs)`.
        sums: moving average of their sum `(codebooks, pairs, dim_key)`.
        decay: share of the averages that is kept.
        epsilon: smooths the counts, whose sum in a codebook stays.

    Returns:
        New tensors of the shapes of `keys`, `counts` and `sums`.
    """
    nearest = nearest_keys(heads, keys)
    hits = torch.zeros_like(counts).scatter_add_(
        1, nearest[..., 0], torch.ones_like(nearest[..., 0], dtype=counts.dtype)
    )
    total = torch.zeros_like(sums).scatter_add_(1, nearest.expand_as(heads), heads.to(sums.dtype))
    counts, sums = torch.lerp(hits, counts, decay), torch.lerp(total, sums, decay)
    whole = counts.sum(1, keepdim=True)
    smooth = (counts + epsilon) / (whole + counts.shape[1] * epsilon) * whole
    return torch.where(counts[..., None] > 0, sums / smooth[..., None], keys), counts, sums


@torch.no_grad()
def initialise_keys(
    layer: KeyValueBottleneck,
    embeddings: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 256,
    decay: float = 0.95,
    threshold: float = 0.1,
    generator: torch.Generator | None = None,
) -> None:
    """Place the keys where embeddings lie; no labels are needed, and values are left alone.

    Args:
        layer: its keys are set.
        embeddings: unlabelled, `(n, dim)` or `(n, tokens, dim)`.
        epochs: passes over them.
        batch_size: embeddings that move the keys at a time.
        decay: share of the moving averages that is kept, in [0, 1).
        threshold: a key with fewer heads than this times an equal share is put on a random head of the batch; 0 leaves
            all keys where they are.
        generator: CPU generator of the order and of these draws; None takes torch's own.

    Raises:
        OptionError: if an option is outside its range.
        DataError: if there are no embeddings, they are of another size, or not finite.

    >>> layer = KeyValueBottleneck(dim=1, outputs=3, codebooks=1, pairs=1, dim_key=1, splitter="chunk")
    >>> initialise_keys(layer, torch.tensor([[1.0], [3.0]]), epochs=200)
    >>> round(layer.keys.item(), 3)
    2.0

    Notes:
        The authors start the counts at 0 and the sums at the first keys, which throws keys far away that the first
        batch does not choose, and draws a replaced one back towards its first place. Here the sums start at 0 too, and
        are set to fit when a key is replaced. After the hundreds of batches that they take, nothing is left of it.
    """
    check_number("epochs", epochs, minimum=0, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    check_number("decay", decay, minimum=0, below=1)
    check_number("threshold", threshold, minimum=0)
    if not len(embeddings) or not bool(embeddings.isfinite().all()):
        raise DataError(f"embeddings {tuple(embeddings.shape)} must have rows, and finite numbers only")
    keys = layer.keys
    counts, sums = torch.zeros_like(keys[..., 0]), torch.zeros_like(keys)
    for _ in range(epochs):
        order = torch.randperm(len(embeddings), generator=generator)
        for rows in order.split(batch_size):
            heads = layer.heads(embeddings[rows].to(keys.device))
            keys, counts, sums = moved_keys(heads, keys, counts, sums, decay)
            share = heads.shape[1] / len(rows) * min(batch_size, len(order)) / keys.shape[1]
            book, place = (counts < threshold * share).nonzero(as_tuple=True)
            drawn = torch.randint(heads.shape[1], (len(book),), generator=generator).to(keys.device)
            keys[book, place] = heads[book, drawn].to(keys.dtype)
            sums[book, place] = keys[book, place] * counts[book, place, None]
    layer.keys.copy_(keys)
