"""InfoNCE with the other passages of the batch as negatives, for pairs of a query and a passage, and for classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows


def candidate_logits(
    embedding: Tensor, target: Tensor, temperature: float, *, extended: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosine of each query with everything that it is compared with, over the temperature.

    The candidates of a query are the passages of the batch, gathered over all processes: its own positive, its own hard
    negatives, and those of the others. What cannot count has the logit -inf: positives of the others that are the same
    passage, and passages without a text, whose embedding is zero.

    Args:
        embedding: `(batch, 2 + negatives, dim)` of any length: query, positive passage, hard negatives; or
            `(batch, dim)`, where each example is a query, its positive is the next example of its class in the batch
            (around its end), further ones of its class do not count, and those of other classes are negatives.
        target: id of the positive passage, or the class, `(batch,)` int64.
        temperature: divides the cosines.
        extended: compare, as further negatives, the query with the other queries, and the positive with the other
            positives; pairs only.

    Returns:
        Logits `(batch, candidates)` in float32 or wider; the place of each positive, `(batch,)` int64; and whether it
        has one, `(batch,)` bool: an example that is alone in its class has not, and its own place stands there.

    Raises:
        DataError: if embeddings and targets do not match.

    >>> pairs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]])
    >>> candidate_logits(pairs, torch.tensor([0, 1]), temperature=0.5)[0]
    tensor([[2., 0.],
            [0., 2.]])
    """
    if embedding.ndim not in (2, 3) or target.shape != embedding.shape[:1]:
        raise DataError(
            f"embeddings {tuple(embedding.shape)} and targets {tuple(target.shape)} must be (batch, texts, dim), of a "
            "query, its passage and hard negatives, or (batch, dim), with targets (batch,)"
        )
    if embedding.ndim == 3 and embedding.shape[1] < 2:
        raise DataError(
            f"embeddings {tuple(embedding.shape)} hold {embedding.shape[1]} texts an example; the least is 2, a query "
            "and its passage"
        )
    unit = unit_rows(embedding)
    if embedding.ndim == 2:
        return _of_classes(unit, target, temperature)
    return _of_pairs(unit, target, temperature, extended)


def _of_pairs(unit: Tensor, ids: Tensor, temperature: float, extended: bool) -> tuple[Tensor, Tensor, Tensor]:
    everyone, all_ids = gather_with_gradient(unit), gather_rows(ids)
    queries, passages = unit[:, 0], everyone[:, 1:]
    start = own_rows(len(unit), unit.device).start
    place = (torch.arange(len(unit), device=unit.device) + start) * passages.shape[1]
    same = ids[:, None] == all_ids
    there = passages.any(-1).expand(len(unit), -1, -1)
    counted = torch.cat([there[..., :1] & ~same[..., None], there[..., 1:]], -1).flatten(1)
    counted = counted.scatter(1, place[:, None], True)
    logits = queries @ passages.flatten(0, 1).T
    if extended:
        logits = torch.cat([logits, queries @ everyone[:, 0].T, unit[:, 1] @ everyone[:, 1].T], 1)
        counted = torch.cat([counted, ~same, ~same], 1)
    return (logits / temperature).masked_fill(~counted, -math.inf), place, torch.ones_like(ids, dtype=torch.bool)


def _of_classes(unit: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    everyone, all_labels = gather_with_gradient(unit), gather_rows(labels)
    own = torch.arange(len(unit), device=unit.device) + own_rows(len(unit), unit.device).start
    ahead = (torch.arange(len(everyone), device=unit.device) - own[:, None]) % len(everyone)
    same = labels[:, None] == all_labels
    # Its own place comes last of its class, so that an example that is alone in it is compared with itself.
    place = torch.where(same, torch.where(ahead == 0, len(everyone), ahead), len(everyone) + 1).argmin(1)
    counted = (~same).scatter(1, place[:, None], True)
    return (unit @ everyone.T / temperature).masked_fill(~counted, -math.inf), place, place != own


class InfoNCELoss(nn.Module):
    r"""Find a query's passage among all passages of the batch: softmax cross-entropy on cosines over a temperature.

    For query $q_i$ with passage $p_i$, and the candidates $c$ of `candidate_logits`, with cosines $s$:
    $$ \ell_i = -\log \frac{\exp(s(q_i, p_i) / \tau)}{\sum_c \exp(s(q_i, c) / \tau)} . $$
    The baseline of the scenario retrieval on pairs. An example of a class that has no other in the batch counts 0. Over
    several processes the batch is that of all of them together. Computed in float32 or wider, also under autocast.

    Args:
        temperature: divides the cosines.
        extended: with queries compared with queries and positives with positives as further negatives (pairs only).
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if embeddings and targets do not match.

    >>> loss = InfoNCELoss(temperature=1.0)
    >>> pairs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]]])
    >>> loss(pairs, torch.tensor([0, 1]))  # log(1 + 1/e)
    tensor(0.3133)

    Reference: van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding,
    https://arxiv.org/abs/1807.03748; with in-batch negatives as in Karpukhin et al., Dense Passage Retrieval,
    https://arxiv.org/abs/2004.04906.
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}
    embeds: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.05, extended: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature = temperature
        self.extended = extended
        self.reduction = reduction

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            embedding: `(batch, 2 + negatives, dim)` of query, passage and hard negatives, or `(batch, dim)` of examples
                of classes; of any length. A zero vector is a passage that is not there.
            target: id of the passage, or the class, `(batch,)` int64.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            values = self.per_query(embedding, target)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def per_query(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return each query's loss `(batch,)`, in float32 or wider."""
        logits, place, found = candidate_logits(embedding, target, self.temperature, extended=self.extended)
        return nn.functional.cross_entropy(logits, place, reduction="none").where(found, 0.0)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"temperature={self.temperature}, extended={self.extended}, reduction={self.reduction!r}"
