"""The last linear map of a network: finding it, replacing it, and reading what goes into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from repertory.errors import UserError


def classifier_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and module of the network's last linear layer.

    A network that says which one it is, by timm's `get_classifier()`, is believed; else it is the last `nn.Linear`
    in the order of `named_modules()`.

    Raises:
        UserError: if there is none.

    >>> classifier_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))[0]
    '2'
    """
    ask: Any = getattr(model, "get_classifier", None)
    told = ask() if callable(ask) else None
    last: tuple[str, nn.Linear] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = (name, module)
            if module is told:
                break
    if last is None:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear, so its classifier cannot be found; end the "
            "network in an nn.Linear"
        )
    return last


def replace_classifier(model: nn.Module, make: Callable[[int], nn.Module]) -> nn.Module:
    """Replace the network's last linear layer in place and return the network.

    Args:
        model: the network.
        make: called with the number of input features; its result takes the layer's place.
    """
    name, old = classifier_of(model)
    new = make(old.in_features)
    if not name:
        return new
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
    return model


def features_and_output(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Any]:
    """Run the network once and return what enters its last linear layer, and its output.

    Args:
        model: the network.
        inputs: a batch `(batch, ...)`.

    Returns:
        features `(batch, width)` and the output.
    """
    _, layer = classifier_of(model)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        output = model(inputs)
    finally:
        handle.remove()
    return seen[-1].flatten(1), output
