"""A margin loss on the hardest negatives of the batch, for points with sets of labels and for classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows

_MASKED = -10.0
"""What stands in place of a cosine that is no negative, as in the authors' code: far below the margin."""


def in_batch_margin_loss(
    scores: Tensor,
    relevant: Tensor,
    positive: Tensor | None = None,
    *,
    margin: float = 0.3,
    negatives: int = 10,
    temperature: float | None = 0.1,
) -> Tensor:
    r"""Return for each point how far its hardest negatives come within the margin of its positive.

    With positive $p$ and the hardest negatives $n \in N$ of a point, and cosines $s$:
    $h_n = \max(0, s_n - s_p + m)$, and the value is the mean over $N$ of $w_n h_n$ with
    $w = \operatorname{softmax}_n(s_n [h_n > 0] / \tau)$, or of $h_n$ without a temperature.

    Args:
        scores: cosine of each point with each label (or other point) of the batch, `(points, labels)`.
        relevant: whether a label is one of the point's, known or drawn: never a negative, `(points, labels)` bool.
        positive: the label that was drawn for each point, as its column `(points,)` int64; or a mask `(points, labels)`
            of positives that are averaged over. None takes the diagonal.
        margin: the paper's gamma.
        negatives: most negatives of a point; where fewer labels are not relevant, the others count 0.
        temperature: of the weights; None weighs all alike.

    Returns:
        `(points,)` in float32 or wider; 0 for a point without a positive.

    Raises:
        DataError: if the shapes do not match.

    >>> scores = torch.tensor([[0.9, 0.5], [0.2, 0.8]])
    >>> in_batch_margin_loss(scores, torch.eye(2, dtype=torch.bool), margin=0.5, negatives=1)
    tensor([0.1000, 0.0000])
    """
    if scores.ndim != 2 or relevant.shape != scores.shape or relevant.dtype is not torch.bool:
        raise DataError(
            f"scores {tuple(scores.shape)} and relevant {tuple(relevant.shape)} must both be (points, labels), "
            "relevant of bool"
        )
    points, labels = scores.shape
    if positive is None:
        if points > labels:
            raise DataError(
                f"scores {tuple(scores.shape)} have no diagonal for each point; say which label is positive"
            )
        positive = torch.arange(points, device=scores.device)
    if positive.shape not in ((points,), (points, labels)):
        raise DataError(f"positive {tuple(positive.shape)} must be a column a point, or a mask like scores")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if positive.ndim == 1:
        # A negative column stands for none.
        own = scores.gather(1, positive.clamp(min=0)[:, None])
        counted = (positive >= 0)[:, None]
        relevant = relevant.scatter(1, positive.clamp(min=0)[:, None], True)
    else:
        own, counted, relevant = scores, positive, relevant | positive
    hardest = scores.masked_fill(relevant, _MASKED).topk(min(negatives, labels), dim=1).values[:, None]
    excess = (hardest - own[..., None] + margin).relu()
    if temperature is not None:
        excess = excess * (hardest * (excess > 0) / temperature).softmax(-1)
    return (excess.mean(-1) * counted).sum(1) / counted.sum(1).clamp(min=1)


def draw_positives(label_sets: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return one label of each point, drawn evenly from its labels, `(points,)`; -1 for a point without one.

    Args:
        label_sets: each point's labels, filled up with -1, `(points, most)` int64.
        generator: CPU generator.

    >>> draw_positives(torch.tensor([[4, -1], [-1, -1]])).tolist()
    [4, -1]
    """
    keys = torch.rand(label_sets.shape, generator=generator).to(label_sets.device).masked_fill(label_sets < 0, -1)
    return label_sets.gather(1, keys.argmax(1, keepdim=True))[:, 0]


def relevance(drawn: Tensor, label_sets: Tensor) -> Tensor:
    """Return whether each drawn label is one of each point's, `(points, labels)` bool.

    Args:
        drawn: labels `(labels,)` int64; -1 is none.
        label_sets: each point's labels, filled up with -1, `(points, most)` int64.

    >>> relevance(torch.tensor([3, 5]), torch.tensor([[3, 5], [5, -1]]))
    tensor([[ True,  True],
            [False,  True]])
    """
    return ((label_sets[:, :, None] == drawn) & (drawn >= 0)).any(1)


class NGAMELoss(nn.Module):
    """Margin loss on the hardest negatives of the batch, with labels that are true besides the drawn one left out.

    It takes points with labels as the paper has them: `(points, labels)` embeddings, of which row i of `labels` is the
    label drawn for point i, with the target `(drawn, label_sets)`. Or examples with classes: there each other example
    of the class in the batch is a positive, and the loss is the mean over them. Everything is computed in float32 or
    wider, also under autocast; over several processes the batch is that of all of them together.

    Args:
        margin: how much nearer than a negative the positive has to be, in cosines.
        negatives: hardest negatives of each point.
        temperature: the hardest of them weigh more, by a softmax at this temperature ("aggressive"); None weighs all
            alike.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is out of range.
        DataError: in use, if embeddings and targets do not match.

    >>> loss = NGAMELoss(margin=0.5, negatives=1)
    >>> loss(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), torch.tensor([0, 0, 1])) # (0.3 + 0.66 + 0) / 3
    tensor(0.3200)

    Notes:
        The authors' code chooses negatives by the masked cosines but then takes the unmasked ones, so that with fewer
        than `negatives` true negatives in the batch it pushes positives away; here the masked ones are taken. A point
        without a label, or an example that is alone in its class, counts 0.

    Reference: Dahiya et al., https://arxiv.org/abs/2207.04452.
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}
    embeds: ClassVar[bool] = True

    def __init__(
        self, margin: float = 0.3, negatives: int = 10, temperature: float | None = 0.1, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_number("margin", margin, minimum=0)
        check_number("negatives", negatives, minimum=1, integer=True)
        if temperature is not None:
            check_number("temperature", temperature, above=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.margin = margin
        self.negatives = negatives
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, embedding: Any, target: Any) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            embedding: examples `(batch, dim)`; or `(points, labels)`, two tensors `(batch, dim)`. Of any length.
            target: classes `(batch,)` int64; or `(drawn, label_sets)`, `(batch,)` and `(batch, most)` int64.
        """
        paired = isinstance(embedding, (tuple, list))
        points, labels = embedding if paired else (embedding, embedding)
        drawn, label_sets = target if isinstance(target, (tuple, list)) else (target, None)
        if paired == (label_sets is None):
            raise DataError("points with labels need the target (drawn, label_sets), and examples their classes")
        if points.ndim != 2 or labels.shape != points.shape or drawn.shape != points.shape[:1]:
            raise DataError(
                f"embeddings {tuple(points.shape)} and {tuple(labels.shape)} with targets {tuple(drawn.shape)} must be "
                "(batch, dim), (batch, dim) and (batch,)"
            )
        with torch.autocast(points.device.type, enabled=False):
            values = self._values(points, labels, drawn, label_sets)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def _values(self, points: Tensor, labels: Tensor, drawn: Tensor, label_sets: Tensor | None) -> Tensor:
        unit = unit_rows(points)
        others = unit if label_sets is None else unit_rows(labels)
        scores = unit @ gather_with_gradient(others).T
        everyone, count = gather_rows(drawn), len(points)
        column = torch.arange(count, device=points.device) + own_rows(count, points.device).start
        if label_sets is None:
            relevant = drawn[:, None] == everyone
            positive = relevant.scatter(1, column[:, None], False)
        else:
            # What was drawn for a point without a label is nobody's label.
            relevant = relevance(everyone, label_sets) | (everyone < 0)
            positive = column.masked_fill(drawn < 0, -1)
        return in_batch_margin_loss(
            scores,
            relevant,
            positive,
            margin=self.margin,
            negatives=self.negatives,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return (
            f"margin={self.margin}, negatives={self.negatives}, temperature={self.temperature}, "
            f"reduction={self.reduction!r}"
        )
