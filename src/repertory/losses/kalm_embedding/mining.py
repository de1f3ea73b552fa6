"""Hard negatives from a search with a base model, and pairs left out that the search does not confirm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, OptionError, check_number


def mine_negatives(
    queries: Tensor,
    passages: Tensor,
    positives: Tensor,
    count: int = 7,
    ranks: Sequence[int] = (50, 100),
    filter_topk: int | None = 50,
    *,
    metric: str = "cosine",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Search each query among all passages, and draw negatives from a window of the ranks.

    Args:
        queries: embeddings by the base model `(queries, dim)`.
        passages: of the distinct passages `(passages, dim)`.
        positives: which passage belongs to each query `(queries,)`, int64.
        count: negatives a query.
        ranks: the window, from the first rank (0 is the nearest passage) to before the second.
        filter_topk: keep a pair only if its passage is among so many nearest (ranking consistency); None keeps all.
        metric: "cosine", "dot" or "euclidean".
        generator: CPU generator of the draws; None takes torch's own.

    Returns:
        Positions of the negatives `(queries, count)`, int64, never the query's own passage and all different; and
        which pairs to keep `(queries,)`, bool.

    Raises:
        OptionError: if an option is not allowed.
        DataError: if numbers do not match, or there are too few passages for the window.

    >>> texts = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    >>> mine_negatives(texts[:1], texts, torch.tensor([0]), count=1, ranks=(1, 3), filter_topk=1)[1]
    tensor([True])
    """
    check_number("count", count, minimum=1, integer=True)
    window = _window(ranks, count)
    if filter_topk is not None:
        check_number("filter_topk", filter_topk, minimum=1, integer=True)
    if len(positives) != len(queries) or bool((positives < 0).any()) or bool((positives >= len(passages)).any()):
        raise DataError(
            f"positives must name one of the {len(passages)} passages for each of {len(queries)} queries; there are "
            f"{len(positives)}, from {int(positives.min())} to {int(positives.max())}"
        )
    if len(passages) <= window.start + count:
        raise DataError(
            f"{len(passages)} passages are too few for {count} negatives from rank {window.start} on; lower ranks or "
            "count, or add passages"
        )
    depth = min(len(passages), max(window.stop, filter_topk or 0))
    _, found = nearest_neighbours(queries, passages, depth, metric=metric)
    own = found == positives[:, None]
    kept = own[:, :filter_topk].any(1) if filter_topk is not None else torch.ones(len(queries), dtype=torch.bool)
    places = found[:, window]
    draws = torch.rand(places.shape, generator=generator).to(places.device).masked_fill(own[:, window], -1)
    return places.gather(1, draws.topk(count, 1).indices), kept.to(places.device)


def _window(ranks: Sequence[int], count: int) -> slice:
    if len(ranks) != 2:
        raise OptionError(f"ranks={list(ranks)} is not allowed: give two whole numbers, as in [50, 100]")
    for rank in ranks:
        check_number("ranks", rank, minimum=0, integer=True)
    if ranks[1] - ranks[0] <= count:
        raise OptionError(
            f"ranks={list(ranks)} is not allowed: {count} negatives need a window of more than {count} ranks, since "
            "the passage itself may be among them"
        )
    return slice(ranks[0], ranks[1])


class MinedNegatives:
    """Give every training pair hard negatives, found by the untrained network; for a recipe's curation.

    The untrained network is the base model: a pretrained encoder, or the small one, which finds texts that share words.

    Args:
        count: negatives a query.
        ranks: the window of ranks that they are drawn from.
        filter_topk: leave out pairs whose passage is not among so many nearest; None keeps all.

    Raises:
        OptionError: if an option is not allowed.

    >>> MinedNegatives(count=3, ranks=[10, 30]).count
    3
    """

    def __init__(self, count: int = 7, ranks: Sequence[int] = (50, 100), filter_topk: int | None = 50) -> None:
        check_number("count", count, minimum=1, integer=True)
        _window(ranks, count)
        if filter_topk is not None:
            check_number("filter_topk", filter_topk, minimum=1, integer=True)
        self.count = count
        self.ranks = tuple(ranks)
        self.filter_topk = filter_topk

    def choose(self, bench: Any) -> Tensor:
        """Add the negatives to the bench's training pairs, and return the rows of those to train on `(n,)`.

        Args:
            bench: what the run offers: `fresh_model`, `embed`, `generator` and `splits`.

        Raises:
            DataError: if the data are not pairs of texts, or too few.
        """
        train = bench.splits.train
        if bench.task != "pairs":
            raise DataError("negatives=... mines texts for pairs of texts, but the data have classes; leave it out")
        numbers, places = train.targets.unique(return_inverse=True)
        first = torch.full((len(numbers),), len(places)).scatter_reduce(0, places, torch.arange(len(places)), "amin")
        embeddings, _ = bench.embed(bench.fresh_model(), "train")
        negatives, kept = mine_negatives(
            embeddings[:, 0],
            embeddings[first, 1],
            places,
            self.count,
            self.ranks,
            self.filter_topk,
            generator=bench.generator("kalm-embedding"),
        )
        inputs = torch.cat([train.inputs, train.inputs[first, 1][negatives]], 1)
        bench.splits = dataclasses.replace(bench.splits, train=dataclasses.replace(train, inputs=inputs))
        return kept.nonzero().flatten()
