"""The features that a network is searched by, taken from its ordinary forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.errors import DataError, UserError, check_choice

FEATURES = ("auto", "output", "penultimate")
"""Where features are taken: "output" of the network, "penultimate" is what enters its last linear layer, "auto" is the
output where the criterion takes embeddings."""


def takes_embeddings(criterion: object) -> bool:
    """Whether the criterion is made for embeddings: it has `logits`, or says `embeds = True`.

    >>> takes_embeddings(nn.CrossEntropyLoss())
    False
    """
    return callable(getattr(criterion, "logits", None)) or bool(getattr(criterion, "embeds", False))


class NetworkFeatures:
    """A hook on a network that notes its features while `recorded` is entered, and does nothing else.

    The hook stays, since a compiled network only sees those that were there before it was compiled. A copy of the
    network, or one that is pickled, leaves it behind.

    Args:
        model: the network.
        criterion: the loss on its output, which decides where features are taken "auto"matically.
        where: one of `FEATURES`.

    Attributes:
        layer: the network's last linear layer.
        output: whether the features are the network's output.
        dim: their size, as far as the network's last linear layer tells.

    Raises:
        OptionError: if there is no such place; the option is called `features`.
        UserError: if the network has no linear layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> features = NetworkFeatures(model, nn.MSELoss())
    >>> with features.recorded() as seen:
    ...     _ = model(torch.zeros(5, 2))
    >>> seen[-1].shape, features.dim
    (torch.Size([5, 3]), 3)
    """

    def __init__(self, model: nn.Module, criterion: object, where: str = "auto") -> None:
        check_choice("features", where, FEATURES)
        _, layer = classifier_of(model)
        self.layer = layer
        self.output = takes_embeddings(criterion) if where == "auto" else where == "output"
        self.dim = layer.out_features if self.output else layer.in_features
        self._seen: list[Tensor] | None = None
        self._passed = 1.0
        if self.output:
            model.register_forward_hook(_Hook(self))
        else:
            layer.register_forward_pre_hook(_Hook(self))

    @contextmanager
    def recorded(self, passed: float = 1.0) -> Iterator[list[Tensor]]:
        """Fill a list with the features `(batch, dim)` of each forward pass inside the block.

        Args:
            passed: share of the gradient of whatever comes after the features that goes on to the network below them,
                in [0, 1]. What comes after, such as a classifier, still has its own gradient in full.
        """
        seen: list[Tensor] = []
        self._seen, self._passed = seen, passed
        try:
            yield seen
        finally:
            self._seen = None
        if not seen:
            raise UserError(
                "the network's features were not seen in its forward pass: it was not called, or does not use its last "
                "linear layer; name another place with features"
            )

    def _row(self, value: Tensor) -> Tensor:
        return value.flatten(1)

    def take(self, value: Any) -> Tensor | None:
        """Note features, and return what goes on in their place, None for themselves; called by the hook."""
        if self._seen is None:
            return None
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise DataError(
                f"the network's features must be a tensor (batch, dim), not {getattr(value, 'shape', type(value))}"
            )
        self._seen.append(self._row(value))
        if self._passed == 1.0:
            return None
        fixed = value.detach()
        # In this form the value stays the same to the last bit.
        return fixed + self._passed * (value - fixed) if self._passed else fixed


class DenseFeatures(NetworkFeatures):
    """As `NetworkFeatures`, of a network with logits for each pixel: the map that enters its classifier, as it is.

    The classifier is what the network's `get_classifier()` says, else the last convolution or linear layer with as many
    outputs as there are classes, else the last one.

    Args:
        model: the network.
        classes: number of classes, None where nobody knows.

    Attributes:
        layer: the classifier.
        dim: channels of the map.

    Raises:
        UserError: if the network has neither a convolution nor a linear layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> features = DenseFeatures(model, classes=4)
    >>> with features.recorded() as seen:
    ...     _ = model(torch.zeros(2, 3, 5, 6))
    >>> seen[-1].shape, features.dim
    (torch.Size([2, 8, 5, 6]), 8)
    """

    def __init__(self, model: nn.Module, classes: int | None) -> None:
        self.layer: Any = _dense_classifier(model, classes)
        self.output = False
        dim: Any = self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels
        self.dim = int(dim)
        self._seen, self._passed = None, 1.0
        self.layer.register_forward_pre_hook(_Hook(self))

    def _row(self, value: Tensor) -> Tensor:
        return value


def _dense_classifier(model: nn.Module, classes: int | None) -> nn.Module:
    ask: Any = getattr(model, "get_classifier", None)
    told = ask() if callable(ask) else None
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    if isinstance(told, kinds):
        return told
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no convolution and no linear layer, so its classifier cannot be found; end "
            "the network in one"
        )
    fitting = [each for each in layers if getattr(each, "out_channels", getattr(each, "out_features", 0)) == classes]
    return (fitting or layers)[-1]


class _Hook:
    """Before the last linear layer, or after the network. Copying or pickling gives one that does nothing."""

    def __init__(self, features: NetworkFeatures | None = None) -> None:
        self.features = features

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        if self.features is None:
            return None
        passed = self.features.take(output[0] if output else args[0])
        return passed if output or passed is None else (passed, *args[1:])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
