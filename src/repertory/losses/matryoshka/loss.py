"""A loss on every prefix of an embedding: around a loss on embeddings, or with classifiers of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repertory.core.criterion import per_example, reduce_to_examples
from repertory.errors import OptionError, check_choice
from repertory.layers.embedding import unit_rows
from repertory.losses.matryoshka.head import MRLHead
from repertory.losses.matryoshka.sizes import check_sizes, check_weights


def truncate(embedding: Tensor, size: int) -> Tensor:
    """Return the first `size` numbers of each embedding, scaled to length 1: first cut, then scaled.

    Args:
        embedding: `(..., dim)`.
        size: at most `dim`.

    Returns:
        `(..., size)`, float32 or wider; a prefix of zeros stays zero.

    Raises:
        OptionError: if `size` is not a whole number from 1 to `dim`.

    >>> truncate(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    tensor([[0.6000, 0.8000]])
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= embedding.shape[-1]:
        raise OptionError(f"size={size!r} is not allowed: it must be a whole number from 1 to {embedding.shape[-1]}")
    return unit_rows(embedding[..., :size])


class MatryoshkaLoss(nn.Module):
    """Apply a loss on embeddings to every prefix in a list of sizes, and add up what it gives.

    Called like the loss it is made around, with one embedding or several: every floating tensor as wide as the first
    one is cut and scaled to length 1 for each size, all else is passed on as it is.

    Args:
        criterion: the loss. A module serves all sizes, so it must not depend on the size. Anything else that is
            callable, such as a class with parameters of its own for each size, is called with each size and returns a
            module.
        sizes: numbers of leading dimensions; the largest is the size of the embedding.
        weights: factor on the loss of each size; 1 for all when not given.
        reduction: "mean", "sum" or "none" over examples, where the criterion gives a value for each.

    Raises:
        OptionError: if an option is not allowed; in use, if embeddings have another size than the largest.

    >>> from repertory.losses import ContrastiveLoss, NormalisedSoftmaxLoss
    >>> criterion = MatryoshkaLoss(ContrastiveLoss(), sizes=[2, 4], weights=[0.5, 1.0])
    >>> criterion(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])).shape
    torch.Size([])
    >>> with_classes = MatryoshkaLoss(lambda size: NormalisedSoftmaxLoss(outputs=3, dim=size), sizes=[2, 4])
    >>> with_classes.logits(torch.randn(6, 4)).shape
    torch.Size([6, 3])

    Notes:
        Sizes are added, not averaged, as in the authors' code; so the learning rate that suits may be lower.

    Reference: Kusupati et al., Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147.
    """

    embeds: ClassVar[bool] = True

    def __init__(
        self,
        criterion: nn.Module | Callable[[int], nn.Module],
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.sizes = check_sizes(sizes)
        self.weights = check_weights(weights, self.sizes)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.reduction = reduction
        if isinstance(criterion, nn.Module):
            made = [criterion]
        elif callable(criterion):
            made = [criterion(size) for size in self.sizes]
        else:
            raise OptionError(
                f"criterion={criterion!r} is not allowed: give a loss module, or what makes one of a size"
            )
        self.criteria = nn.ModuleList()
        for each in made:
            alone = per_example(each)
            assert isinstance(alone, nn.Module)
            self.criteria.append(alone)
        self.takes: Mapping[str, str] = dict(getattr(made[0], "takes", {}))
        self.lr_scale: float = getattr(made[0], "lr_scale", 1.0)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"` where the criterion has a value an example.

        Args:
            inputs: what the criterion takes: embeddings `(batch, ..., dim)` first, then targets and the like.
            named: the same by name; nothing of it is cut.
        """
        width = inputs[0].shape[-1]
        if width != max(self.sizes):
            raise OptionError(
                f"sizes={list(self.sizes)} do not fit embeddings of shape {tuple(inputs[0].shape)}: the largest size "
                f"must be {width}, or the rest of an embedding learns nothing"
            )
        values = []
        for number, size in enumerate(self.sizes):
            criterion = self.criteria[min(number, len(self.criteria) - 1)]
            cut = (truncate(each, size) if _is_embedding(each, width) else each for each in inputs)
            values.append(reduce_to_examples(criterion(*cut, **named), len(inputs[0])))
        return _added(values, self.weights, self.reduction)

    @property
    def logits(self) -> Callable[[Tensor], Tensor] | None:
        """The criterion's own `logits`, of whole embeddings `(batch, dim)`; None where it has none."""
        largest = self.sizes.index(max(self.sizes))
        found: Callable[[Tensor], Tensor] | None = getattr(
            self.criteria[min(largest, len(self.criteria) - 1)], "logits", None
        )
        return found

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"sizes={list(self.sizes)}, weights={list(self.weights)}, reduction={self.reduction!r}"


class MRLLoss(nn.Module):
    """Classify from every prefix of an embedding, each with a linear classifier, and add up the losses.

    The prefixes are not scaled. Losses are computed in float32 or wider.

    Args:
        outputs: number of classes.
        sizes: growing numbers of leading dimensions; the last one is the size of the embedding.
        weights: factor on the loss of each size; 1 for all when not given.
        efficient: one classifier for all sizes (MRL-E).
        criterion: loss on logits and targets; cross-entropy when not given.
        reduction: "mean", "sum" or "none" over examples, where the criterion gives a value for each.

    Raises:
        OptionError: if an option is not allowed; in use, if embeddings have another size.

    >>> MRLLoss(outputs=3, sizes=[2, 4])(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([])

    Reference: Kusupati et al., Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147.
    """

    def __init__(
        self,
        outputs: int,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        efficient: bool = False,
        criterion: nn.Module | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.head = MRLHead(outputs, sizes, efficient)
        self.weights = check_weights(weights, self.head.sizes)
        self.reduction = reduction
        self.criterion = per_example(nn.CrossEntropyLoss() if criterion is None else criterion)
        self.takes: Mapping[str, str] = dict(getattr(criterion, "takes", {}))

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"` where the criterion has a value an example.

        Args:
            embedding: `(batch, dim)`.
            target: what the criterion takes: classes `(batch,)`, or probabilities `(batch, outputs)`.
        """
        values = []
        for logits in self.head(embedding):
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            values.append(reduce_to_examples(self.criterion(wide, target), len(embedding)))
        return _added(values, self.weights, self.reduction)

    def logits(self, embedding: Tensor) -> Tensor:
        """Return the logits of whole embeddings, `(batch, outputs)`."""
        return self.head.largest(embedding)


def _is_embedding(given: Any, width: int) -> bool:
    return isinstance(given, Tensor) and given.is_floating_point() and given.ndim > 1 and given.shape[-1] == width


def _added(values: Sequence[Tensor], weights: Sequence[float], reduction: str) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:]):
        total = torch.add(total, value, alpha=weight)
    if reduction == "none" or total.ndim == 0:
        return total
    return total.mean() if reduction == "mean" else total.sum()
