"""Linear classifiers on every prefix of an embedding, at little more than the cost of the last one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number
from repertory.losses.matryoshka.sizes import check_sizes


def nested_linear(features: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return what one linear map gives from each prefix of its input, in one product's worth of work.

    The output of a size is that of the size before plus the product of the further columns. Gradients come back the
    same way: each block of columns meets the sum of the gradients of all sizes that contain it, once.

    Args:
        features: `(batch, dim)`.
        weight: `(outputs, dim)`.
        bias: `(outputs,)`, the same for every size, or None.
        sizes: growing numbers of leading columns, the last one at most `dim`.

    Returns:
        One `(batch, outputs)` a size.

    >>> nested_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), None, [1, 2])
    (tensor([[3.]]), tensor([[11.]]))
    """
    sizes = check_sizes(sizes, increasing=True)
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1] or sizes[-1] > weight.shape[1]:
        raise OptionError(
            f"sizes={list(sizes)} do not fit features {tuple(features.shape)} and weight {tuple(weight.shape)}; they "
            f"must be (batch, dim) and (outputs, dim) with dim at least {sizes[-1]}"
        )
    if bias is None:
        bias = weight.new_zeros(len(weight))
    if torch.is_autocast_enabled(features.device.type):
        # Before the products, as for a linear layer: their derivatives meet gradients of that type.
        lower = torch.get_autocast_dtype(features.device.type)
        features, weight, bias = (t if t.dtype == torch.float64 else t.to(lower) for t in (features, weight, bias))
    found: tuple[Tensor, ...] = _NestedLinear.apply(features, weight, bias, sizes)
    return found


class _NestedLinear(torch.autograd.Function):
    """Autograd alone would make the same products, but those with few columns in an order that is slow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for start, end in itertools.pairwise((0, *sizes)):
            before = found[-1] if found else bias
            found.append(torch.addmm(before, features[:, start:end], weight[:, start:end].T))
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, weight, _, ctx.sizes = inputs
        ctx.save_for_backward(features, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        features, weight = ctx.saved_tensors
        total, by_features, by_weight = gradients[-1], [], []
        if (rest := features.shape[1] - ctx.sizes[-1]) > 0:
            by_features.append(features.new_zeros(rest, len(features)))
            by_weight.append(weight.new_zeros(rest, len(weight)))
        blocks = list(itertools.pairwise((0, *ctx.sizes)))
        for place in reversed(range(len(blocks))):
            start, end = blocks[place]
            if place < len(blocks) - 2 and not torch.is_grad_enabled():
                total += gradients[place]
            elif place < len(blocks) - 1:
                total = total + gradients[place]
            by_features.append(weight[:, start:end].T @ total.T)
            by_weight.append(features[:, start:end].T @ total)
        to_features, to_weight = (torch.cat(parts[::-1]).T.contiguous() for parts in (by_features, by_weight))
        return to_features, to_weight, total.sum(0), None


class MRLHead(nn.Module):
    """One linear classifier for each prefix of an embedding (MRL), or one for all of them (MRL-E).

    Args:
        outputs: number of classes.
        sizes: growing numbers of leading dimensions; the last one is the size of the embedding.
        efficient: share one matrix and one bias between all sizes (MRL-E).
        bias: add a bias.

    Raises:
        OptionError: if an option is not allowed; in use, if embeddings have another size.

    >>> head = MRLHead(outputs=10, sizes=[2, 4], efficient=True)
    >>> [tuple(logits.shape) for logits in head(torch.zeros(3, 4))]
    [(3, 10), (3, 10)]

    Reference: Kusupati et al., Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147.
    """

    def __init__(self, outputs: int, sizes: Sequence[int], efficient: bool = False, bias: bool = True) -> None:
        super().__init__()
        check_number("outputs", outputs, minimum=1, integer=True)
        check_choice("efficient", efficient, (True, False))
        check_choice("bias", bias, (True, False))
        self.sizes = check_sizes(sizes, increasing=True)
        self.efficient = efficient
        widths = self.sizes[-1:] if efficient else self.sizes
        self.classifiers = nn.ModuleList(nn.Linear(width, outputs, bias=bias) for width in widths)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each size, `(batch, outputs)` each.

        Args:
            embedding: `(batch, dim)`.
        """
        self._check(embedding)
        if self.efficient:
            whole = self.classifiers[0]
            assert isinstance(whole, nn.Linear)
            return nested_linear(embedding, whole.weight, whole.bias, self.sizes)
        return tuple(layer(embedding[:, :size]) for size, layer in zip(self.sizes, self.classifiers))

    def largest(self, embedding: Tensor) -> Tensor:
        """Return the logits of the whole embedding alone, `(batch, outputs)`."""
        self._check(embedding)
        logits: Tensor = self.classifiers[-1](embedding)
        return logits

    def _check(self, embedding: Tensor) -> None:
        if embedding.ndim != 2 or embedding.shape[1] != self.sizes[-1]:
            raise OptionError(
                f"sizes={list(self.sizes)} do not fit embeddings of shape {tuple(embedding.shape)}; they must be "
                f"(batch, {self.sizes[-1]})"
            )

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"sizes={list(self.sizes)}, efficient={self.efficient}"
