"""States of networks whose parameters are spread over processes: gathered to be saved, spread to be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part of the tensor (a `DTensor`)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a spread tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(value: Any) -> Any:
    """Return `value` with every spread tensor in it gathered; all processes must call it together.

    Args:
        value: a tensor, or mappings, lists and tuples of tensors and plain values.
    """
    if isinstance(value, Tensor):
        return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(entry) for entry in value)
    return value


def spread_like(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state dict with its tensors spread as those of the same name in `now`."""
    return {name: _spread(value, now[name]) if name in now else value for name, value in saved.items()}


def spread_optimizer_state(saved: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return an optimizer's state dict with what has a parameter's shape spread as that parameter.

    Args:
        saved: from `state_dict()`, gathered by `whole`.
        parameters: the optimizer's parameters, in the order of its groups.
    """
    state = {
        number: {
            name: _spread(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in saved["state"].items()
    }
    return {**saved, "state": state}


def _spread(value: Any, like: Any) -> Any:
    if not isinstance(value, Tensor) or not isinstance(like, Tensor) or not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Spread tensors are of a class that is not imported unless several devices are used.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
