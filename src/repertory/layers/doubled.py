"""Layers that mix the examples of a batch in training: attention over the batch, and how a step brings them in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.core.method import Method
from repertory.core.randomness import derived_seed, seeded
from repertory.core.state import Run, State, batch_size
from repertory.errors import ConflictError, check_number


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return for every row a mean over the values of all rows, weighted by a softmax over scaled products.

    Args:
        query: `(heads, rows, size)`.
        key: `(heads, others, size)`.
        value: `(heads, others, size)`.
        bias: added to the scaled products, `(heads, rows, others)`.
        drop: applied to the weights.

    Returns:
        `(rows, heads * size)`.
    """
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    shares = shares if drop is None else drop(shares)
    return (shares.to(value.dtype) @ value).transpose(0, 1).flatten(1)


def in_heads(rows: Tensor, heads: int) -> Tensor:
    """Return `(rows, heads * size)` as `(heads, rows, size)`."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)


def repeated(value: Any, size: int) -> Any:
    """Return what has a row an example with all rows twice, one copy behind the other; anything else as it is.

    Args:
        value: a tensor, or a tuple, list or mapping of them.
        size: number of examples.

    >>> repeated((torch.tensor([3, 4]), torch.tensor(0.5)), 2)
    (tensor([3, 4, 3, 4]), tensor(0.5000))
    """
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {name: repeated(entry, size) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([repeated(entry, size) for entry in value])
    return value


class DoubledBatch(Method, ABC):
    """Base of methods that put a layer before the network's last linear one, which doubles the batch in training.

    The rows that enter the last linear layer are the features as they are, and behind them the features as the layer
    has mixed them. The criterion sees both halves, with every target twice; an example's loss is the mean of its two.
    `state.output`, and whatever other methods note of the forward pass, is of the half that was not mixed. The layer
    belongs to the method, not to the network: outside of a step the network is what it was, and after training nothing
    has to be removed.

    Subclasses set `slug` and `copies`, and override `make` and `enlarge`.

    Attributes:
        copies: rows an example that enter the last linear layer: 2, or 1 where the mixed features replace the others.
        lr_scale: factor on the learning rate of the layer.
    """

    owns = frozenset({"forward"})
    copies: int = 2

    def __init__(self, lr_scale: float = 1.0) -> None:
        super().__init__()
        check_number("lr_scale", lr_scale, minimum=0)
        self.lr_scale = lr_scale
        self.layer: nn.Module | None = None
        self._listening = False
        self._inputs: Any = None
        self._size = 0
        self._mixed: Tensor | None = None

    @abstractmethod
    def make(self, run: Run, width: int, seed: int) -> nn.Module:
        """Return the layer, for features of `width` numbers; initial weights are drawn from a seeded generator."""

    @abstractmethod
    def enlarge(self, features: Tensor, inputs: Any) -> Tensor:
        """Return what enters the last linear layer: `(copies * batch, width)`.

        Args:
            features: `(batch, width)`.
            inputs: what the network was given.
        """

    def setup(self, run: Run) -> None:
        """Make the layer, for what enters the network's last linear one."""
        with seeded(run.seed, self.slug):
            width = classifier_of(run.model)[1].in_features
            made = self.make(run, width, derived_seed(run.seed, f"{self.slug}/dropout"))
        self.layer = made.to(run.device)
        run.forward = self._evaluate

    def _listen(self, model: nn.Module) -> None:
        # In the first step, when other methods have put their hooks in place: these see a batch of single rows, before
        # it is doubled at the last linear layer and after it has been halved at the end of the network.
        classifier_of(model)[1].register_forward_pre_hook(_Hook(self))
        model.register_forward_hook(_Hook(self), prepend=True)
        self._listening = True

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        model, inputs = state.run.model, state.batch["input"]
        if not self._listening:
            self._listen(model)
        self._inputs, self._size = inputs, batch_size(state.batch)
        try:
            output = model(inputs)
            state.output, mixed = output, self._mixed
        finally:
            self._inputs = self._mixed = None
        target = state.batch.get("target")
        if mixed is None:
            return criterion(output, target)
        values = criterion(torch.cat([output, mixed]), repeated(target, self._size))
        return values.unflatten(0, (2, self._size)).mean(0) if values.ndim else values

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Change what enters the last linear layer, during the evaluation of a loss only; called by a hook."""
        if self._inputs is None:
            return None
        features = args[0]
        if features.ndim != 2:
            raise ConflictError(
                f"{self.slug} mixes one vector an example, (batch, width), but {tuple(features.shape)} enters the last "
                "linear layer; use a network that pools before its classifier"
            )
        return (self.enlarge(features, self._inputs), *args[1:])

    def leave(self, output: Any) -> Tensor | None:
        """Keep the mixed half of the network's output, and let the other go on; called by a hook."""
        if self._inputs is None:
            return None
        rows = self.copies * self._size
        if not isinstance(output, Tensor) or output.shape[:1] != (rows,):
            shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ConflictError(
                f"{self.slug} sends {rows} rows through the network's last linear layer, but the network gives "
                f"{shape}; use one that ends in its classifier, with one row of output a row"
            )
        if self.copies == 1:
            return None
        self._mixed = output[self._size :]
        return output[: self._size]


class _Hook:
    """Before the last linear layer, or after the network. Copying or pickling gives one that does nothing."""

    def __init__(self, method: DoubledBatch | None = None) -> None:
        self.method = method

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        if self.method is None:
            return None
        return self.method.leave(output[0]) if output else self.method.enter(args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
